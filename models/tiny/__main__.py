"""`python -m models.tiny FAMILY FOLDER`: a tiny random-weight model of a family, as a diffusers pipeline folder."""

from __future__ import annotations

from pathlib import Path

import click

from models.tiny.build import FAMILIES, LAYERS, build


@click.command()
@click.argument("family", type=click.Choice(sorted(FAMILIES)))
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--seed", type=int, default=0, show_default=True, help="Of the network's weights.")
@click.option(
    "--size",
    type=click.Choice(sorted(LAYERS)),
    default="large",
    show_default=True,
    help="Of the network: a pair has both.",
)
def main(family: str, folder: Path, seed: int, size: str) -> None:
    """Write a tiny random-weight model of FAMILY to FOLDER: real classes, a real folder, nothing to see.

    For trying a family without its gigabytes: serve one of size large, and generate with one of size small.
    """
    if folder.exists():
        raise click.UsageError(f"{folder} exists: name a folder that does not")
    build(family, folder, size=size, seed=seed)
    click.echo(f"wrote {folder}: {family}, {size}, seed {seed}")


if __name__ == "__main__":
    main()
