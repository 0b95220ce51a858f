"""Generations on every link, each predicted and then run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from rich.console import Console

from bench.cloud import cloud_service
from bench.network import network_process
from edge_client import EdgeClient
from edge_client.report import Report
from edge_client.request import GenerationRequest
from models import read_prompts
from orchestrator.plan import PlanOptions


@dataclass(frozen=True)
class Variant:
    """A mode with options; with a deadline where one is given, as a share of what mode cloud takes on that link."""

    name: str
    mode: str
    options: dict[str, Any] = field(default_factory=dict)
    deadline_ratio: float | None = None


CLOUD = Variant("cloud", "cloud")
VARIANTS = (
    CLOUD,
    Variant("edge", "edge"),
    Variant("split", "split"),
    Variant("ecdiff", "ecdiff"),
    Variant("adaptive", "adaptive"),
    # Of the bundled plans these have the edge in them: shadow, agreement and corrections; without the first two; with
    # all but agreement.
    Variant("adaptive, error 0.017", "adaptive", {"tolerance": 0.017}),
    Variant("adaptive, no shadow", "adaptive", {"tolerance": 0.017, "shadow": False}),
    Variant("adaptive, handoff at 30", "adaptive", {"tolerance": 0.017, "handoff_step": 30}),
    *(Variant(f"deadline {ratio:g} of cloud", "adaptive", deadline_ratio=ratio) for ratio in (0.25, 0.4, 0.6, 0.9)),
)


@dataclass(frozen=True, kw_only=True)
class Run:
    """One generation, predicted and measured; seconds by their names in the report.

    Attributes:
        deadline_seconds: None without one.
        predicted_seconds: From the prompt to the picture.
        measured_seconds: The same, without the first contact.
        parts_predicted: What that is made of; empty with a deadline.
        parts_measured: Of the report.
        cloud_calls: Evaluations in the cloud, corrections included.
        handoff_step: Where the edge took over.
    """

    link: str
    variant: str
    prompt: str
    deadline_seconds: float | None
    predicted_seconds: float
    measured_seconds: float
    parts_predicted: dict[str, float]
    parts_measured: dict[str, float]
    cloud_calls: int
    handoff_step: int

    @property
    def error_ratio(self) -> float:
        """|predicted - measured| / measured."""
        return abs(self.predicted_seconds - self.measured_seconds) / self.measured_seconds


async def measure(links: Sequence[str], repeats: int) -> list[Run]:
    """Return every run, in the order of the links."""
    runs: list[Run] = []
    prompts = read_prompts("report")
    console = Console(stderr=True)
    async with cloud_service(device="cpu") as address:
        for link in links:
            with network_process(address, link) as network:
                async with EdgeClient(cloud=network.address, silence_seconds=60) as client:
                    # Both models have drawn something, and the cost model knows how fast, before anything counts.
                    await client.generate(prompts[-1], mode="ecdiff")
                    for repeat in range(repeats):
                        console.print(f"{link}: round {repeat + 1} of {repeats}", highlight=False)
                        start = repeat % len(VARIANTS)
                        for variant in (*VARIANTS[start:], *VARIANTS[:start]):
                            runs.append(await _run(client, link, variant, prompts[repeat], seed=repeat))
    return runs


async def _run(client: EdgeClient, link: str, variant: Variant, prompt: str, *, seed: int) -> Run:
    def request(variant: Variant, deadline_ms: float | None = None) -> GenerationRequest:
        options = PlanOptions(**variant.options, deadline_ms=deadline_ms)
        return GenerationRequest(prompt=prompt, mode=variant.mode, seed=seed, plan_options=options)

    deadline_seconds = None
    if variant.deadline_ratio is not None:
        in_cloud = await client.predict(request(CLOUD))
        deadline_seconds = variant.deadline_ratio * in_cloud.total_seconds
        report = (await client.run(request(variant, 1000 * deadline_seconds))).report
        predicted_seconds, parts = report["deadline"]["predicted_milliseconds"] / 1000, {}
    else:
        estimate = await client.predict(request(variant))
        report = (await client.run(request(variant))).report
        predicted_seconds, parts = estimate.total_seconds, estimate.parts
    _check(report)
    return Run(
        link=link,
        variant=variant.name,
        prompt=prompt,
        deadline_seconds=deadline_seconds,
        predicted_seconds=predicted_seconds,
        measured_seconds=report["seconds"]["total"] - report["seconds"]["connect"],
        parts_predicted=parts,
        parts_measured=report["seconds"],
        cloud_calls=report["nfe"]["cloud"] + report["nfe"]["corrections"],
        handoff_step=report["handoff_step"],
    )


def _check(report: Report) -> None:
    reason = (report["handoff"] or {}).get("reason", "")
    if reason.startswith("cloud_"):
        raise SystemExit(f"error: a run lost its cloud ({reason}); the figures would mean nothing")
