"""What things take now, for the cost model: measured on the link, told by the cloud, remembered by the edge model."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Collection

import torch
from torch import Tensor

from diffusion.model import Conditioning
from edge_client.cloud_link import BURST_PROBES, CloudLink
from edge_client.edge_model import EdgeModel, Typical
from edge_client.local_cloud import usable_cores
from orchestrator.cost import Costs
from wire.credentials import is_loopback
from wire.fleet_messages import KnownCosts
from wire.messages import DType, Source, Step

# Enough to be told from the round trip on a narrow link, little enough not to be waited for there.
_TRANSFER_BYTES = 32 * 1024
_NUM_TRANSFERS = 2
# Warming up evaluates and decodes once more where that takes less than this: the first time pays for lazy starts.
_CHEAP_SECONDS = 1.0
# Of a prompt that nobody encoded: CLIP's.
_SOME_TOKENS = 77
_ITEM_BYTES = {DType.FLOAT32: 4, DType.FLOAT16: 2, DType.BFLOAT16: 2}


class MeasuredCosts:
    """The costs of one pair over one link.

    Before the first generation the link is probed, the small model timed once, and the cloud's step is what it says of
    itself. After that every generation is a measurement, steadier than the cloud's average over its last few steps.

    The edge's own text encoder stands for the cloud's too: a pair nearly always shares it, and it is quick.

    Args:
        edge: The small model.
        link: The way to the large one.
    """

    def __init__(self, edge: EdgeModel, link: CloudLink) -> None:
        self._edge = edge
        self._link = link
        self._is_prepared = self._shared_cores = False
        self._edge_elements = math.prod(edge.model.latents_shape(0, 0, 1))
        self._cloud_seconds_per_element = Typical()

    async def _shares_cores(self) -> bool:
        """Whether both models compute on this machine's processor, and are not kept apart by their threads."""
        devices = {self._link.description.model.device, self._edge.model.device.type}
        if devices != {"cpu"} or not is_loopback(self._link.address):
            return False
        return await self._edge.run(torch.get_num_threads) > usable_cores() / 2

    async def now(self, latents_shape: tuple[int, ...]) -> Costs:
        """Return the costs for latents `[B, C, H, W]`; what was measured at another size is scaled to this one.

        Raises:
            EcdiffError: The cloud does not answer.
        """
        edge, link = self._edge, self._link
        default_elements = math.prod(edge.model.latents_shape(0, 0, 1))
        if not self._is_prepared:
            await link.measure(num_probes=BURST_PROBES, num_transfers=_NUM_TRANSFERS, transfer_bytes=_TRANSFER_BYTES)
            await time_once(edge)
            self._edge_elements, self._is_prepared = default_elements, True
        load = (await link.describe()).load
        self._shared_cores = await self._shares_cores()
        num_elements = math.prod(latents_shape)
        edge_ratio = num_elements / self._edge_elements
        own_seconds = self._cloud_seconds_per_element.seconds
        cloud_step_seconds = num_elements * (own_seconds or load.step_seconds / default_elements)
        return Costs(
            rtt_seconds=link.estimate.rtt_quantile_seconds(0.5),
            bandwidth_bytes_per_second=link.estimate.bandwidth_bytes_per_second,
            latents_bytes=num_elements * _ITEM_BYTES[DType[link.description.model.dtype.upper()]],
            cloud_step_seconds=cloud_step_seconds,
            cloud_queue_seconds=load.queue * cloud_step_seconds,
            edge_step_seconds=edge.step_seconds.seconds * edge_ratio,
            encode_prompt_seconds=edge.encode_seconds.seconds,
            edge_encode_prompt_seconds=edge.encode_seconds.seconds,
            decode_seconds=edge.decode_seconds.seconds * edge_ratio,
            shared_cores=self._shared_cores,
        )

    async def known(self, latents_shape: tuple[int, ...]) -> KnownCosts:
        """Return what is known without asking or timing anything now, for latents `[B, C, H, W]`."""
        edge, link = self._edge, self._link
        num_elements = math.prod(latents_shape)
        edge_ratio = num_elements / self._edge_elements
        self._shared_cores = await self._shares_cores()
        encode = edge.encode_seconds.seconds or None
        return KnownCosts(
            latents_bytes=num_elements * _ITEM_BYTES[DType[link.description.model.dtype.upper()]],
            rtt_seconds=link.estimate.rtt_quantile_seconds(0.5) if link.estimate.num_probes else None,
            bandwidth_bytes_per_second=link.estimate.bandwidth_bytes_per_second,
            cloud_step_seconds=num_elements * self._cloud_seconds_per_element.seconds or None,
            edge_step_seconds=edge.step_seconds.seconds * edge_ratio or None,
            encode_prompt_seconds=encode,
            edge_encode_prompt_seconds=encode,
            decode_seconds=edge.decode_seconds.seconds * edge_ratio or None,
            shared_cores=self._shared_cores,
        )

    def learn(self, cloud_steps: Collection[Step], num_shadowed: int, latents_shape: tuple[int, ...]) -> float | None:
        """Take in a generation that is done.

        Args:
            cloud_steps: Of the cloud's lead.
            num_shadowed: How many of them the edge evaluated too.
            latents_shape: `[B, C, H, W]`.

        Returns:
            What one of its real steps took, without what ran beside it; None where there was none.
        """
        self._edge_elements = num_elements = math.prod(latents_shape)
        computed = [step.compute_seconds for step in cloud_steps if step.source is Source.CLOUD]
        if not computed:
            return None
        seconds = statistics.fmean(computed)
        if self._shared_cores:
            # What runs beside a step can at most double it.
            beside = num_shadowed * self._edge.step_seconds.seconds / len(computed)
            seconds = max(seconds - beside, seconds / 2)
        self._cloud_seconds_per_element.add(seconds / num_elements)
        return seconds


async def time_once(edge: EdgeModel) -> None:
    """Encode an empty prompt, evaluate and decode at the default size; twice where that is quick."""
    latents = torch.zeros(edge.model.latents_shape(0, 0, 1), device=edge.model.device, dtype=edge.model.dtype)
    for _ in range(2):
        edge.forget_times()
        started = time.perf_counter()
        conditioning = await _some_conditioning(edge)
        evaluate = edge.evaluator(conditioning, guidance_scale=2.0, guidance_rescale=0.0)
        edge.step_seconds.add(await edge.run(_timed, evaluate, latents))
        await edge.decode(latents)
        if time.perf_counter() - started > _CHEAP_SECONDS:
            return


async def _some_conditioning(edge: EdgeModel) -> Conditioning:
    """Return what a guided evaluation may be made with: the empty prompt, or zeros where there is no text encoder."""
    model = edge.model
    if model.info.text_encoder_fingerprint:
        return await edge.encode_prompt("", "", guided=True)
    zeros = torch.zeros(1, _SOME_TOKENS, model.info.prompt_embeds_width, device=model.device, dtype=model.dtype)
    width = model.info.pooled_prompt_embeds_width
    pooled = zeros.new_zeros(1, width) if width else None
    if model.info.guidance_distilled:
        return Conditioning(prompt_embeds=zeros, pooled_prompt_embeds=pooled)
    return Conditioning(
        prompt_embeds=zeros,
        pooled_prompt_embeds=pooled,
        negative_prompt_embeds=zeros,
        negative_pooled_prompt_embeds=pooled,
    )


def _timed(evaluate: Callable[[Tensor, float], Tensor], latents: Tensor) -> float:
    started = time.perf_counter()
    evaluate(latents, 1.0).sum().item()  # a GPU answers before it is done; a number has to wait
    return time.perf_counter() - started
