"""Plans, replicas and reports as protobuf and back; whatever else arrives is refused in plain words."""

from __future__ import annotations

import contextlib
import math
from dataclasses import replace
from typing import Any

import pytest
from fleet_message_samples import ANSWER, FULL_QUERY, LEAST_REPORT, PLAIN_ANSWER, QUERY, REPLICA, REPORT, STATUS, UNSEEN
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
from wire.errors import InvalidRequest, ProtocolError
from wire.fleet_messages import KnownCosts, PlanAnswer, PlanQuery, SessionReport


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
