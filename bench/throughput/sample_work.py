"""What the device thread does beside the forward pass: `python -m bench.throughput.sample_work` prints it as JSON.

Sixteen ecdiff sessions on the worker alone, without a network: schedulers, predictors, measures, checks, copies and the
choice of the next turn, for each real evaluation and the extrapolated steps between two. Prompts are encoded before.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from cloud_service.admission import check_open
from cloud_service.metrics import Metrics
from cloud_service.session import SessionEvent
from cloud_service.warm_up import warm_up
from cloud_service.worker import Worker
from diffusion.devices import wait_for
from diffusion.loading import load_model
from diffusion.model import Evaluation, Model
from models import DEFAULT_GUIDANCE_SCALE, bundled_pair
from orchestrator.plan import PlanOptions, make_plan
from wire.convert import decode_open_header, encode_client
from wire.errors import EcdiffError
from wire.messages import Codec, Limits, Open, PromptText, Seed

NUM_SESSIONS = 16
_NUM_ROUNDS = 3


class _Timed:
    """The model, and how long its forward passes took."""

    def __init__(self, model: Model) -> None:
        self._model = model
        self.seconds = 0.0

    def __getattr__(self, name: str) -> Any:
        return getattr(self._model, name)

    def evaluate(self, evaluations: Sequence[Evaluation]) -> list[Tensor]:
        """Pass on, and take the time."""
        started = time.perf_counter()
        predictions = self._model.evaluate(evaluations)
        wait_for(self._model.device)
        self.seconds += time.perf_counter() - started
        return predictions


class _Ends:
    """The way back to the event loop, with nobody at its end."""

    def put(self, session_id: str, event: SessionEvent) -> None:
        """Stop at an error; forget the rest."""
        if isinstance(event, EcdiffError):
            raise event

    def flush(self) -> None:
        """Nothing waits."""


def measure() -> dict[str, float]:
    """Return the seconds that 16 pictures take in forward passes and beside them, and the second in the first."""
    model = load_model(str(bundled_pair().cloud), device="auto", dtype="auto")
    with torch.inference_mode():
        served = warm_up(model, max_batch=NUM_SESSIONS, compile_steps=False)
        forward, beside = 0.0, 0.0
        for number in range(_NUM_ROUNDS + 1):
            timed = _Timed(model)
            worker = Worker(
                timed,
                max_batch=NUM_SESSIONS,
                step_seconds=served.step_seconds,
                metrics=Metrics(),
                outgoing=_Ends(),
            )
            for session in range(NUM_SESSIONS):
                opening = encode_client(_opening(session), codec=Codec.ZSTD)
                request, _ = check_open(
                    opening, decode_open_header(opening), served, Limits(max_sessions=NUM_SESSIONS), lambda event: None
                )
                worker.open(f"{number}-{session}", request)
            for _ in range(NUM_SESSIONS):  # each opening has a turn of its own
                worker.turn()
            timed.seconds, started = 0.0, time.perf_counter()
            while not worker.idle:
                worker.turn()
            if number:  # the first round pays for lazy starts
                forward += timed.seconds
                beside += time.perf_counter() - started - timed.seconds
    return {"forward_seconds": forward / _NUM_ROUNDS, "beside_seconds": beside / _NUM_ROUNDS, "share": beside / forward}


def _opening(session: int) -> Open:
    return Open(
        request_id=f"sample-work-{session}",
        conditioning=PromptText(prompt="red apple, fluent style"),
        start=Seed(seed=session),
        plan=make_plan("ecdiff", PlanOptions()),
        guidance_scale=DEFAULT_GUIDANCE_SCALE,
        codecs=(Codec.ZSTD,),
    )


if __name__ == "__main__":
    json.dump(measure(), sys.stdout)
