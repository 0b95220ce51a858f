"""`python -m deploy.ray serve`: what it refuses before Ray is started."""

from __future__ import annotations

from pathlib import Path

import click
import pytest

from deploy.ray.__main__ import cli


def complaint(*words: str | Path) -> str:
    with pytest.raises(click.ClickException) as caught:
        cli.main(["serve", *map(str, words)], standalone_mode=False)
    return caught.value.format_message()


@pytest.mark.parametrize("count", ["0", "0:2", "3:2"])
def test_there_is_at_least_one_replica_and_no_more_than_the_most(count: str) -> None:
    assert "1 <= MIN <= MAX" in complaint("--replicas", count)


@pytest.mark.parametrize("count", ["", ":", "two", "1:", "1:2:3", "-1"])
def test_replicas_are_one_number_or_two(count: str) -> None:
    assert "MIN:MAX, for example 1:4" in complaint("--replicas", count)


def test_a_replica_on_cuda_wants_a_gpu_of_rays() -> None:
    assert "--gpus-per-replica" in complaint("--device", "cuda")


def test_a_token_wants_the_word_that_its_way_is_in_the_clear(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret\n")
    assert "--allow-plaintext-token" in complaint("--auth-token-file", tmp_path / "token")
