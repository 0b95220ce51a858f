"""The plot of a run; `python -m bench.throughput.plot` draws the published one again from its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.machine import RESULTS


def plot(results: dict[str, Any], machine: dict[str, Any], path: Path) -> None:
    """Draw pictures a minute against one at a time, the share of the raw forward, and how long a picture takes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows = results["rows"]
    one_at_a_time = next(row for row in rows if row["mode"] == "cloud" and row["num_sessions"] == 1)
    figure, (pictures, share, seconds) = pyplot.subplots(1, 3, figsize=(12, 3.8), layout="constrained")
    for colour, mode in enumerate(dict.fromkeys(row["mode"] for row in rows)):
        made = [row for row in rows if row["mode"] == mode]
        sessions, style = [row["num_sessions"] for row in made], {"color": f"C{colour}", "marker": "o"}
        pictures.plot(
            sessions, [_pictures(row) / _pictures(one_at_a_time) for row in made], label=f"mode {mode}", **style
        )
        middle = [row["share_of_raw"] for row in made]
        bounds = [[row["share_of_raw_interval"][end] for row in made] for end in (0, 1)]
        around = [[abs(at - value) for at, value in zip(each, middle, strict=True)] for each in bounds]
        share.errorbar(sessions, middle, yerr=around, capsize=3, **style)
        seconds.plot(sessions, [row["seconds_p50"] for row in made], label=f"{mode}, p50", **style)
        seconds.plot(sessions, [row["seconds_p95"] for row in made], label=f"{mode}, p95", linestyle="--", **style)
    pictures.set(ylabel="pictures a minute / one at a time, cloud", title="Pictures", ylim=(0, None))
    share.set(ylabel="evaluations / those of the raw forward", title="Of the raw forward, 95 % interval", ylim=(0, 1.1))
    share.axhline(0.9, color="gray", linestyle=":")
    seconds.set(ylabel="seconds a picture", title="How long each waits", yscale="log")
    for axis in (pictures, share, seconds):
        axis.set_xscale("log", base=2)
        axis.set_xticks(sessions, [str(count) for count in sessions])
        axis.set_xlabel("sessions at a time")
        axis.grid(alpha=0.3)
        axis.title.set_fontsize(10)
    pictures.legend(fontsize=8)
    seconds.legend(fontsize=8)
    figure.suptitle(f"One service, {machine['cpu']}, {machine['num_cpus']} CPUs, {machine['date']}", fontsize=10)
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


def _pictures(row: dict[str, Any]) -> float:
    """Return a rate of pictures, as the raw forward of the same time has it: the machine is not always as fast."""
    return float(row["pictures_per_minute"] * row["relative_rate"] / row["evaluations_per_second"])


if __name__ == "__main__":
    published = json.loads((RESULTS / "throughput.json").read_text())
    plot(published, published["machine"], RESULTS / "throughput.png")
