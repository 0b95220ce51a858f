from __future__ import annotations

import pytest

from bench.capacity.simulation import Times, Work, closed_loop, fleet
from bench.network import Link

# A pass takes a second and a tenth for each session in it.
TIMES = Times(
    pass_seconds=lambda batch_size: 1.0 + 0.1 * batch_size,
    extrapolated_seconds=0.01,
    encode_prompt_seconds=0.5,
    edge_step_seconds=0.2,
    decode_seconds=0.3,
)


def test_one_session_alone_takes_the_sum_of_its_parts() -> None:
    device, seen, _ = closed_loop(Work(sources="CCxxCee"), TIMES, num_sessions=1, seconds=100.0, max_batch=4)
    expected = 0.5 + 3 * 1.1 + 2 * 0.01 + 2 * 0.2 + 0.3
    assert [took for _, took in seen.finished] == pytest.approx([expected] * len(seen.finished))
    assert len(seen.finished) == int(100.0 / expected)
    assert device.evaluations in (3 * len(seen.finished) + extra for extra in range(4))


def test_many_sessions_fill_the_batches() -> None:
    device, _, seconds = closed_loop(Work(sources="C" * 50), TIMES, num_sessions=8, seconds=2000.0, max_batch=4)
    assert device.evaluations / seconds == pytest.approx(4 / 1.4, rel=0.1)
    assert device.busy_seconds / seconds == pytest.approx(1.0, rel=0.01)


def test_a_correction_costs_the_edge_the_longer_of_the_round_trip_and_its_own_evaluation() -> None:
    link = Link(latency_ms=100)
    work = Work(sources="Cee", correction_steps=(1,))
    _, seen = fleet(
        work,
        TIMES,
        num_devices=1,
        pictures_per_second=0.001,
        links=[link],
        latents_bytes=0,
        seconds=10_000.0,
        max_batch=4,
        seed=1,
    )
    # Open, encode, step, way back; correction there, evaluated, back; one edge step; decode.
    expected = 0.1 + 0.5 + 1.1 + 0.1 + (0.1 + 1.1 + 0.1) + 0.2 + 0.3
    assert [took for _, took in seen.finished] == pytest.approx([expected] * len(seen.finished))
    assert seen.finished


def test_more_devices_wait_less() -> None:
    waits = []
    for num_devices in (3, 6):
        devices, seen = fleet(
            Work(sources="CCCCC"),
            TIMES,
            num_devices=num_devices,
            pictures_per_second=1.2,
            links=[Link()],
            latents_bytes=0,
            seconds=500.0,
            max_batch=4,
            seed=2,
        )
        assert all(device.busy_seconds <= 502.0 for device in devices)
        waits.append(sum(took for _, took in seen.finished) / len(seen.finished))
    assert waits[1] < waits[0]
