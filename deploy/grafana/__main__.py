"""Write the dashboards that Grafana provisions: `python -m deploy.grafana`."""

from __future__ import annotations

import json
from pathlib import Path

from deploy.grafana import cloud, fleet, handoff_latency, network
from deploy.grafana.panels import dashboard_json

FOLDER = Path(__file__).resolve().parent / "dashboards"
DASHBOARDS = {
    "handoff-latency": handoff_latency.DASHBOARD,
    "network": network.DASHBOARD,
    "cloud": cloud.DASHBOARD,
    "fleet": fleet.DASHBOARD,
}


def texts() -> dict[str, str]:
    """Return the text of each file of `FOLDER`, by name."""
    return {
        f"{name}.json": json.dumps(dashboard_json(dashboard), indent=1) + "\n" for name, dashboard in DASHBOARDS.items()
    }


def main() -> None:
    """Write the files."""
    for name, text in texts().items():
        (FOLDER / name).write_text(text)


if __name__ == "__main__":
    main()
