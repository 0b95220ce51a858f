from __future__ import annotations

import pytest

from cloud_service.clients import Reading, client_of


class Call:
    """What gRPC says of a call's other end."""

    def __init__(self, peer: str, name: bytes | None = None) -> None:
        self._peer, self._name = peer, name

    def peer(self) -> str:
        return self._peer

    def auth_context(self) -> dict[str, list[bytes]]:
        proven = {"transport_security_type": [b"ssl"]}
        return proven if self._name is None else {**proven, "x509_common_name": [self._name]}


@pytest.mark.parametrize(
    ("call", "client"),
    [
        (Call("ipv4:192.0.2.7:50321"), "host 192.0.2.7"),
        (Call("ipv6:%5B2001:db8::1%5D:50321"), "host 2001:db8::/64"),
        (Call("ipv6:[2001:db8::abcd:1]:50322"), "host 2001:db8::/64"),
        (Call("ipv6:%5B2001:db8:0:1::1%5D:50321"), "host 2001:db8:0:1::/64"),
        (Call("ipv6:%5Bfe80::1%25eth0%5D:50321"), "host fe80::/64"),
        (Call("unix:"), "host unix"),
        (Call("ipv4:192.0.2.7:50321", b"kitchen"), "name kitchen"),
    ],
)
def test_a_client_is_its_certificates_name_or_its_host_or_network(call: Call, client: str) -> None:
    assert client_of(call) == client


def test_one_that_sends_too_fast_waits_and_no_other_does() -> None:
    reading = Reading(0.8)  # 100,000 bytes a second
    assert reading.take("quick", 100_000) == 0  # its burst
    assert 0.25 < reading.take("quick", 30_000) <= 0.3
    assert reading.take("other", 50_000) == 0


def test_without_a_rate_nobody_waits() -> None:
    reading = Reading(None)
    assert {reading.take("quick", 10**9) for _ in range(100)} == {0}


def test_clients_that_went_away_are_not_remembered_for_ever() -> None:
    reading = Reading(1000.0)
    for number in range(20_000):
        reading.take(f"host {number}", 1)
    assert len(reading._paid_until) <= 4096
