"""The token file: several at a time, renewed without a restart, shown first by who sends."""

from __future__ import annotations

import hmac
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from wire.credentials import Credentials
from wire.serving.token import TokenInterceptor
from wire.tokens import TokenFile


@pytest.fixture
def file(tmp_path: Path) -> Path:
    path = tmp_path / "token"
    path.write_text("old\n")
    return path


def test_every_line_is_a_token_and_the_first_is_sent(file: Path) -> None:
    file.write_text("\n  new  \r\n\nold")
    assert TokenFile(file).accepted() == ("new", "old")
    assert TokenFile(file).sent() == "new"


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is empty"),
        (" \n\n", "is empty"),
        ("good\ntwo words\n", "line 2 of the token file"),
        ("caf\u00e9", "line 1"),
        ("a\x00b", "line 1"),
    ],
)
def test_a_file_without_tokens_is_refused_and_never_shown(file: Path, text: str, why: str) -> None:
    file.write_text(text)
    with pytest.raises(ValueError, match=why) as caught:
        TokenFile(file)
    assert not any(word in str(caught.value) for word in ("good", "two", "caf", "a\x00b"))


def test_a_file_that_changes_is_read_again_and_a_bad_one_leaves_the_old_tokens(
    file: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO, logger="wire")
    tokens = TokenFile(file)
    file.write_text("new\nold\n")
    assert tokens.accepted() == ("new", "old")
    for bad in ("", "two words"):
        file.write_text(bad)
        for _ in range(3):
            assert tokens.accepted() == ("new", "old")
    file.unlink()
    assert tokens.accepted() == ("new", "old")
    (file.parent / "next").write_text("newest")
    (file.parent / "next").rename(file)
    assert tokens.accepted() == ("newest",)
    # Each once, however many calls come.
    assert [record.levelname for record in caplog.records] == ["INFO", "WARNING", "WARNING", "WARNING", "INFO"]
    assert not any(token in caplog.text for token in ("new\n", "newest", "two words"))


def test_the_same_complaint_after_things_were_well_is_told_again(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    tokens, elsewhere = TokenFile(file), file.with_name("elsewhere")
    for _ in range(2):
        file.rename(elsewhere)
        assert tokens.accepted() == tokens.accepted() == ("old",)
        elsewhere.rename(file)
        assert tokens.accepted() == ("old",)
    assert [record.levelname for record in caplog.records] == ["WARNING", "WARNING"]


def test_a_client_that_runs_for_long_sends_the_renewed_token(file: Path) -> None:
    credentials = Credentials(token_file=file)
    assert credentials.metadata("127.0.0.1:1") == (("authorization", "Bearer old"),)
    file.write_text("new\nold\n")
    assert credentials.metadata("127.0.0.1:1") == (("authorization", "Bearer new"),)


async def test_every_token_is_compared_in_constant_time_whichever_is_given(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file.write_text("first\nsecond\nthird\n")
    compared: list[bytes] = []
    in_constant_time = hmac.compare_digest

    def watched(given: bytes, expected: bytes) -> bool:
        compared.append(expected)
        return in_constant_time(given, expected)

    monkeypatch.setattr(hmac, "compare_digest", watched)
    refused: list[Exception] = []
    interceptor = TokenInterceptor(TokenFile(file), on_refused=refused.append)

    async def continuation(details: Any) -> None:
        return None

    for given, num_refused in (("first", 0), ("third", 0), ("wrong", 1)):
        compared.clear()
        details: Any = SimpleNamespace(method="/a/b", invocation_metadata=(("authorization", f"Bearer {given}"),))
        await interceptor.intercept_service(continuation, details)
        assert compared == [b"Bearer first", b"Bearer second", b"Bearer third"]
        assert len(refused) == num_refused
