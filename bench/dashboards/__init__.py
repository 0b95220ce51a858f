"""What the Grafana dashboards show, without Grafana: their panels read, their queries run, their data drawn."""

from bench.dashboards.panels import Dashboard, Panel, PanelQuery, Window, read_dashboards
from bench.dashboards.prometheus import Prometheus, Series

__all__ = ["Dashboard", "Panel", "PanelQuery", "Prometheus", "Series", "Window", "read_dashboards"]
