"""Every mode on every link, against the paper's claim: `python -m bench.headline`.

1. Quality, on loopback: cloud calls, error of the final latents to mode cloud, the scorer's top-1. Latents do not
   depend on the link: those of every timed run are compared with these.
2. Times, on each link: wall time and its parts, seconds of the cloud's device. All modes and links take turns.
3. The paper's claim, which is the floor: at least twice as fast as mode cloud, better pictures than mode edge.

Cloud, edge and emulated network are processes of their own, the first two with one thread each. The default run is
small and says so; the published one is `--num-prompts 64 --num-seeds 2 --repeats 10`. Ctrl-C ends it with the tables of
what is done, and the figures in `headline-partial.json`.
"""

from __future__ import annotations

import asyncio
import os
from collections.abc import Sequence
from pathlib import Path

import click
import torch
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

from bench.headline.claims import DEFAULT
from bench.headline.figures import SAME_LATENTS
from bench.headline.publish import Findings, Runs, find, publish
from bench.headline.runs import LANES, Ask, CloudWasLost, Pair, Run, Work, make_variants, run_all
from bench.machine import RESULTS
from bench.network import LINKS
from bench.quality.figures import Accuracy
from models import PAIR_DIR, read_prompts
from models.data import cache_option
from orchestrator.plan import DEFAULT_NUM_INFERENCE_STEPS, MAX_STEPS
from wire.errors import EcdiffError

INTERRUPTED = 130


@click.command()
@click.option("--num-prompts", type=click.IntRange(1), default=8, show_default=True, help="Report prompts.")
@click.option("--num-seeds", type=click.IntRange(1), default=1, show_default=True, help="Pictures of each prompt.")
@click.option("--repeats", type=click.IntRange(2), default=4, show_default=True, help="Timed runs a mode and link.")
@click.option("--links", default=",".join(LINKS), show_default=True, help="Where to measure times.")
@click.option(
    "--tolerance", type=click.FloatRange(0), default=0.01, show_default=True, help="Of mode adaptive, the second time."
)
@click.option("--steps", type=click.IntRange(4, MAX_STEPS), default=DEFAULT_NUM_INFERENCE_STEPS, show_default=True)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of each process.")
@click.option("--cloud-model", metavar="PATH_OR_ID", help="Default: the bundled pair's, as for the next.")
@click.option("--edge-model", metavar="PATH_OR_ID")
@click.option("--scorer/--no-scorer", "asks_scorer", default=True, help="It needs the icons, fetched the first time.")
@cache_option
@click.option("--no-bars", is_flag=True, help="Exit 0 whatever was measured.")
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(
    num_prompts: int,
    num_seeds: int,
    repeats: int,
    links: str,
    tolerance: float,
    steps: int,
    threads: int,
    cloud_model: str | None,
    edge_model: str | None,
    asks_scorer: bool,
    cache_dir: Path,
    no_bars: bool,
    output: Path,
) -> None:
    """Measure what every mode costs and gives on real links."""
    chosen = tuple(links.split(","))
    if unknown := set(chosen) - set(LINKS):
        raise click.UsageError(f"--links: no {', '.join(sorted(unknown))}; there are {', '.join(LINKS)}")
    work = Work(
        pair=Pair(cloud=cloud_model, edge=edge_model),
        variants=make_variants(tolerance),
        asks=_asks(read_prompts("report")[:num_prompts], num_seeds),
        repeats=repeats,
        links=chosen,
        num_steps=steps,
    )
    # Now, since it may have to fetch the icons.
    scorer = Accuracy(PAIR_DIR / "scorer", cache_dir).right if asks_scorer else None
    # The edge is in this process, and the cloud inherits its environment.
    torch.set_num_threads(threads)
    os.environ["OMP_NUM_THREADS"] = str(threads)
    runs = Runs()
    interrupted = False
    try:
        _run(work, runs)
    except KeyboardInterrupt:
        interrupted = True
    except (EcdiffError, CloudWasLost, OSError, RuntimeError, ValueError) as error:
        raise click.ClickException(str(error)) from error
    findings = find(work, runs, scorer)
    publish(work, runs, findings, scored=asks_scorer, output=output)
    if interrupted:
        raise SystemExit(INTERRUPTED)
    if not no_bars:
        _end_by(findings)


def _asks(prompts: Sequence[str], num_seeds: int) -> tuple[Ask, ...]:
    """Return every prompt with each of its seeds, those of `bench.quality`."""
    return tuple(
        Ask(prompt=prompt, seed=1000 * number + index)
        for number in range(num_seeds)
        for index, prompt in enumerate(prompts)
    )


def _run(work: Work, runs: Runs) -> None:
    """Run everything, with a bar that knows about how much is left."""
    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn(), TimeRemainingColumn())
    # A picture of the first part takes less of the whole: several are made at once.
    total = len(work.variants) * (len(work.asks) / LANES + work.repeats * len(work.links))
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task("loading", total=total)

        def keep_made(run: Run) -> None:
            runs.made[run.variant, run.ask] = run
            progress.update(task, advance=1 / LANES, description="quality")

        def keep_timed(link: str, run: Run) -> None:
            runs.timed.setdefault(link, []).append(run)
            progress.update(task, advance=1, description=f"times, {link}")

        asyncio.run(run_all(work, keep_made, keep_timed))


def _end_by(findings: Findings) -> None:
    """End with an error where latents depend on the link, or the default mode misses the floor."""
    if findings.apart > SAME_LATENTS:
        raise SystemExit(f"error: latents over a link are {findings.apart:.1e} from those on loopback")
    broken = [claim.what for claim in findings.claims if claim.variant == DEFAULT and not claim.holds]
    if broken:
        raise SystemExit(f"error: below the floor in mode {DEFAULT}: {', '.join(broken)}")


if __name__ == "__main__":
    main()
