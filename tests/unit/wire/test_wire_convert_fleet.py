"""Plans, replicas and reports as protobuf and back; whatever else arrives is refused in plain words."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import pytest
from google.protobuf.message import DecodeError
from hypothesis import given
from hypothesis import strategies as st

from protos import ecdiff_v1_pb2
from protos import orchestrator_v1_pb2 as pb
from wire.convert.fleet import (
    MAX_REPLICAS,
    decode_replicas,
    decode_report,
    decode_status,
    encode_replicas,
    encode_report,
    encode_status,
)
from wire.convert.plans import decode_plan_answer, decode_plan_query, encode_plan_answer, encode_plan_query
from wire.edge_plan import Agreement, EdgePlan
from wire.errors import InvalidRequest, ProtocolError
from wire.fleet_messages import (
    FleetStatus,
    KnownCosts,
    LatencyEstimate,
    PlanAnswer,
    PlanFileStatus,
    PlanQuery,
    Replica,
    SessionReport,
)
from wire.messages import Load, ModelDescription, Plan

QUERY = PlanQuery(
    cloud_fingerprint="c",
    edge_fingerprint="e",
    scheduler="ddim",
    num_inference_steps=4,
    guidance_scale=2.0,
    latents_elements=1024,
    costs=KnownCosts(latents_bytes=4096),
)
FULL_QUERY = replace(
    QUERY,
    costs=KnownCosts(
        latents_bytes=4096,
        rtt_seconds=0.0,
        bandwidth_bytes_per_second=1e6,
        cloud_step_seconds=0.1,
        cloud_queue_seconds=0.0,
        edge_step_seconds=0.02,
        encode_prompt_seconds=0.01,
        edge_encode_prompt_seconds=0.01,
        decode_seconds=0.03,
        shared_cores=True,
    ),
    deadline_seconds=0.9,
    tolerance=0.0,
    max_cloud_calls=0,
    corrections="none",
    shadow=False,
    handoff_step=0,
    replica="127.0.0.1:50051",
)
ANSWER = PlanAnswer(
    plan=Plan(num_inference_steps=4, handoff_step=3, refresh="listed", real_steps=(0, 1), max_cloud_calls=0),
    edge_plan=EdgePlan(
        shadow=True,
        residual="linear",
        fade=(1.0, 1.0, 0.5, 0.0),
        reach=2,
        corrections="planned",
        correction_steps=(3,),
        max_cloud_calls=5,
        agreement=Agreement(disagreement=(0.1,) * 4, tail_error=(math.inf, math.inf, 0.2, 0.1, 0.0), tolerance=0.1),
    ),
    origin="ddim-4.json",
    why="because",
    lines=("a line",),
    expected_error=0.05,
    estimate=LatencyEstimate(handoff_step=3, cloud_calls=3, cloud_compute_seconds=0.3),
    calibration=1.5,
)
PLAIN_ANSWER = PlanAnswer(plan=Plan(num_inference_steps=4, handoff_step=4), edge_plan=EdgePlan(), origin="paper")
MODEL = ModelDescription(
    name="cloud",
    fingerprint="c",
    family="sd",
    prediction_type="epsilon",
    latent_channels=4,
    layout="BCHW",
    vae_scale_factor=8,
    vae_scaling_factor=0.18,
    vae_shift_factor=0.0,
    vae_fingerprint="v",
    text_encoder_fingerprint="t",
    scheduler_class="DDIMScheduler",
    scheduler_config="{}",
    default_height=128,
    default_width=128,
    num_parameters=1,
    dtype="float32",
    device="cpu",
)
REPLICA = Replica(
    address="127.0.0.1:50051",
    is_up=True,
    model=MODEL,
    load=Load(sessions=1, queue=2, step_seconds=0.1),
    max_sessions=4,
    wait_seconds=1.0,
    step_seconds=0.1,
    rtt_seconds=0.01,
    calibration=0.9,
    num_reports=7,
)
UNSEEN = Replica(address="127.0.0.1:50052", is_up=False)
REPORT = SessionReport(
    mode="adaptive",
    outcome="done",
    replica="127.0.0.1:50051",
    total_seconds=1.5,
    connect_seconds=0.1,
    predicted_seconds=1.2,
    calibration=1.1,
    nfe_cloud=6,
    nfe_extrapolated=20,
    nfe_edge=24,
    nfe_correction=2,
    handoff_seconds={"transit": 0.01, "total": 0.02},
    cloud_step_seconds=0.1,
    cloud_queue_seconds=0.0,
    rtt_seconds=0.02,
    bandwidth_bytes_per_second=1e6,
    latents_elements=1024,
)
LEAST_REPORT = SessionReport(mode="edge", outcome="failed")
STATUS = FleetStatus(
    version="0.1.0",
    uptime_seconds=12.5,
    replicas=(REPLICA, UNSEEN),
    plan_files=(
        PlanFileStatus(name="bad.json", problem="it is no JSON"),
        PlanFileStatus(
            name="good.json",
            cloud_fingerprint="c",
            edge_fingerprint="e",
            scheduler="ddim",
            num_inference_steps=50,
            guidance_scale=2.0,
            num_plans=20,
        ),
    ),
    num_plans_handed_out=3,
    num_reports=2,
)


def over_the_wire(message: Any) -> Any:
    return type(message).FromString(message.SerializeToString())


@pytest.mark.parametrize("query", [QUERY, FULL_QUERY])
def test_a_query_arrives_as_it_was_sent(query: PlanQuery) -> None:
    assert decode_plan_query(over_the_wire(encode_plan_query(query))) == query


@pytest.mark.parametrize("answer", [ANSWER, PLAIN_ANSWER])
def test_an_answer_arrives_as_it_was_sent(answer: PlanAnswer) -> None:
    assert decode_plan_answer(over_the_wire(encode_plan_answer(answer))) == answer


def test_an_answer_without_an_estimate_has_the_calibration_1_as_the_schema_says() -> None:
    message = encode_plan_answer(PLAIN_ANSWER)
    assert (message.HasField("estimate"), message.calibration) == (False, 1.0)
    message.calibration = 0.0
    with pytest.raises(ProtocolError, match="calibration must be"):
        decode_plan_answer(message)


@pytest.mark.parametrize("report", [REPORT, LEAST_REPORT])
def test_a_report_arrives_as_it_was_sent(report: SessionReport) -> None:
    assert decode_report(over_the_wire(encode_report(report))) == report


def test_replicas_and_status_arrive_as_they_were_sent() -> None:
    assert decode_replicas(over_the_wire(encode_replicas([REPLICA, UNSEEN]))) == (REPLICA, UNSEEN)
    assert decode_status(over_the_wire(encode_status(STATUS))) == STATUS


def test_no_request_has_a_place_for_a_prompt() -> None:
    for message in (pb.ChoosePlanRequest, pb.ListReplicasRequest, pb.ReportSessionRequest, pb.KnownCosts):
        assert [field.name for field in message.DESCRIPTOR.fields if field.name in ("prompt", "negative_prompt")] == []


@pytest.mark.parametrize(
    "wrong",
    [
        {"cloud_fingerprint": ""},
        {"cloud_fingerprint": "x" * 1000},
        {"edge_fingerprint": "\n"},
        {"num_inference_steps": 0},
        {"num_inference_steps": 1001},
        {"guidance_scale": math.nan},
        {"deadline_seconds": -1.0},
        {"deadline_seconds": math.inf},
        {"tolerance": math.nan},
        {"handoff_step": 5},
        {"latents_elements": 0},
        {"latents_elements": 2**60},
        {"replica": "x" * 1000},
        {"costs": KnownCosts(latents_bytes=0)},
        {"costs": KnownCosts(latents_bytes=1, rtt_seconds=-0.1)},
        {"costs": KnownCosts(latents_bytes=1, bandwidth_bytes_per_second=0.0)},
        {"costs": KnownCosts(latents_bytes=1, edge_step_seconds=math.nan)},
    ],
)
def test_a_query_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        decode_plan_query(encode_plan_query(replace(QUERY, **wrong)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"mode": ""},
        {"outcome": "perfect"},
        {"total_seconds": -1.0},
        {"total_seconds": math.nan},
        {"predicted_seconds": math.inf},
        {"calibration": 0.0},
        {"calibration": 1e9},
        {"nfe_cloud": 1001},
        {"handoff_seconds": {"lunch": 1.0}},
        {"handoff_seconds": {"total": math.nan}},
        {"rtt_seconds": -1.0},
        {"bandwidth_bytes_per_second": math.inf},
    ],
)
def test_a_report_out_of_range_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(InvalidRequest):
        decode_report(encode_report(replace(REPORT, **wrong)))


def spoil(**fields: Any) -> pb.ChoosePlanResponse:
    message = encode_plan_answer(ANSWER)
    message.MergeFrom(pb.ChoosePlanResponse(**fields))
    return message


@pytest.mark.parametrize(
    "message",
    [
        pb.ChoosePlanResponse(),
        pb.ChoosePlanResponse(plan=ecdiff_v1_pb2.Plan(num_inference_steps=4)),
        spoil(plan=ecdiff_v1_pb2.Plan(num_inference_steps=5)),  # the curves are for 4
        spoil(edge_plan=pb.EdgePlan(fade=[1.0])),
        spoil(edge_plan=pb.EdgePlan(correction_steps=[1])),  # 3, 1
        spoil(edge_plan=pb.EdgePlan(correction_steps=[4])),
        spoil(edge_plan=pb.EdgePlan(residual="magic")),
        spoil(edge_plan=pb.EdgePlan(corrections="often")),
        spoil(edge_plan=pb.EdgePlan(tolerance=math.nan)),
        spoil(edge_plan=pb.EdgePlan(agreement=pb.Agreement(tail_error=[0.0]))),
        spoil(origin="\x1b[31m"),
        spoil(why="x" * 501),
        spoil(lines=["x"] * 9),
        spoil(calibration=math.inf),
        spoil(expected_error=math.nan),
        spoil(estimate=pb.LatencyEstimate(decode_seconds=-1.0)),
        spoil(estimate=pb.LatencyEstimate(cloud_calls=5000)),
    ],
)
def test_an_answer_that_makes_no_sense_is_the_orchestrators_fault(message: pb.ChoosePlanResponse) -> None:
    with pytest.raises(ProtocolError, match="the orchestrator sent nonsense"):
        decode_plan_answer(message)


@pytest.mark.parametrize(
    "message",
    [
        pb.ListReplicasResponse(replicas=[pb.Replica(calibration=1.0)]),
        pb.ListReplicasResponse(replicas=[pb.Replica(address="a:1")]),
        pb.ListReplicasResponse(replicas=[pb.Replica(address="a:1", calibration=1.0, wait_seconds=math.nan)]),
        pb.ListReplicasResponse(
            replicas=[pb.Replica(address="a:1", calibration=1.0, model=ecdiff_v1_pb2.ModelDescription())]
        ),
        pb.ListReplicasResponse(replicas=[pb.Replica(address="a:1", calibration=1.0)] * (MAX_REPLICAS + 1)),
    ],
)
def test_replicas_that_make_no_sense_are_the_orchestrators_fault(message: pb.ListReplicasResponse) -> None:
    with pytest.raises(ProtocolError):
        decode_replicas(message)


@given(st.binary(max_size=400))
def test_any_bytes_are_a_message_or_a_plain_refusal(content: bytes) -> None:
    for kind, decode, refusal in (
        (pb.ChoosePlanRequest, decode_plan_query, InvalidRequest),
        (pb.ReportSessionRequest, decode_report, InvalidRequest),
        (pb.ChoosePlanResponse, decode_plan_answer, ProtocolError),
        (pb.ListReplicasResponse, decode_replicas, ProtocolError),
        (pb.FleetStatusResponse, decode_status, ProtocolError),
    ):
        with contextlib.suppress(DecodeError, refusal):
            decode(kind.FromString(content))  # type: ignore[operator]


@given(st.data())
def test_a_query_with_a_byte_changed_is_a_query_or_a_plain_refusal(data: st.DataObject) -> None:
    content = bytearray(encode_plan_query(FULL_QUERY).SerializeToString())
    content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    with contextlib.suppress(DecodeError, InvalidRequest):
        decode_plan_query(pb.ChoosePlanRequest.FromString(bytes(content)))
