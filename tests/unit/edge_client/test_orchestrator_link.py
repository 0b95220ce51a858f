"""What an edge makes of its orchestrator's answers, whatever they are."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import pytest

from diffusion.loading import load_model
from diffusion.model import ModelInfo
from edge_client import orchestrator_link
from edge_client.cloud_link import CloudLink
from edge_client.orchestrator_link import NoAnswer, OrchestratorLink, check_answer, is_worth_moving
from orchestrator.client import CALL_SECONDS
from protos import ecdiff_v1_pb2, orchestrator_v1_pb2_grpc
from protos import orchestrator_v1_pb2 as pb
from wire.convert.fleet import encode_replicas
from wire.convert.plans import encode_plan_answer
from wire.credentials import Credentials
from wire.edge_plan import Agreement, EdgePlan
from wire.errors import IncompatibleModels, NotServing, ProtocolError, VersionMismatch
from wire.fleet_messages import KnownCosts, PlanAnswer, PlanQuery, Replica, SessionReport
from wire.messages import ModelDescription, Plan
from wire.targets import Endpoint

EDGE_MODEL = Path(__file__).parents[2] / "data" / "sd-tiny" / "edge"
QUERY = PlanQuery(
    cloud_fingerprint="c",
    edge_fingerprint="e",
    scheduler="ddim",
    num_inference_steps=4,
    guidance_scale=2.0,
    latents_elements=1024,
    costs=KnownCosts(latents_bytes=4096),
)
ANSWER = PlanAnswer(
    plan=Plan(num_inference_steps=4, handoff_step=3, refresh="listed", predictor="linear", real_steps=(0, 1)),
    edge_plan=EdgePlan(
        shadow=True,
        agreement=Agreement(disagreement=(0.1,) * 4, tail_error=(0.1,) * 5, tolerance=0.1),
    ),
    origin="ddim-4.json",
)
REPORT = SessionReport(mode="edge", outcome="done")

Method = Callable[[Any, Any], Awaitable[Any]]


@pytest.fixture(scope="module")
def edge() -> ModelInfo:
    return load_model(EDGE_MODEL, device="cpu").info


@contextlib.asynccontextmanager
async def scripted(**methods: Method) -> AsyncIterator[OrchestratorLink]:
    """Run a server that answers as told, and a link to it."""
    servicer = type("Scripted", (orchestrator_v1_pb2_grpc.OrchestratorServicer,), {})()
    for name, method in methods.items():
        setattr(servicer, name, method)
    server = grpc.aio.server()
    orchestrator_v1_pb2_grpc.add_OrchestratorServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    link = OrchestratorLink(f"127.0.0.1:{port}", Credentials())
    try:
        yield link
    finally:
        await link.close()
        await server.stop(None)


def always(answer: Any) -> Method:
    async def method(request: Any, context: Any) -> Any:
        return answer

    return method


def model(edge: ModelInfo, **changes: Any) -> ModelDescription:
    return replace(ModelDescription(**vars(edge)), **changes)


async def test_an_answer_that_fits_is_the_decision_and_names_its_source() -> None:
    async with scripted(ChoosePlan=always(encode_plan_answer(ANSWER))) as link:
        decision = await link.plan(QUERY, ("linear",))
    assert (decision.plan, decision.edge_plan) == (ANSWER.plan, ANSWER.edge_plan)
    assert decision.origin == f"ddim-4.json (chosen by the orchestrator at {link.address})"


@pytest.mark.parametrize(
    ("asked", "why"),
    [
        ({"num_inference_steps": 5}, "another number of steps"),
        ({"max_cloud_calls": 1}, "max_cloud_calls"),
        ({"handoff_step": 3}, "another step"),  # there is an agreement, which may hand off sooner
        ({"shadow": False}, "shadow"),
        ({"corrections": "final"}, "corrections none"),
    ],
)
def test_a_plan_that_breaks_a_bound_is_refused(asked: dict[str, Any], why: str) -> None:
    check_answer(ANSWER, QUERY, ("linear",))
    with pytest.raises(ProtocolError, match=why):
        check_answer(ANSWER, replace(QUERY, **asked), ("linear",))


def test_a_plan_that_the_cloud_would_refuse_is_refused() -> None:
    with pytest.raises(ProtocolError, match="predictor linear"):
        check_answer(ANSWER, QUERY, ("reuse",))
    without_warmup = replace(ANSWER, plan=replace(ANSWER.plan, real_steps=(0, 2)))
    with pytest.raises(ValueError, match="real_steps"):
        check_answer(without_warmup, QUERY, ("linear",))


@pytest.mark.parametrize(
    "nonsense",
    [
        pb.ChoosePlanResponse(),
        encode_plan_answer(replace(ANSWER, plan=replace(ANSWER.plan, refresh="magic"))),
        encode_plan_answer(replace(ANSWER, plan=replace(ANSWER.plan, predictor="magic"))),
    ],
)
async def test_nonsense_is_no_answer(nonsense: pb.ChoosePlanResponse) -> None:
    async with scripted(ChoosePlan=always(nonsense)) as link:
        with pytest.raises(NoAnswer, match="of no use here"):
            await link.plan(QUERY, ("linear",))


@pytest.mark.parametrize(
    "wrong",
    [
        pb.Replica(address="no address", calibration=1.0),
        pb.Replica(address="a:1", calibration=1.0, model=ecdiff_v1_pb2.ModelDescription(name="half")),
    ],
)
async def test_replicas_that_are_none_are_no_answer(wrong: pb.Replica, edge: ModelInfo) -> None:
    async with scripted(ListReplicas=always(pb.ListReplicasResponse(replicas=[wrong]))) as link:
        with pytest.raises(NotServing, match="of no use here"):
            await link.replicas(edge, lambda line: None)


async def test_a_model_with_a_malformed_scheduler_is_no_answer(edge: ModelInfo) -> None:
    listed = [Replica(address="a:1", is_up=True, model=model(edge, scheduler_config='{"beta_start": "x"}'))]
    async with scripted(ListReplicas=always(encode_replicas(listed))) as link:
        with pytest.raises(NotServing, match="of no use here"):
            await link.replicas(edge, lambda line: None)


async def test_models_that_do_not_fit_are_left_out(edge: ModelInfo) -> None:
    fits = Replica(address="fits:1", is_up=True, model=model(edge))
    unseen = Replica(address="unseen:1", is_up=False)
    other = Replica(address="other:1", is_up=True, model=model(edge, latent_channels=16))
    async with scripted(ListReplicas=always(encode_replicas([other, fits, unseen]))) as link:
        assert await link.replicas(edge, lambda line: None) == (
            Endpoint(address="fits:1"),
            Endpoint(address="unseen:1"),
        )
    async with scripted(ListReplicas=always(encode_replicas([other]))) as link:
        with pytest.raises(IncompatibleModels, match="latent channels is 16"):
            await link.replicas(edge, lambda line: None)


async def test_bytes_that_are_no_message_are_no_answer() -> None:
    class Junk(grpc.GenericRpcHandler):
        def service(self, details: grpc.HandlerCallDetails) -> Any:
            return grpc.unary_unary_rpc_method_handler(always(b"\xff\xff\xff"))

    server = grpc.aio.server()
    server.add_generic_rpc_handlers((Junk(),))
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    link = OrchestratorLink(f"127.0.0.1:{port}", Credentials())
    with pytest.raises(NoAnswer, match="no message of this schema"):
        await link.plan(QUERY, ("linear",))
    with pytest.raises(VersionMismatch, match=r"does not speak ecdiff\.v1"):
        await CloudLink.connect((f"127.0.0.1:{port}",), Credentials(), wait_seconds=1)
    await link.close()
    await server.stop(None)


async def test_one_that_hangs_costs_a_second_and_is_left_alone_for_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = 0

    async def hang(request: Any, context: Any) -> Any:
        nonlocal asked
        asked += 1
        if asked == 1:
            await asyncio.sleep(60)
        return encode_plan_answer(ANSWER)

    async with scripted(ChoosePlan=hang, ReportSession=hang) as link:
        started = time.monotonic()
        with pytest.raises(NoAnswer, match="no orchestrator answers"):
            await link.plan(QUERY, ("linear",))
        assert CALL_SECONDS * 0.9 < time.monotonic() - started < CALL_SECONDS + 1
        for _ in range(5):
            with pytest.raises(NoAnswer, match="no orchestrator answers"):
                await link.plan(QUERY, ("linear",))
        link.report(REPORT)
        assert time.monotonic() - started < CALL_SECONDS + 1
        assert asked == 1
        now = time.monotonic()
        monkeypatch.setattr(orchestrator_link.time, "monotonic", lambda: now + orchestrator_link.ALONE_SECONDS + 1)
        assert (await link.plan(QUERY, ("linear",))).plan == ANSWER.plan


async def test_reports_never_pile_up_and_closing_waits_for_them_a_moment_only() -> None:
    asked = 0

    async def hang(request: Any, context: Any) -> Any:
        nonlocal asked
        asked += 1
        await asyncio.sleep(60)

    async with scripted(ReportSession=hang) as link:
        for _ in range(100):
            link.report(REPORT)
        await asyncio.sleep(0.3)
        assert 0 < asked <= orchestrator_link.MAX_PENDING_REPORTS
        started = time.monotonic()
        await link.close()
        assert time.monotonic() - started < CALL_SECONDS + 0.5


async def test_a_report_that_was_just_made_is_sent_before_closing() -> None:
    seen = []

    async def take(request: pb.ReportSessionRequest, context: Any) -> pb.ReportSessionResponse:
        seen.append(request.mode)
        return pb.ReportSessionResponse()

    async with scripted(ReportSession=take) as link:
        link.report(REPORT)
        await link.close()
    assert seen == ["edge"]


def replicas(**waits: float | None) -> list[Replica]:
    """Return replicas in this order with these waits; None: down."""
    return [
        Replica(address=name, is_up=wait is not None, wait_seconds=0.0 if wait is None else wait)
        for name, wait in waits.items()
    ]


@pytest.mark.parametrize(
    ("listed", "worth"),
    [
        (replicas(here=1.0, there=2.0), False),
        (replicas(there=0.9, here=1.0), False),
        (replicas(there=0.4, here=1.0), True),
        (replicas(there=5.0, here=None), True),
        (replicas(there=5.0), True),
        (replicas(there=None, here=None), False),
    ],
)
def test_another_replica_must_be_worth_the_move(listed: list[Replica], worth: bool) -> None:
    assert is_worth_moving(listed, "here") is worth


async def test_a_call_that_fails_takes_no_other_with_it() -> None:
    """A report that hangs times out a moment before a plan that is under way on the same connection."""

    async def hang(request: Any, context: Any) -> Any:
        await asyncio.sleep(60)

    async def late(request: Any, context: Any) -> Any:
        await asyncio.sleep(0.6)
        return encode_plan_answer(ANSWER)

    async with scripted(ReportSession=hang, ChoosePlan=late) as link:
        link.report(REPORT)
        await asyncio.sleep(0.7)
        assert (await link.plan(QUERY, ("linear",))).plan == ANSWER.plan
