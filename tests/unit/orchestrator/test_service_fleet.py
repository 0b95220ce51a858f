"""Which replica an edge should try first, and what a generation there costs."""

from __future__ import annotations

from dataclasses import replace

import pytest
from fleet_samples import CLOUD, EDGE_COSTS, ELEMENTS, NOW, A, B, C, description, fleet_of

from orchestrator.service.estimates import ReplicaEstimates
from orchestrator.service.fleet import Fleet
from wire.convert.checks import MAX_SECONDS
from wire.convert.fleet import decode_replicas, encode_replicas
from wire.fleet_messages import KnownCosts, SessionReport
from wire.messages import Load
from wire.targets import Endpoint


def fleet(**descriptions: dict[str, object]) -> Fleet:
    """Return a fleet of a, b, c, of which those with facts are up."""
    made = fleet_of(A, B, C)
    for name, facts in descriptions.items():
        made.saw(f"{name}:50051", description(**facts))  # type: ignore[arg-type]
    return made


def order(of: Fleet, is_pair: str = CLOUD) -> list[str]:
    return [each.address for each in of.in_order(NOW, lambda fingerprint: fingerprint == is_pair)]


def test_replicas_that_serve_come_before_those_that_do_not() -> None:
    assert order(fleet(b={}, c={})) == [B, C, A]


def test_the_shorter_queue_comes_first() -> None:
    assert order(fleet(a={"queue": 3}, b={"queue": 1}, c={"queue": 2}))[0] == B


def test_the_faster_device_comes_first() -> None:
    assert order(fleet(a={"step_seconds": 0.2}, b={"step_seconds": 0.3}, c={"step_seconds": 0.1})) == [C, A, B]


def test_a_full_replica_comes_after_one_with_a_place_however_slow() -> None:
    assert order(fleet(a={"sessions": 4}, b={"step_seconds": 50.0})) == [B, A, C]


def test_a_pair_with_a_searched_plan_comes_first() -> None:
    assert order(fleet(a={"fingerprint": "other"}, b={"step_seconds": 0.5}))[:2] == [B, A]


def test_edges_that_ask_at_once_are_spread() -> None:
    many = fleet(a={}, b={}, c={})
    assert {order(many)[0] for _ in range(3)} == {A, B, C}
    # When loads are told again, they count.
    many.saw(A, description())
    assert order(many)[0] == A


def test_a_flood_of_questions_fills_a_replicas_places_and_no_more() -> None:
    some = fleet(a={})
    for _ in range(1000):
        listed = some.in_order(NOW, lambda fingerprint: True)
    assert some.states[A].assigned == 4
    assert listed[0].wait_seconds == some.replica(A, NOW).wait_seconds == pytest.approx(10 * (4 + 1) * 0.1)


@pytest.mark.parametrize("facts", [{"step_seconds": MAX_SECONDS}, {"queue": 2**32 - 1}])
def test_a_replica_that_says_something_odd_does_not_cost_edges_the_others(facts: dict[str, object]) -> None:
    listed = fleet(a=facts, b={}).in_order(NOW, lambda fingerprint: True)
    assert [each.address for each in decode_replicas(encode_replicas(listed))] == [B, A, C]
    assert listed[1].wait_seconds == MAX_SECONDS


def test_an_edge_that_says_something_odd_does_not_cost_the_others_the_list() -> None:
    some = fleet(a={"step_seconds": 0.0}, b={})
    some.learn(report(cloud_step_seconds=100.0, latents_elements=1), NOW)
    assert some.replica(A, NOW).step_seconds == MAX_SECONDS
    assert len(decode_replicas(encode_replicas(some.in_order(NOW, lambda fingerprint: True)))) == 3


def test_a_replica_that_is_down_has_no_load() -> None:
    some = fleet(a={"sessions": 3, "queue": 2})
    some.lost(A, "gone")
    seen = some.replica(A, NOW)
    assert (seen.load, seen.max_sessions) == (Load(), 4)
    assert seen.step_seconds == pytest.approx(0.1), "its device is still the same"


def test_a_replica_that_dies_is_still_named_last_with_what_was_known_of_it() -> None:
    some = fleet(a={}, b={})
    some.lost(A, "gone")
    listed = some.in_order(NOW, lambda fingerprint: True)
    assert [each.address for each in listed] == [B, A, C]
    assert not listed[1].is_up
    assert listed[1].model is not None
    assert listed[2].model is None


def report(**facts: object) -> SessionReport:
    base = SessionReport(
        mode="cloud", outcome="done", replica=A, cloud_step_seconds=0.3, rtt_seconds=0.05, latents_elements=ELEMENTS
    )
    return replace(base, **facts)  # type: ignore[arg-type]


def test_a_report_of_an_unknown_cloud_teaches_nothing_and_makes_no_replica() -> None:
    some = fleet(a={})
    some.learn(report(replica="evil:1"), NOW)
    assert set(some.states) == set(some.estimates) == {A, B, C}


def test_what_was_learned_is_kept_while_a_name_has_no_answer_and_no_longer() -> None:
    some = Fleet({each: ReplicaEstimates(CLOUD, num_reports=3) for each in (A, B, C)})
    some.become([Endpoint(address=A)], are_all=False)
    assert set(some.estimates) == {A}
    assert set(some.remembered) == {A, B, C}
    some.become([Endpoint(address=A), Endpoint(address=B)], are_all=False)
    assert some.estimates[B].num_reports == 3
    some.become([Endpoint(address=A)])
    assert set(some.remembered) == {A}


def test_another_model_at_an_address_is_another_replica() -> None:
    some = fleet(a={})
    for _ in range(3):
        some.learn(report(), NOW)
    assert some.replica(A, NOW).step_seconds == pytest.approx(0.3)
    some.saw(A, description())
    assert some.replica(A, NOW).num_reports == 3
    some.saw(A, description(fingerprint="other"))
    assert some.replica(A, NOW).step_seconds == pytest.approx(0.1)
    assert some.replica(A, NOW).num_reports == 0


def test_costs_are_the_edges_where_it_measured_and_the_fleets_elsewhere() -> None:
    some = fleet(a={"queue": 2})
    for _ in range(3):
        some.learn(report(cloud_queue_seconds=None, bandwidth_bytes_per_second=1e6), NOW)
    costs = some.costs(EDGE_COSTS, A, ELEMENTS, NOW)
    assert costs is not None
    assert costs.cloud_step_seconds == pytest.approx(0.3)
    assert costs.cloud_queue_seconds == pytest.approx(0.6)
    assert (costs.rtt_seconds, costs.bandwidth_bytes_per_second) == (0.05, 1e6)
    assert costs.edge_step_seconds == EDGE_COSTS.edge_step_seconds
    own = replace(EDGE_COSTS, rtt_seconds=0.5, cloud_step_seconds=0.7, cloud_queue_seconds=0.0)
    measured = some.costs(own, A, ELEMENTS, NOW)
    assert measured is not None
    assert (measured.rtt_seconds, measured.cloud_step_seconds, measured.cloud_queue_seconds) == (0.5, 0.7, 0.0)


def test_costs_are_none_where_nobody_knows_something() -> None:
    some = fleet(a={})
    assert some.costs(EDGE_COSTS, A, ELEMENTS, NOW) is None, "nobody has reported a round trip"
    assert some.costs(EDGE_COSTS, "elsewhere:1", ELEMENTS, NOW) is None
    nothing = KnownCosts(latents_bytes=4096, rtt_seconds=0.1)
    assert some.costs(nothing, A, ELEMENTS, NOW) is None, "the edge does not know its own step"
    assert some.costs(replace(EDGE_COSTS, rtt_seconds=0.1), A, ELEMENTS, NOW) is not None
