"""The plot of a simulation; `python -m bench.capacity.plot` draws the published one again from its JSON."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from bench.machine import RESULTS


def plot(results: dict[str, Any], machine: dict[str, Any], path: Path) -> None:
    """Draw the devices that each mode needs, and how long a picture then takes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    rows, options = results["rows"], results["options"]
    modes = [row["mode"] for row in rows]
    figure, (devices, seconds) = pyplot.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
    bars = devices.bar(modes, [row["num_devices"] for row in rows], color=[f"C{index}" for index in range(len(rows))])
    devices.bar_label(
        bars, [f"{row['num_devices']} ({row['num_devices'] / rows[0]['num_devices']:.2f})" for row in rows]
    )
    devices.set(ylabel="devices (of cloud's)", title="Devices")
    devices.margins(y=0.15)
    for offset, name, label in ((-0.2, "seconds_p50", "p50"), (0.2, "seconds_p95", "p95")):
        seconds.bar([index + offset for index in range(len(rows))], [row[name] for row in rows], width=0.4, label=label)
    seconds.set_xticks(range(len(rows)), modes)
    seconds.set(ylabel="seconds a picture", title="How long a picture takes there")
    seconds.legend(fontsize=8)
    for axis in (devices, seconds):
        axis.grid(alpha=0.3, axis="y")
        axis.set_axisbelow(True)
        axis.title.set_fontsize(10)
    figure.suptitle(
        f"{options['num_edges']} edges, a picture every {options['minutes_between']:g} minutes each, simulated from "
        f"{machine['cpu']}, one thread, {machine['date']}",
        fontsize=10,
    )
    figure.savefig(path, dpi=110)
    pyplot.close(figure)


if __name__ == "__main__":
    published = json.loads((RESULTS / "capacity.json").read_text())
    plot(published, published["machine"], RESULTS / "capacity.png")
