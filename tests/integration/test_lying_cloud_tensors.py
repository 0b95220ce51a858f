"""Damaged, hostile and foreign tensors of a cloud cost no picture; the last good latents are used."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import zstandard
from liar_harness import GOOD_STEPS, LATENTS, STEPS, Liar, check_taken_over

from harness.reference import LATENTS_SHAPE
from harness.scripted_cloud import Send, some_latents, step_with
from protos import ecdiff_v1_pb2 as pb
from wire.messages import Codec, Open

pytestmark = pytest.mark.asyncio(loop_scope="session")


def with_data(tensor: pb.Tensor, array: np.ndarray[Any, Any]) -> None:
    tensor.data = array.tobytes()
    tensor.crc32 = zlib.crc32(tensor.data)


def nan(tensor: pb.Tensor) -> None:
    array = LATENTS[0].copy()
    array[0, 0, 0, 0] = np.nan
    with_data(tensor, array)


def infinity(tensor: pb.Tensor) -> None:
    with_data(tensor, np.full(LATENTS_SHAPE, np.inf, np.float32))


def another_shape(tensor: pb.Tensor) -> None:
    tensor.CopyFrom(step_with(some_latents((1, 4, 8, 8), 0)).step.latents)


def huge_shape(tensor: pb.Tensor) -> None:
    tensor.shape[:] = [65536] * 4
    tensor.raw_bytes = 4 * 65536**4 % 2**64


def half_precision(tensor: pb.Tensor) -> None:
    tensor.CopyFrom(step_with(LATENTS[0].astype(np.float16)).step.latents)


def truncated(tensor: pb.Tensor) -> None:
    tensor.data = tensor.data[:-4]


def flipped_bit(tensor: pb.Tensor) -> None:
    tensor.data = bytes([tensor.data[0] ^ 1]) + tensor.data[1:]


def bomb(tensor: pb.Tensor) -> None:
    tensor.codec = pb.CODEC_ZSTD
    tensor.data = zstandard.ZstdCompressor().compress(bytes(256 * 2**20))


def codec_not_agreed(tensor: pb.Tensor) -> None:
    tensor.codec = pb.CODEC_INT8_BLOCK


def other_numbers(tensor: pb.Tensor) -> None:
    tensor.scaling = pb.SCALING_UNIT_NOISE


TENSORS = [
    nan,
    infinity,
    another_shape,
    huge_shape,
    half_precision,
    truncated,
    flipped_bit,
    bomb,
    codec_not_agreed,
    other_numbers,
]


@pytest.mark.parametrize("damage", TENSORS, ids=lambda damage: damage.__name__.replace("_", "-"))
async def test_damaged_latents_cost_no_picture(liar: Liar, damage: Callable[[pb.Tensor], None]) -> None:
    async def script(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        step = step_with(LATENTS[GOOD_STEPS], GOOD_STEPS)
        if damage is bomb:
            assert opening.codecs[0] is Codec.ZSTD
        damage(step.step.latents)
        await send(step)
        await liar.start_well(opening, send)  # whatever comes after that is not read

    result = await liar.generate(script, codec="zstd" if damage is bomb else "raw")
    check_taken_over(result, "cloud_error", GOOD_STEPS)


@pytest.mark.parametrize(
    "fault",
    ["nan", "foreign-scheduler-state", "step-beyond-the-last", "step-that-was-never-sent", "before-the-plan-says"],
)
async def test_damaged_handoff_costs_no_picture(liar: Liar, fault: str) -> None:
    async def script(opening: Open, send: Send) -> None:
        await liar.start_well(opening, send)
        latents = step_with(LATENTS[GOOD_STEPS]).step.latents
        state = pb.State(step_index=STEPS - 1, latents=latents)
        match fault:
            case "nan":
                nan(state.latents)
            case "foreign-scheduler-state":
                state.scheduler_state["model_outputs"].CopyFrom(latents)
            case "step-beyond-the-last":
                state.step_index = STEPS + 1
            case "step-that-was-never-sent":
                state.step_index = GOOD_STEPS + 1
            case "before-the-plan-says":
                state.step_index = GOOD_STEPS
        await send(pb.ServerMessage(handed_off=pb.HandedOff(state=state, totals=pb.Totals())))

    check_taken_over(await liar.generate(script), "cloud_error", GOOD_STEPS)
