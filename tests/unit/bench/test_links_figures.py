"""What bench.links makes of its runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from bench.links import figures, show
from bench.links.runs import Run, Stream
from edge_client.recorder import SECONDS

NARROW = figures.NARROW


def run_of(variant: str, total: float, *, link: str = NARROW, num_images: int = 1, **ages: float) -> Run:
    seconds = dict.fromkeys(SECONDS, 0.0) | {
        "connect": 0.25,
        "cloud_compute": 0.5,
        "encode_prompt": 0.1,
        "total": total,
    }
    known = dict.fromkeys(figures.DECISIONS) | ages
    report = {"mode": variant, "seconds": seconds, "network": {"latents_age_seconds": known}}
    return Run(link=link, variant=variant, num_images=num_images, report=report)


def stream_of(*ages: float, with_credits: bool) -> Stream:
    return Stream(
        link=NARROW,
        size="8 KiB",
        with_credits=with_credits,
        ages_seconds=ages,
        last_age_seconds=ages[-1],
        ping_seconds=(0.15, ages[-1]),
        rtt_seconds=0.15,
        step_seconds=0.05,
    )


RUNS = [
    run_of("cloud", 3.0),
    run_of("ecdiff", 1.0, handoff=0.1),
    run_of("cloud", 5.0),
    run_of("ecdiff", 3.0, handoff=0.2),
]


def test_parts_add_up_to_the_mean_total_and_are_compared_with_cloud() -> None:
    cloud, ecdiff = figures.splits(RUNS)
    assert (cloud.variant, cloud.total_seconds, cloud.faster) == ("cloud", 4.0, 1.0)
    assert (ecdiff.variant, ecdiff.total_seconds, ecdiff.faster) == ("ecdiff", 2.0, 2.0)
    assert ecdiff.totals_seconds == (1.0, 3.0)
    for each in (cloud, ecdiff):
        assert set(each.parts) == set(figures.PARTS)
        assert sum(each.parts.values()) == pytest.approx(each.total_seconds)
        # The edge's text encoder ran beside the cloud.
        assert (each.parts["connect"], each.parts["encode_prompt"]) == (0.25, 0.0)


def test_larger_tensors_are_no_part_of_the_splits() -> None:
    assert figures.splits([*RUNS, run_of("ecdiff", 100.0, num_images=8)]) == figures.splits(RUNS)


def test_the_oldest_answer_counts_and_what_was_not_decided_has_no_line() -> None:
    (found,) = figures.decision_ages(RUNS)
    assert (found.variant, found.decision, found.num_runs) == ("ecdiff", "handoff", 2)
    assert found.age_seconds == 0.2
    assert found.round_trips == pytest.approx(0.2 / 0.15)


def test_the_bar_is_two_round_trips_on_the_narrow_link_with_one_picture() -> None:
    ages = figures.decision_ages(
        [
            run_of("adaptive", 2.0, agreement=0.31, handoff=0.29),
            run_of("adaptive", 2.0, agreement=1.0, num_images=8),
            run_of("adaptive", 2.0, agreement=1.0, link="dsl"),
        ]
    )
    assert [(each.decision, each.age_seconds) for each in figures.too_old(ages, NARROW)] == [("agreement", 0.31)]


def test_freshness_is_of_all_sessions_with_the_same_credits() -> None:
    streams = [
        stream_of(0.1, 0.2, with_credits=True),
        stream_of(1.0, 4.0, with_credits=False),
        stream_of(0.1, 0.4, with_credits=True),
    ]
    gated, free = figures.freshness(streams)
    assert (gated.with_credits, gated.num_latents) == (True, 4)
    assert (gated.age_p50_seconds, gated.age_max_seconds) == (0.1, 0.4)
    assert gated.last_age_seconds == pytest.approx(0.3)
    assert (free.age_max_seconds, free.ping_max_seconds) == (4.0, 4.0)


def test_tables_and_plot_show_every_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    parts, ages = figures.splits(RUNS), figures.decision_ages(RUNS)
    fresh = figures.freshness([stream_of(0.1, 0.2, with_credits=True), stream_of(1.0, 4.0, with_credits=False)])
    show.print_splits(parts)
    show.print_freshness(fresh)
    show.print_ages(ages)
    show.draw(parts, fresh, ages, tmp_path / "links.png")
    printed = capsys.readouterr().out
    for words in ("2.00x", "no credits", "20.0x", "1.33"):
        assert words in printed
    assert (tmp_path / "links.png").stat().st_size > 10_000
