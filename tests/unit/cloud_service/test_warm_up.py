"""What happens between loading and the first session, with the tiny model."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
import torch

from cloud_service.config import LOGGER_NAME
from cloud_service.memory import HostMemory
from cloud_service.warm_up import warm_up
from diffusion.compiled import OnSize
from diffusion.loading import load_model
from diffusion.model import Evaluation, Model
from wire.serving.logs import JsonFormatter

CLOUD_MODEL = Path(__file__).parents[2] / "data" / "sd-tiny" / "cloud"
MIB = 2**20


class Watched:
    """A real model that notes what it is asked, and whose compiler is the test's."""

    def __init__(self, compiler: Callable[[Sequence[int], OnSize], None] = lambda sizes, on_size: None) -> None:
        self._model = load_model(CLOUD_MODEL, device="cpu")
        self._compiler = compiler
        self.asked: list[int | str] = []

    def __getattr__(self, name: str) -> object:
        return getattr(self._model, name)

    def evaluate(self, evaluations: Sequence[Evaluation]) -> list[torch.Tensor]:
        self.asked.append(len(evaluations))
        return self._model.evaluate(evaluations)

    def compile(self, sizes: Sequence[int], *, on_size: OnSize) -> None:
        self.asked.append(f"compile {sizes}")
        self._compiler(sizes, on_size)


def warmed(model: object, *, max_batch: int = 3, compile_steps: bool = True):
    typed: Model = model  # type: ignore[assignment]
    with torch.inference_mode():
        return warm_up(typed, max_batch=max_batch, compile_steps=compile_steps)


def test_it_compiles_two_rows_a_session_after_the_memory_is_known_and_before_a_step_is_timed() -> None:
    model = Watched()
    warmed(model, max_batch=3)
    compiled = model.asked.index("compile (1, 2, 4, 6)")
    assert all(size == 1 for size in model.asked[compiled + 1 :])
    assert len(model.asked) > compiled + 1


def test_nothing_is_compiled_unless_asked_for() -> None:
    model = Watched()
    warmed(model, compile_steps=False)
    assert not any(isinstance(each, str) for each in model.asked)


def test_what_compiling_keeps_is_missing_for_other_sizes() -> None:
    kept: list[np.ndarray] = []

    def compiler(sizes: Sequence[int], on_size: OnSize) -> None:
        kept.append(np.ones(200 * MIB, dtype=np.uint8))

    for compile_steps in (False, True):
        model = Watched(compiler)
        before = HostMemory().used_bytes()
        cost = warmed(model, compile_steps=compile_steps).batch_cost
        if cost is None:
            pytest.skip("nobody can say here what memory is used")
        assert (cost.held_bytes - before > 180 * MIB) is compile_steps


def test_the_log_says_how_far_it_is(caplog: pytest.LogCaptureFixture) -> None:
    def compiler(sizes: Sequence[int], on_size: OnSize) -> None:
        for size in sizes:
            on_size(size, 1.5)

    with caplog.at_level(logging.INFO, logger=LOGGER_NAME):
        warmed(Watched(compiler), max_batch=1)
    lines = [json.loads(JsonFormatter().format(record)) for record in caplog.records]
    assert [(line["event"], line["rows"]) for line in lines] == [
        ("compiling; this takes minutes", [1, 2]),
        ("compiled", 1),
        ("compiled", 2),
    ]


def test_no_room_to_compile_names_the_options() -> None:
    def compiler(sizes: Sequence[int], on_size: OnSize) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(MemoryError, match=r"smaller --max-batch, or leave out --compile"):
        warmed(Watched(compiler))


def test_a_compiler_that_does_not_work_is_told_as_it_is() -> None:
    def compiler(sizes: Sequence[int], on_size: OnSize) -> None:
        raise ValueError("the model cannot be compiled here")

    with pytest.raises(ValueError, match="cannot be compiled here"):
        warmed(Watched(compiler))
