"""What the agent refuses of those who call it: one plain line, the right status, and the next request is served."""

from __future__ import annotations

import io
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from PIL import Image

from harness.agent import Agent
from harness.programs import ENVIRONMENT
from protos import edge_agent_v1_pb2 as pb
from wire.errors import ERROR_KEY

Options = pb.GenerateRequest.PlanOptions
EDGE: dict[str, Any] = {"mode": "edge", "plan_options": Options(num_inference_steps=3)}


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array, allow_pickle=True)
    return file.getvalue()


def header_of(shape: tuple[int, ...]) -> bytes:
    """A file that claims more than it holds."""
    file = io.BytesIO()
    np.lib.format.write_array_header_1_0(file, {"descr": "<f4", "fortran_order": False, "shape": shape})
    return file.getvalue()


def noise(content: bytes) -> dict[str, Any]:
    return {**EDGE, "initial_latents": pb.File(path="n.npy", content=content)}


BAD_REQUESTS: dict[str, tuple[dict[str, Any], str]] = {
    "nothing": ({}, "the prompt is empty"),
    "mode": ({"prompt": "x", "mode": "magic"}, "unknown mode 'magic'"),
    "endless-prompt": ({"prompt": "cat " * 600}, "prompt has 2400 characters"),
    "handoff": ({"plan_options": Options(num_inference_steps=5, handoff_step=6)}, "handoff_step must lie in 0..5"),
    "steps": ({"plan_options": Options(num_inference_steps=10**6)}, "num_inference_steps must be at most 1000"),
    "no-steps": ({"plan_options": Options(num_inference_steps=0)}, "num_inference_steps must be at least 1"),
    "smoothing": ({"mode": "ecdiff", "plan_options": Options(smoothing=math.nan)}, "smoothing"),
    "tolerance": ({"plan_options": Options(tolerance=math.inf)}, "tolerance"),
    "corrections": ({"plan_options": Options(corrections="all")}, "corrections"),
    "deadline": ({"plan_options": Options(deadline_ms=-1)}, "deadline_ms"),
    "real-steps": ({"mode": "ecdiff", "plan_options": Options(real_steps=[3, 1])}, "real_steps"),
    "guidance": ({"guidance_scale": math.nan}, "guidance_scale must lie in 0..100"),
    "seed": ({"seed": 2**63}, "seed must lie in"),
    "size": ({"height": 100_000}, "height must lie in 1..2048"),
    "pictures": ({"num_images": 0}, "num_images must lie in 1..8"),
    "scheduler": ({"scheduler": "magic"}, "unknown scheduler 'magic'"),
    "codec": ({"latents_codec": "magic"}, "unknown codec 'magic'"),
    "request-id": ({"request_id": "a\nb"}, "request_id must be printable"),
    "endless-request-id": ({"request_id": "a" * 1000}, "request_id must have 1..128 characters"),
    "path": ({"plan_file": pb.File(path="a\x1b[31m", content=b"{}")}, "the path of plan_file must be printable"),
    "plan-of-another-mode": ({"mode": "edge", "plan_file": pb.File(content=b"{}")}, "--plan belongs to mode adaptive"),
    "plan": ({"plan_file": pb.File(path="p.json", content=b"[" * 100_000)}, "plan file p.json"),
    "plan-of-no-text": ({"plan_file": pb.File(path="p.json", content=b"\xff")}, "plan file p.json is"),
    "noise": (noise(b"hello"), "n.npy is not a .npy array"),
    "noise-of-another-shape": (noise(npy(np.zeros((1, 4, 8, 8)))), "n.npy has shape (1, 4, 8, 8)"),
    "endless-noise": (noise(header_of((1, 4, 2**20, 2**20))), "n.npy has shape"),
    "noise-cut-off": (noise(header_of((1, 4, 16, 16))), "n.npy is not a .npy array"),
    "pickled-noise": (noise(npy(np.array([{}], dtype=object))), "n.npy has shape (1,)"),
    "noise-with-nan": (noise(npy(np.full((1, 4, 16, 16), np.nan))), "n.npy must hold finite"),
    "size-of-no-model": ({**EDGE, "height": 100}, "multiples of 8"),
}


@pytest.mark.parametrize(("fields", "piece"), BAD_REQUESTS.values(), ids=BAD_REQUESTS)
def test_bad_request_is_refused_with_one_plain_line(agent: Agent, fields: dict[str, Any], piece: str) -> None:
    request = pb.GenerateRequest(**({"prompt": "x"} | fields if fields else {}))
    with pytest.raises(grpc.RpcError) as caught:
        agent.ask(lambda stub: list(stub.Generate(request, timeout=30)))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert piece in caught.value.details()
    assert "\n" not in caught.value.details()
    assert dict(caught.value.trailing_metadata())[ERROR_KEY] == "InvalidRequest"
    assert agent.queue() == []


def test_app_gets_places_progress_pictures_and_the_end(agent: Agent) -> None:
    request = pb.GenerateRequest(prompt="a cat", **EDGE, num_images=2, want_latents=True)
    updates = agent.ask(lambda stub: list(stub.Generate(request, timeout=60)))
    assert isinstance(updates, list)
    kinds = [update.WhichOneof("message") for update in updates]
    assert kinds[-3:] == ["picture", "picture", "done"]
    assert set(kinds[:-3]) <= {"place", "progress"}
    done = updates[-1].done
    seeds = [json.loads(Image.open(io.BytesIO(each.picture.png)).text["ecdiff"])["seed"] for each in updates[-3:-1]]
    assert seeds == [0, 1]
    report = json.loads(done.report)
    assert report["step_sources"] == "eee"
    assert report["request_id"]
    latents = np.frombuffer(done.latents.data, "<f4").reshape(done.latents.shape)
    assert latents.shape == (2, 4, 16, 16)
    assert done.queue_seconds >= 0
    assert 0 < done.start_seconds < report["seconds"]["total"]


def test_example_of_the_page_runs(agent: Agent, tmp_path: Path) -> None:
    page = (Path(__file__).parents[2] / "docs" / "agent.md").read_text()
    example = page.partition("```python\n")[2].partition("```")[0].replace("127.0.0.1:50071", agent.address)
    done = subprocess.run(
        [sys.executable, "-c", example], cwd=tmp_path, env=os.environ | ENVIRONMENT, capture_output=True, timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.endswith(b" s\n")
    with Image.open(tmp_path / "apple.png") as picture:
        assert json.loads(picture.text["ecdiff"])["seed"] == 3


def observation(series: str, *values: float, **labels: str) -> pb.Observation:
    return pb.Observation(series=series, values=values, labels=labels)


def test_recorded_timings_are_counted_and_gauges_are_not(agent: Agent) -> None:
    before = agent.scrape()
    request = pb.RecordRequest(
        observations=[
            observation("ecdiff_nfe_total", 7, source="cloud"),
            observation("ecdiff_handoff_seconds", 0.1, 0.2, stage="total"),
            observation("ecdiff_clock_offset_seconds", 1e9),
        ]
    )
    agent.ask(lambda stub: stub.Record(request, timeout=30))
    after = agent.scrape()

    def grown(name: str, **labels: str) -> float:
        return after.value(name, **labels) - before.value(name, **labels)

    assert grown("ecdiff_nfe_total", source="cloud") == 7
    assert grown("ecdiff_handoff_seconds_count", stage="total") == 2
    assert after.value("ecdiff_clock_offset_seconds") < 1e6


BAD_OBSERVATIONS = {
    "series": (observation("ecdiff_made_up", 1), "there is no series 'ecdiff_made_up'"),
    "the-agents-own": (observation("ecdiff_agent_queue", 1), "there is no series"),
    "no-labels": (observation("ecdiff_nfe_total", 1), "has the labels ['source']"),
    "label-value": (observation("ecdiff_nfe_total", 1, source="moon"), "source of ecdiff_nfe_total is one of"),
    "going-down": (observation("ecdiff_nfe_total", -1, source="cloud"), "takes no -1"),
    "nan": (observation("ecdiff_latents_transit_seconds", math.nan), "takes no nan"),
    "infinite": (observation("ecdiff_latents_transit_seconds", math.inf), "takes no inf"),
}


@pytest.mark.parametrize(("bad", "piece"), BAD_OBSERVATIONS.values(), ids=BAD_OBSERVATIONS)
def test_timings_that_no_series_has_are_refused_as_a_whole(agent: Agent, bad: pb.Observation, piece: str) -> None:
    before = agent.scrape().value("ecdiff_handoff_step_count")
    request = pb.RecordRequest(observations=[observation("ecdiff_handoff_step", 3), bad])
    with pytest.raises(grpc.RpcError) as caught:
        agent.ask(lambda stub: stub.Record(request, timeout=30))
    assert caught.value.code() is grpc.StatusCode.INVALID_ARGUMENT
    assert piece in caught.value.details()
    assert agent.scrape().value("ecdiff_handoff_step_count") == before


def test_more_timings_than_any_generation_has_are_refused(agent: Agent) -> None:
    request = pb.RecordRequest(observations=[observation("ecdiff_handoff_step", *[1.0] * 100_001)])
    with pytest.raises(grpc.RpcError) as caught:
        agent.ask(lambda stub: stub.Record(request, timeout=30))
    assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED


def test_agent_and_its_health_and_metrics_answer(agent: Agent) -> None:
    from grpc_health.v1 import health_pb2, health_pb2_grpc

    with grpc.insecure_channel(agent.address) as channel:
        health = health_pb2_grpc.HealthStub(channel)
        for name in ("", "ecdiff.v1.EdgeAgent"):
            assert health.Check(health_pb2.HealthCheckRequest(service=name), timeout=30).status == 1
    assert agent.scrape().value("ecdiff_agent_queue") == 0
