"""Asks a Prometheus over HTTP."""

from __future__ import annotations

import json
import re
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from bench.dashboards.panels import PanelQuery, Window

_TIMEOUT_SECONDS = 30.0
_UNIT_SECONDS = {"ms": 0.001, "s": 1.0, "m": 60.0, "h": 3600.0}


@dataclass(frozen=True, kw_only=True)
class Series:
    """One series of an answer.

    Attributes:
        labels: Its labels, the name among them if it has one.
        times: Unix seconds, `[N]`.
        values: `[N]`; not a number where there was nothing to measure.
    """

    labels: dict[str, str]
    times: NDArray[np.float64]
    values: NDArray[np.float64]

    @property
    def has_data(self) -> bool:
        """Whether any value is a number."""
        return bool(np.isfinite(self.values).any())

    def name(self, legend: str) -> str:
        """Return `legend` with its `{{label}}`s filled in."""
        return re.sub(r"{{\s*(\w+)\s*}}", lambda match: self.labels.get(match[1], ""), legend)


class Prometheus:
    """A running Prometheus.

    Args:
        url: As http://127.0.0.1:9090.
    """

    def __init__(self, url: str) -> None:
        self._url = url.rstrip("/")

    def ask(self, path: str, **parameters: str) -> Any:
        """Return `data` of an answer of the HTTP API.

        Args:
            path: Below /api/v1/.
            parameters: Of the query.

        Raises:
            OSError: Nobody answers.
            ValueError: It says what is wrong with the query.
        """
        question = urllib.parse.urlencode(parameters)
        try:
            with urllib.request.urlopen(f"{self._url}/api/v1/{path}?{question}", timeout=_TIMEOUT_SECONDS) as answer:
                return json.load(answer)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{path} {parameters}: {error.read().decode(errors='replace')}") from error

    def scrape_seconds(self) -> float:
        """Return the time from one scrape to the next, of the target that is scraped least often.

        Raises:
            ValueError: It scrapes nothing.
        """
        intervals = [target["scrapeInterval"] for target in self.ask("targets", state="active")["activeTargets"]]
        if not intervals:
            raise ValueError(f"{self._url} scrapes nothing")
        return max(read_seconds(each) for each in intervals)

    def window(self, end: float, seconds: float, num_points: int) -> Window:
        """Return the `seconds` before `end`, in at most about `num_points` steps, none shorter than a scrape."""
        scrape_seconds = self.scrape_seconds()
        step_seconds = max(scrape_seconds, seconds / num_points)
        return Window(start=end - seconds, end=end, step_seconds=step_seconds, scrape_seconds=scrape_seconds)

    def run(self, query: PanelQuery, window: Window) -> list[Series]:
        """Return what a panel's query gives, in one value at the window's end where it is an instant one."""
        expr = window.expand(query.expr)
        if query.instant:
            found = self.ask("query", query=expr, time=f"{window.end:.3f}")["result"]
            return [_series(each["metric"], [each["value"]]) for each in found]
        found = self.ask(
            "query_range",
            query=expr,
            start=f"{window.start:.3f}",
            end=f"{window.end:.3f}",
            step=f"{window.step_seconds:g}",
        )["result"]
        return [_series(each["metric"], each["values"]) for each in found]


def _series(labels: dict[str, str], points: list[tuple[float, str]]) -> Series:
    times = np.array([time for time, _ in points], dtype=np.float64)
    return Series(labels=labels, times=times, values=np.array([float(value) for _, value in points]))


def read_seconds(text: str) -> float:
    """Return a duration as Prometheus writes it: 5s, 1m30s, 500ms."""
    return sum(float(number) * _UNIT_SECONDS[unit] for number, unit in re.findall(r"(\d+)(ms|s|m|h)", text))
