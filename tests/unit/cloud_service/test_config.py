from __future__ import annotations

from pathlib import Path

import pytest

from cloud_service.config import ServerConfig, Timings
from wire.serving.address import Address
from wire.serving.tls import TlsFiles
from wire.tokens import TokenFile


@pytest.mark.parametrize("text", ["127.0.0.1:50051", "[::1]:0", "cloud.example:65535"])
def test_an_address_is_written_as_it_was_read(text: str) -> None:
    assert str(Address.parse(text)) == text


@pytest.mark.parametrize("text", ["", "localhost", ":80", "host:", "host:port", "host:-1", "host:65536"])
def test_what_is_no_address_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match=r"HOST:PORT|65535"):
        Address.parse(text)


@pytest.mark.parametrize(
    ("host", "loopback"),
    [("127.0.0.1", True), ("::1", True), ("localhost", True), ("0.0.0.0", False), ("10.0.0.1", False), ("host", False)],
)
def test_loopback_is_what_only_this_machine_reaches(host: str, loopback: bool) -> None:
    assert Address(host=host, port=1).loopback is loopback


def config(**fields: object) -> ServerConfig:
    address = Address(host="127.0.0.1", port=0)
    return ServerConfig(**({"model": "m", "listen": address, "metrics_listen": address} | fields))


def test_a_token_needs_tls_or_loopback_or_consent(tmp_path: Path) -> None:
    (tmp_path / "token").write_text("secret")
    tokens = TokenFile(tmp_path / "token")
    everywhere = Address(host="0.0.0.0", port=0)
    with pytest.raises(ValueError, match="in the clear"):
        config(tokens=tokens, listen=everywhere)
    config(tokens=tokens)
    config(tokens=tokens, listen=everywhere, allow_plaintext_token=True)
    config(tokens=tokens, listen=everywhere, tls=TlsFiles(cert=Path("c"), key=Path("k")))


@pytest.mark.parametrize("fields", [{"max_batch": 0}, {"max_sessions": 0}, {"grace_seconds": -1.0}])
def test_a_config_that_makes_no_sense_is_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match="must"):
        config(**fields)


@pytest.mark.parametrize("fields", [{"open_seconds": 0.0}, {"write_seconds": float("inf")}, {"stuck_steps": -1}])
def test_timings_that_would_wait_for_ever_or_not_at_all_are_refused(fields: dict) -> None:
    with pytest.raises(ValueError, match="positive and finite"):
        Timings(**fields)
