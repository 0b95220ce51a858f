"""What Grafana is told: provisioning that needs no hand, panels that explain themselves, queries that parse."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bench.dashboards import Panel, Window
from bench.dashboards.panels import DASHBOARDS
from deploy.grafana.__main__ import texts
from harness.dashboards import PROMETHEUS, all_panels, all_queries, selectors

ROOT = Path(__file__).resolve().parents[3]
PROVISIONING = ROOT / "deploy" / "grafana" / "provisioning"
DATASOURCE = {"type": "prometheus", "uid": "ecdiff-prometheus"}
FILES = sorted(DASHBOARDS.glob("*.json"))


def dashboard(path: Path) -> Any:
    return json.loads(path.read_text())


def test_the_committed_files_are_what_the_generator_writes() -> None:
    written = {path.name: path.read_text() for path in FILES}
    assert written == texts(), "run `python -m deploy.grafana` and commit the result"


def test_the_datasource_is_the_one_that_dashboards_name_and_knows_the_scrape_interval() -> None:
    (source,) = yaml.safe_load((PROVISIONING / "datasources" / "prometheus.yaml").read_text())["datasources"]
    assert {"type": source["type"], "uid": source["uid"]} == DATASOURCE
    scraped = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped


def test_one_provider_reads_the_dashboards_from_where_compose_puts_them() -> None:
    (provider,) = yaml.safe_load((PROVISIONING / "dashboards" / "ecdiff.yaml").read_text())["providers"]
    assert provider["type"] == "file"
    volumes = yaml.safe_load((ROOT / "deploy" / "compose.yaml").read_text())["services"]["grafana"]["volumes"]
    assert f"./grafana/dashboards:{provider['options']['path']}:ro" in volumes


def test_dashboards_have_names_of_their_own() -> None:
    found = [dashboard(path) for path in FILES]
    assert [each["title"] for each in found] == ["Cloud", "Fleet", "Handoff latency", "Network"]
    assert len({each["uid"] for each in found}) == len(found)


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_a_dashboard_can_be_provisioned(path: Path) -> None:
    found = dashboard(path)
    assert re.fullmatch(r"[\w-]{1,40}", found["uid"])
    assert found["schemaVersion"] >= 36
    assert "__inputs" not in found
    assert "id" not in found  # Grafana gives it
    assert len({panel["id"] for panel in found["panels"]}) == len(found["panels"])
    for panel in found["panels"]:
        assert panel["datasource"] == DATASOURCE
        assert [target["datasource"] for target in panel["targets"]] == [DATASOURCE] * len(panel["targets"])
        assert len({target["refId"] for target in panel["targets"]}) == len(panel["targets"])


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.stem)
def test_panels_of_a_dashboard_fill_the_grid_without_overlap(path: Path) -> None:
    taken: set[tuple[int, int]] = set()
    for panel in dashboard(path)["panels"]:
        place = panel["gridPos"]
        cells = {(place["x"] + x, place["y"] + y) for x in range(place["w"]) for y in range(place["h"])}
        assert not cells & taken
        assert max(x for x, _ in cells) < 24
        taken |= cells


@pytest.mark.parametrize(
    ("name", "panel"), [pytest.param(*each, id=f"{each[0]}: {each[1].title}") for each in all_panels()]
)
def test_a_panel_has_unit_description_and_queries_with_legends(name: str, panel: Panel) -> None:
    assert panel.unit
    assert panel.description.endswith(".")
    assert panel.queries
    for query in panel.queries:
        assert query.legend
        # What counts over a range of the graph uses Grafana's own; a fixed window belongs into a recording rule.
        assert set(re.findall(r"\[(.*?)\]", query.expr)) <= {"$__rate_interval", "$__range"}
        assert ("$__range" in query.expr) <= query.instant


def test_every_query_is_promql() -> None:
    for place, expr in all_queries():
        assert selectors(expr), place


def test_grafanas_variables_are_filled_in_as_grafana_does() -> None:
    near = Window(start=0, end=300, step_seconds=5, scrape_seconds=5)
    far = Window(start=0, end=86400, step_seconds=60, scrape_seconds=5)
    expr = "rate(x[$__rate_interval]) + rate(x[$__interval]) + rate(x[$__range])"
    assert near.expand(expr) == "rate(x[20000ms]) + rate(x[5000ms]) + rate(x[300000ms])"
    assert far.expand(expr) == "rate(x[65000ms]) + rate(x[60000ms]) + rate(x[86400000ms])"
