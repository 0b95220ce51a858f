"""The conversation of one stream, against a real service over real gRPC."""

from __future__ import annotations

import asyncio
import json

import numpy as np
import pytest
import torch
from cloud_harness import DATA, Stream, always, ecdiff, letters, open_channel, opening, running_cloud

from diffusion.schedulers import Stepper
from wire.messages import Close, Codec, Credit, Finished, HandedOff, Noise, Plan, PromptText, Source, Step

SD_TINY = DATA / "sd-tiny"
CASES = {case["name"]: case for case in json.loads((SD_TINY / "cases.json").read_text())}


def deviation(array: np.ndarray, reference: np.ndarray) -> float:
    return float(np.abs(array - reference).max() / reference.std())


def opening_of(case: dict, **fields: object) -> object:
    plan = Plan(
        num_inference_steps=case["num_inference_steps"],
        handoff_step=case["handoff_step"],
        refresh="fixed",
        warmup_steps=case["warmup_steps"],
        skip_interval=case["skip_interval"],
        predictor="ecdiff",
        smoothing=case["smoothing"],
    )
    prompt = PromptText(prompt=case["prompt"], negative_prompt=case["negative_prompt"] or "")
    noise = np.load(SD_TINY / case["initial_latents"])
    return opening(plan, conditioning=prompt, start=Noise(noise=noise), guidance_scale=case["guidance_scale"], **fields)


async def test_steps_arrive_in_order_with_the_recorded_sources_and_latents() -> None:
    case = CASES["ecdiff"]
    recorded = np.load(SD_TINY / case["trajectory"])["latents"]
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening_of(case))
        opened, steps, ending = await stream.receive_steps()
        await stream.send(Close())
        await stream.ends_ok()
        assert [step.step_index for step in steps] == list(range(37))
        assert letters(steps) == case["step_sources"][:37]
        assert isinstance(ending, HandedOff)
        assert ending.state.step_index == 37
        assert deviation(ending.state.latents, recorded[36]) < 1e-4
        for step in steps[:-1]:
            assert deviation(step.latents, recorded[step.step_index]) < 1e-4
        assert opened.timesteps == tuple(float(t) for t in np.load(SD_TINY / case["trajectory"])["timesteps"])
        assert opened.sigmas[-1] == 0.0
        assert cloud.sample("ecdiff_nfe_total", source="cloud") == ending.totals.nfe_cloud == 17
        assert cloud.sample("ecdiff_nfe_total", source="extrapolated") == ending.totals.nfe_extrapolated == 20
        assert cloud.sample("ecdiff_cloud_step_seconds_count") == 17
        assert cloud.sample("ecdiff_cloud_queue_seconds_count") == 17
        assert cloud.sample("ecdiff_extrapolation_error_count") == 15
        sent = {"direction": "sent", "codec": "raw", "kind": "raw"}
        assert cloud.sample("ecdiff_latents_bytes_total", **sent) == 37 * 4 * 16 * 16 * 4


async def test_a_run_to_the_last_step_ends_with_finished_and_the_recorded_latents() -> None:
    case = CASES["ecdiff-no-handoff"]
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening_of(case, stream_latents=False))
        _, steps, ending = await stream.receive_steps()
        assert letters(steps) == case["step_sources"]
        assert isinstance(ending, Finished)
        assert deviation(ending.state.latents, np.load(SD_TINY / case["final_latents"])) < 1e-4
        assert all(step.latents is None for step in steps)


async def test_credits_gate_tensors_but_never_headers() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(always(8), credit=2))
        received = []
        for _ in range(3):
            cloud.model.permit()
            await cloud.model.begun(len(received) + 2)
            if len(received) < 2:
                received.append((await stream.receive_until(Step))[-1])
        # Step 2 waits with its tensors for a credit; it goes as a header when step 3 takes its place.
        cloud.model.permit()
        received.append((await stream.receive_until(Step))[-1])
        await asyncio.sleep(0.1)
        await stream.send(Credit(count=1))
        received.append((await stream.receive_until(Step))[-1])
        cloud.model.run_freely()
        received += (await stream.receive_until(Finished))[:-1]
        assert [step.step_index for step in received] == list(range(8))
        assert [step.latents is not None for step in received] == [True, True, False, True] + 4 * [False]
        # So the edge can tell how old they are.
        assert received[3].wait_seconds > 0.1
        assert received[0].wait_seconds < received[3].wait_seconds


async def test_an_edge_without_credit_still_gets_the_handoff_latents() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(6, handoff_step=4), credit=0))
        _, steps, ending = await stream.receive_steps()
        assert [step.latents for step in steps] == [None] * 4
        assert ending.state.step_index == 4
        assert ending.state.latents.shape == (1, 4, 16, 16)


async def test_predictions_travel_with_real_steps_only() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(ecdiff(8, 7), stream_predictions=True))
        cloud.model.run_freely()
        opened, steps, _ = await stream.receive_steps()
        assert letters(steps) == "CCxxCxx"
        assert [step.prediction is not None for step in steps[:5]] == [True, True, False, False, True]
        assert np.array_equal(steps[1].latents_before, steps[0].latents)
        scheduler = Stepper(opened.scheduler_class, json.loads(opened.scheduler_config), 8)
        again = scheduler.step(torch.from_numpy(steps[1].prediction), 1, torch.from_numpy(steps[1].latents_before))
        assert np.array_equal(again.numpy(), steps[1].latents)


async def test_without_latents_streamed_real_steps_carry_everything_and_extrapolated_ones_use_no_credit() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        # One credit for each real step and none to spare.
        await stream.send(opening(ecdiff(8, 7), stream_latents=False, stream_predictions=True, credit=3))
        opened, steps, _ = await stream.receive_steps()
        assert letters(steps) == "CCxxCxx"
        scheduler = Stepper(opened.scheduler_class, json.loads(opened.scheduler_config), 8)
        for step in steps:
            tensors = (step.latents_before, step.latents, step.prediction)
            if step.source is Source.EXTRAPOLATED:
                assert tensors == (None, None, None)
            else:
                before, latents, prediction = map(torch.from_numpy, tensors)
                assert torch.equal(scheduler.step(prediction, step.step_index, before), latents)


async def test_embeddings_serve_as_well_as_the_prompt() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        by_text, by_embeds = Stream(stub), Stream(stub)
        await by_text.send(opening(always(4), want_prompt_embeds=True))
        opened, _, reference = await by_text.receive_steps()
        await by_embeds.send(opening(always(4), conditioning=opened.prompt_embeds))
        _, _, ending = await by_embeds.receive_steps()
        assert np.array_equal(ending.state.latents, reference.state.latents)


async def test_tensors_above_the_fragment_size_cross_both_ways() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        noise = np.random.default_rng(0).standard_normal((8, 4, 64, 96)).astype(np.float32)
        fields = {"height": 512, "width": 768, "num_images": 8, "start": Noise(noise=noise)}
        await stream.send(opening(always(10, handoff_step=0), **fields))
        opened, _, ending = await stream.receive_steps()
        assert opened.latents_shape == noise.shape
        assert np.array_equal(ending.state.latents, noise)


@pytest.mark.parametrize("codec", list(Codec))
async def test_the_clients_first_codec_is_used(codec: Codec) -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        stream = Stream(stub)
        await stream.send(opening(always(2), codecs=(codec, Codec.RAW)))
        opened, *_ = await stream.receive_steps()
        assert opened.codec is codec
        sent = {"direction": "sent", "codec": codec.label, "kind": "wire"}
        assert cloud.sample("ecdiff_latents_bytes_total", **sent) > 0
