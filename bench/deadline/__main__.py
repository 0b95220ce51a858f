"""What a generation is predicted to take against what it takes: `python -m bench.deadline`.

On every link, with the models loaded: each mode, and mode adaptive under several deadlines, first predicted from what
is measured at that moment, then run. Cloud, edge and emulated network are processes of their own, the first two with
one thread each, so that they compute side by side. Runs of all modes take turns, so that a slow spell hits all.
"""

from __future__ import annotations

import asyncio
import os
from pathlib import Path

import click
import torch

from bench.deadline.figures import BOUND_RATIO, results
from bench.deadline.runs import measure
from bench.deadline.show import plot, show
from bench.machine import RESULTS, write_results
from bench.network import LINKS


@click.command()
@click.option("--repeats", type=click.IntRange(1), default=6, show_default=True, help="Runs a mode and link.")
@click.option("--links", default=",".join(LINKS), show_default=True, help="Which of bench.network's links.")
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each model.")
@click.option("--no-bars", is_flag=True, help="Exit 0 whatever was measured.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(repeats: int, links: str, threads: int, no_bars: bool, output: Path) -> None:
    """Compare predicted with measured latency."""
    if unknown := set(links.split(",")) - set(LINKS):
        raise click.UsageError(f"--links: no {', '.join(sorted(unknown))}; there are {', '.join(LINKS)}")
    # The edge is in this process, and the cloud inherits its environment.
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    runs = asyncio.run(measure(links.split(","), repeats))
    error_ratio = show(runs)
    path = write_results("deadline", results(runs, repeats, threads), output)
    plot(runs, path.with_suffix(".png"))
    click.echo(f"wrote {path} and {path.with_suffix('.png')}")
    if error_ratio > BOUND_RATIO and not no_bars:
        raise SystemExit(f"error: the median of |predicted - measured| / measured is {error_ratio:.3f}")


if __name__ == "__main__":
    main()
