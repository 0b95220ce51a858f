"""What may stand in --cloud, and what it stands for."""

from __future__ import annotations

import asyncio

import pytest

from harness.names import Names
from wire.errors import NotServing
from wire.resolver import Targets
from wire.targets import Endpoint, address_of, is_name, parse_targets

NAME = "clouds.test:50051"


def addresses(endpoints: tuple[Endpoint, ...]) -> list[str]:
    return [each.address for each in endpoints]


def test_targets_are_read_in_order() -> None:
    assert parse_targets("a:1, [::1]:2,dns:///c.d:3") == ("a:1", "[::1]:2", "dns:///c.d:3")
    assert [is_name(target) for target in ("a:1", "dns:///c.d:3")] == [False, True]
    assert [address_of(target) for target in ("a:1", "dns:///[::1]:3")] == ["a:1", "[::1]:3"]


@pytest.mark.parametrize(
    "text",
    [
        *("", "host", "host:", ":80", "host:0", "host:99999", "a:1,,b:2", "::1:50051", "[::1:50051", "a b:1"),
        *("dns:host:1", "dns://host:1", "dns://127.0.0.1:53/host:1", "dns:///host", "dns:///", "ipv4:127.0.0.1:1"),
    ],
)
def test_what_names_no_service_is_refused_with_what_does(text: str) -> None:
    with pytest.raises(ValueError, match=r"--cloud must be HOST:PORT, .* or dns:///HOST:PORT, not"):
        parse_targets(text)


async def test_a_name_of_this_machine_stands_for_its_loopback_addresses() -> None:
    found = await Targets(("dns:///localhost:50051",)).endpoints()
    assert "127.0.0.1:50051" in addresses(found)
    assert set(addresses(found)) <= {"127.0.0.1:50051", "[::1]:50051"}
    assert {each.name for each in found} == {"localhost:50051"}


async def test_each_address_of_a_name_is_one_service_and_targets_keep_their_order(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Names(monkeypatch, clouds_test=["127.0.0.2", "127.0.0.3", "127.0.0.2"])
    found = await Targets(("a:1", f"dns:///{NAME}", "127.0.0.3:50051", "b:2")).endpoints()
    assert found[0] == Endpoint(address="a:1")
    assert set(found[1:3]) == {Endpoint(address=f"127.0.0.{last}:50051", name=NAME) for last in (2, 3)}
    assert found[3:] == (Endpoint(address="b:2"),)


async def test_clients_of_a_name_spread_over_its_addresses_within_the_family_that_comes_first(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Names(monkeypatch, clouds_test=["2001:db8::1", "2001:db8::2", "192.0.2.1", "192.0.2.2"])
    targets = Targets((f"dns:///{NAME}",))
    orders = {tuple(addresses(await targets.endpoints())) for _ in range(100)}
    assert len(orders) == 4
    assert {order[:2] for order in orders} == {
        ("[2001:db8::1]:50051", "[2001:db8::2]:50051"),
        ("[2001:db8::2]:50051", "[2001:db8::1]:50051"),
    }


async def test_a_name_is_asked_for_anew_and_without_an_answer_stands_for_what_it_did(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    names = Names(monkeypatch, clouds_test=["127.0.0.2"])
    targets = Targets((f"dns:///{NAME}",))
    assert addresses(await targets.endpoints()) == ["127.0.0.2:50051"]
    assert targets.problems == ()
    names.addresses["clouds.test"] = ["127.0.0.3"]
    assert addresses(await targets.endpoints()) == ["127.0.0.3:50051"]
    names.addresses["clouds.test"] = []
    assert addresses(await targets.endpoints()) == ["127.0.0.3:50051"]
    (problem,) = targets.problems
    assert "dns:///clouds.test:50051 has no address" in problem
    assert "Name or service not known" in problem


async def test_a_name_that_never_had_an_address_is_told_and_costs_no_other_target(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Names(monkeypatch, clouds_test=[])
    targets = Targets((f"dns:///{NAME}", "a:1"))
    assert addresses(await targets.endpoints()) == ["a:1"]
    assert len(targets.problems) == 1
    with pytest.raises(NotServing, match=r"dns:///clouds\.test:50051 has no address"):
        await Targets((f"dns:///{NAME}",)).endpoints()


async def test_a_dead_resolver_is_asked_once_for_a_name_and_takes_no_thread_from_others(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("wire.resolver.RESOLVE_SECONDS", 0.1)
    names = Names(monkeypatch, clouds_test=["127.0.0.2"])
    names.answers.clear()
    try:
        targets = Targets((f"dns:///{NAME}",))
        for _ in range(2):
            answers = await asyncio.gather(*(targets.endpoints() for _ in range(50)), return_exceptions=True)
            assert {type(each) for each in answers} == {NotServing}
            assert "no answer within 0.1 s" in str(answers[0])
        assert names.num_asked == 1
        assert await asyncio.wait_for(asyncio.to_thread(lambda: "decoded"), 10) == "decoded"
    finally:
        names.answers.set()
    monkeypatch.setattr("wire.resolver.RESOLVE_SECONDS", 60.0)
    assert addresses(await targets.endpoints()) == ["127.0.0.2:50051"]
