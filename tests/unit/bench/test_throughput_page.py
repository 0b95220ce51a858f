"""Every figure of docs/throughput.md is one of the published results."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[3]
PAGE = (ROOT / "docs" / "throughput.md").read_text()
CALLS = {"cloud": 1.0, "ecdiff": 50 / 17}


def results(name: str) -> Any:
    return json.loads((ROOT / "bench" / "results" / f"{name}.json").read_text())


def assert_said(*phrases: str) -> None:
    assert [phrase for phrase in phrases if phrase not in PAGE] == []


def test_throughput() -> None:
    found = results("throughput")
    (alone,) = [row for row in found["rows"] if (row["mode"], row["num_sessions"]) == ("cloud", 1)]
    for row in found["rows"]:
        multiple = CALLS[row["mode"]] * row["relative_rate"] / alone["relative_rate"]
        assert_said(
            f"| `{row['mode']}` | {row['num_sessions']} | {row['mean_batch']:.1f} | {row['share_of_raw']:.2f} | "
            f"{multiple:.2f} | {row['seconds_p50']:.2f} | {row['seconds_p95']:.2f} |"
        )
    low, high = found["share_of_raw_interval"]
    assert_said(
        f"{found['share_of_raw']:.3f} ({low:.3f} to {high:.3f})",
        f"{found['multiple_of_one_at_a_time']:.2f} times the pictures",
        f"gain of {found['raw_batching_gain']:.2f} = {found['multiple_aim']:.2f}",
        f"{100 * found['sample_work']['share']:.1f} % of it",
        found["machine"]["command"],
    )


def test_capacity() -> None:
    found = results("capacity")
    most = found["rows"][0]["num_devices"]
    for row in found["rows"]:
        assert_said(
            f"| `{row['mode']}` | {row['evaluations_per_picture']} | {row['num_devices']} | "
            f"{row['num_devices'] / most:.2f} | {row['seconds_p50']:.2f} | {row['seconds_p95']:.2f} |"
        )
    assert_said(f"error of {100 * found['validation']['error']:.1f} %", f"{found['options']['num_edges']} edges")
