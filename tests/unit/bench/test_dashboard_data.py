"""How numbers of a Prometheus are read and written."""

from __future__ import annotations

import math

import numpy as np
import pytest

from bench.dashboards import Prometheus, Series
from bench.dashboards.drawing import text_of
from bench.dashboards.prometheus import read_seconds


@pytest.mark.parametrize(("text", "seconds"), [("5s", 5), ("500ms", 0.5), ("1m30s", 90), ("2h", 7200)])
def test_durations_are_read_as_prometheus_writes_them(text: str, seconds: float) -> None:
    assert read_seconds(text) == seconds


def test_a_series_that_is_no_number_anywhere_has_no_data() -> None:
    times = np.array([1.0, 2.0])
    assert not Series(labels={}, times=times, values=np.array([math.nan, math.inf])).has_data
    assert Series(labels={}, times=times, values=np.array([math.nan, 0.0])).has_data


def test_a_legend_names_labels() -> None:
    series = Series(labels={"stage": "transit"}, times=np.array([]), values=np.array([]))
    assert series.name("{{stage}} p95") == "transit p95"
    assert series.name("{{ stage }}{{nobody}}") == "transit"


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (0.0123, "s", "12.3 ms"),
        (2.5, "s", "2.5 s"),
        (0.05, "percentunit", "5 %"),
        (3 * 2**20, "bytes", "3 MiB"),
        (1500, "Bps", "1.5 kB/s"),
        (12, "suffix: /min", "12 /min"),
        (7, "short", "7"),
    ],
)
def test_values_are_written_in_the_units_of_panels(value: float, unit: str, text: str) -> None:
    assert text_of(value, unit) == text


def test_a_prometheus_that_is_not_there_is_an_error_of_the_system() -> None:
    with pytest.raises(OSError, match="refused"):
        Prometheus("http://127.0.0.1:9").ask("query", query="up")
