"""What a link makes of a generation, and how old latents get on it: `python -m bench.links`.

1. Where the time to the picture goes, in each mode and on each link, each with a first contact of its own.
2. How old latents are when they arrive, with a window of two credits and without any gate, and what a ping in the same
   stream takes: of the bundled pair, and 128 KiB a step of a tiny random model whose steps are quick.
3. How old the cloud's answer was that drove a decision (agreement, handoff, correction), by the report. The bar: on the
   narrow link never above two round trips. With more pictures in a tensor the same is shown and not judged.

Cloud, edge and emulated network are processes of their own, the first two with one thread each.
"""

from __future__ import annotations

import asyncio
import os
from dataclasses import asdict
from pathlib import Path

import click
import torch
from rich.console import Console

from bench.links import figures, show
from bench.links.runs import CloudWasLost, run_generations, run_streams
from bench.machine import RESULTS, write_results
from bench.network import LINKS
from wire.errors import EcdiffError

# Pictures in a tensor: 32 KiB, as Stable Diffusion's in half precision, and as many as a service takes.
MORE_IMAGES = (4, 8)


@click.command()
@click.option("--repeats", type=click.IntRange(1), default=3, show_default=True, help="Runs a mode and link.")
@click.option("--sessions", type=click.IntRange(1), default=2, show_default=True, help="Sessions a link and credit.")
@click.option("--links", default="fibre,dsl,mobile", show_default=True, help="Which of bench.network's links.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each process.")
@click.option("--no-bars", is_flag=True, help="Exit 0 whatever was measured.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(repeats: int, sessions: int, links: str, threads: int, no_bars: bool, output: Path) -> None:
    """Measure time splits and the latents' age on emulated links."""
    chosen = links.split(",")
    if unknown := set(chosen) - set(LINKS):
        raise click.UsageError(f"--links: no {', '.join(sorted(unknown))}; there are {', '.join(LINKS)}")
    # The edge is in this process, and the cloud inherits its environment.
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    console = Console(stderr=True, highlight=False)
    try:
        runs = asyncio.run(run_generations(chosen, repeats, MORE_IMAGES, figures.NARROW, console.print))
        streams = asyncio.run(run_streams(chosen, sessions, console.print))
    except (CloudWasLost, EcdiffError) as error:
        raise click.ClickException(str(error)) from error
    parts, fresh, ages = figures.splits(runs), figures.freshness(streams), figures.decision_ages(runs)
    show.print_splits(parts)
    show.print_freshness(fresh)
    show.print_ages(ages)
    results = {
        "repeats": repeats,
        "sessions": sessions,
        "threads": threads,
        "links": {name: str(LINKS[name]) for name in chosen},
        "bound_round_trips": figures.BOUND_ROUND_TRIPS,
        "splits": [asdict(each) for each in parts],
        "freshness": [asdict(each) for each in fresh],
        "decisions": [asdict(each) | {"round_trips": each.round_trips} for each in ages],
    }
    path = write_results("links", results, output)
    show.draw(parts, fresh, ages, path.with_suffix(".png"))
    click.echo(f"wrote {path} and {path.with_suffix('.png')}")
    if (broken := figures.too_old(ages, figures.NARROW)) and not no_bars:
        lines = [f"{each.variant}, {each.decision}: {each.round_trips:.2f}" for each in broken]
        raise SystemExit(
            f"error: on {figures.NARROW}, decisions from what is older than two round trips: {'; '.join(lines)}"
        )


if __name__ == "__main__":
    main()
