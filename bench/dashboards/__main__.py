"""Plots of the dashboards from a live Prometheus: `python -m bench.dashboards --prometheus URL -o FOLDER`."""

from __future__ import annotations

import time
from pathlib import Path

import click

from bench.dashboards.drawing import draw
from bench.dashboards.panels import read_dashboards
from bench.dashboards.prometheus import Prometheus

_NUM_POINTS = 240


@click.command()
@click.option("--prometheus", "url", default="http://127.0.0.1:9090", show_default=True, metavar="URL")
@click.option("-o", "--output", type=click.Path(path_type=Path, file_okay=False), required=True, help="For the PNGs.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=30.0, show_default=True, help="Up to now.")
def main(url: str, output: Path, minutes: float) -> None:
    """Draw every dashboard of deploy/grafana/dashboards, one PNG each, with its panels where Grafana puts them."""
    prometheus = Prometheus(url)
    output.mkdir(parents=True, exist_ok=True)
    try:
        window = prometheus.window(time.time(), 60 * minutes, _NUM_POINTS)
        for dashboard in read_dashboards():
            path = output / f"{dashboard.name}.png"
            empty = draw(dashboard, prometheus, window, path)
            click.echo(f"wrote {path}" + (f"; no data: {', '.join(empty)}" if empty else ""))
    except (OSError, ValueError) as error:
        raise click.ClickException(str(error)) from error


if __name__ == "__main__":
    main()
