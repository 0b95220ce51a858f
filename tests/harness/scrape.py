"""Reading Prometheus text as a scraper does."""

from __future__ import annotations

import shutil
import subprocess
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families


class Scrape:
    """The samples of one exposition."""

    def __init__(self, text: str) -> None:
        self.text = text
        self._samples = [sample for family in text_string_to_metric_families(text) for sample in family.samples]

    @classmethod
    def of(cls, address: str) -> Scrape:
        """Fetch `/metrics`."""
        with urllib.request.urlopen(f"http://{address}/metrics", timeout=30) as answer:
            return cls(answer.read().decode())

    def value(self, name: str, **labels: str) -> float:
        """Return one sample's value; 0 where there is no such series."""
        values = [sample.value for sample in self._samples if sample.name == name and sample.labels == labels]
        return float(values[0]) if values else 0.0

    def names(self) -> set[str]:
        """Return the names of all samples."""
        return {sample.name for sample in self._samples}

    def label_values(self, name: str, label: str) -> set[str]:
        """Return the values that `label` has in the samples called `name`."""
        return {sample.labels[label] for sample in self._samples if sample.name == name}


def check_with_promtool(text: str) -> None:
    """Let Prometheus' own linter look at an exposition; skips where it is not installed."""
    promtool = shutil.which("promtool")
    if promtool is None:
        pytest.skip("promtool is not installed")
    checked = subprocess.run([promtool, "check", "metrics"], input=text, capture_output=True, text=True, timeout=60)
    assert checked.returncode == 0, checked.stdout + checked.stderr
