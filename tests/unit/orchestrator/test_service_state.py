"""The estimates on disk: whole or set aside."""

from __future__ import annotations

import contextlib
import json
import logging
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from orchestrator.service.estimates import ReplicaEstimates
from orchestrator.service.state import FILE_NAME, StateFile, format_estimates, parse_estimates
from wire.fleet_messages import SessionReport

NOW = 1_000_000.0
REPORT = SessionReport(
    mode="cloud", outcome="done", total_seconds=2.0, predicted_seconds=1.0, rtt_seconds=0.1, latents_elements=10
)


def some_estimates() -> dict[str, ReplicaEstimates]:
    estimates = ReplicaEstimates("abc")
    estimates.learn(REPORT, NOW, told_step_per_element=0.0)
    return {"a:1": estimates, "b:2": ReplicaEstimates()}


def test_estimates_outlive_the_process(tmp_path: Path) -> None:
    StateFile(tmp_path / "state").save(some_estimates())
    loaded = StateFile(tmp_path / "state").load(NOW)
    assert {name: each.as_json() for name, each in loaded.items()} == {
        name: each.as_json() for name, each in some_estimates().items()
    }
    assert [path.name for path in (tmp_path / "state").iterdir()] == [FILE_NAME]


def test_a_first_start_knows_nothing(tmp_path: Path) -> None:
    assert StateFile(tmp_path).load(NOW) == {}


def test_what_has_not_changed_is_not_written_again(tmp_path: Path) -> None:
    file = StateFile(tmp_path)
    file.save(some_estimates())
    file.path.unlink()
    file.save(some_estimates())
    assert not file.path.exists()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"{",
        b"\xff",
        b"null",
        b"[" * 100_000,
        b'{"format": "ecdiff-estimates-0", "replicas": {}}',
        b'{"format": "ecdiff-estimates-1"}',
        b'{"format": "ecdiff-estimates-1", "replicas": {"a:1": {}}}',
        # A float cannot hold it.
        format_estimates(some_estimates()).replace("0.1", "1" + "0" * 400).encode(),
    ],
)
def test_a_damaged_file_is_set_aside_and_told(content: bytes, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = StateFile(tmp_path)
    file.path.write_bytes(content)
    assert file.load(NOW) == {}
    assert [record.levelname for record in caplog.records] == ["ERROR"]
    assert (tmp_path / f"{FILE_NAME}.damaged").read_bytes() == content
    file.save(some_estimates())
    assert set(file.load(NOW)) == {"a:1", "b:2"}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("fingerprint", 7),
        ("fingerprint", "x" * 1000),
        ("num_reports", -1),
        ("num_reports", True),
        ("num_reports", 1.5),
        ("rtt_seconds", {}),
        ("rtt_seconds", [[0.1]]),
        ("rtt_seconds", [[0.1, "now"]]),
        ("rtt_seconds", [[-0.1, 1.0]]),
        ("rtt_seconds", [[float("nan"), 1.0]]),
        ("rtt_seconds", [[0.1, float("inf")]]),
        ("rtt_seconds", [[0.1, 1.0]] * 1000),
    ],
)
def test_no_value_that_could_not_have_been_saved_is_taken(name: str, value: object) -> None:
    content = json.loads(format_estimates(some_estimates()))
    content["replicas"]["a:1"][name] = value
    with pytest.raises(ValueError, match="a:1"):
        parse_estimates(json.dumps(content), NOW)


def test_samples_from_the_future_count_as_of_now() -> None:
    loaded = parse_estimates(format_estimates(some_estimates()), NOW - 500)
    assert loaded["a:1"].as_json()["rtt_seconds"] == [(0.1, NOW - 500)]


@given(
    st.recursive(
        st.none() | st.booleans() | st.floats() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)
    )
)
def test_any_json_is_estimates_or_a_value_error(content: object) -> None:
    text = json.dumps({"format": "ecdiff-estimates-1", "replicas": content})
    with contextlib.suppress(ValueError):
        parse_estimates(text, NOW)


@pytest.mark.skipif(os.geteuid() == 0, reason="root writes everywhere")
def test_a_folder_that_cannot_be_written_to_is_found_out_at_the_start(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(OSError, match="Permission denied"):
        StateFile(tmp_path)


def test_a_file_in_the_place_of_the_folder_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "state").write_text("")
    with pytest.raises(OSError, match=r"cannot be kept in .* exists"):
        StateFile(tmp_path / "state")


@pytest.fixture(autouse=True)
def _all_logs(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="orchestrator")
