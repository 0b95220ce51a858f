"""Reading Prometheus text as a scraper does."""

from __future__ import annotations

import math
import shutil
import subprocess
import urllib.request

import pytest
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample


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
        """Return one sample's value, the sum of all replicas' where none is named; 0 where there is no such series."""

        def asked(sample: Sample) -> dict[str, str]:
            return {label: value for label, value in sample.labels.items() if label != "replica" or label in labels}

        return float(sum(each.value for each in self._samples if each.name == name and asked(each) == labels))

    def labelled(self, name: str) -> list[tuple[dict[str, str], float]]:
        """Return every sample of one name."""
        return [(sample.labels, sample.value) for sample in self._samples if sample.name == name]

    def smallest_full_bucket(self, name: str) -> dict[tuple[str, ...], float]:
        """Return, for each set of labels of a histogram that has samples, the bucket that holds all of them."""
        found: dict[tuple[str, ...], float] = {}
        counts = {self._key(sample): sample.value for sample in self._samples if sample.name == f"{name}_count"}
        for sample in self._samples:
            key = self._key(sample)
            if sample.name == f"{name}_bucket" and counts[key] and sample.value == counts[key]:
                found[key] = min(found.get(key, math.inf), float(sample.labels["le"]))
        assert found, f"{name} has no sample"
        return found

    @staticmethod
    def _key(sample: Sample) -> tuple[str, ...]:
        return tuple(f"{label}={value}" for label, value in sorted(sample.labels.items()) if label != "le")

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
