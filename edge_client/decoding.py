"""Clean latents into pixels: on the edge, or in the cloud where that was asked for and works."""

from __future__ import annotations

import time

from torch import Tensor

from diffusion.tensors import to_array
from edge_client.cloud_lead import CloudLead
from edge_client.edge_model import EdgeModel
from edge_client.lead import Lead
from edge_client.recorder import Recorder
from edge_client.request import Size
from wire.messages import Array


class Decoding:
    """Of one generation.

    Args:
        edge: The small model, with a VAE.
        recorder: Told where and how long; its request says who is to decode.
        size: Of the pictures.
    """

    def __init__(self, edge: EdgeModel, recorder: Recorder, size: Size) -> None:
        self._edge, self._recorder = edge, recorder
        frames = (size.num_frames,) if size.num_frames else ()
        self._shape = (size.num_images, *frames, size.height, size.width, 3)
        self._pixels: Array | None = None

    @property
    def is_clouds(self) -> bool:
        """Whether the cloud is to decode, so that its session stays open until then."""
        return self._recorder.request.decode == "cloud"

    async def ask(self, cloud: CloudLead, lead: Lead, latents: Tensor) -> None:
        """Let the cloud decode, if it is still there; whatever it fails at is left to `pixels`."""
        self._recorder.enter("decoding")
        began = time.perf_counter()
        if lead.lost is None:
            answer = await cloud.decode(await self._edge.run(to_array, latents), self._shape)
            if answer is not None:
                self._pixels = answer.pixels
                self._recorder.decoded_by = "cloud"
                self._recorder.seconds["decode"] = time.perf_counter() - began
                return
        self._recorder.fall_back(f"the cloud did not decode ({lead.lost or cloud.gone}): the edge does")

    async def pixels(self, latents: Tensor) -> Array:
        """Return the pictures `[B, H, W, 3]`, or videos `[B, F, H, W, 3]`, uint8."""
        if self._pixels is not None:
            return self._pixels
        self._recorder.enter("decoding")
        began = time.perf_counter()
        pixels = await self._edge.decode(latents)
        self._recorder.seconds["decode"] = time.perf_counter() - began
        return pixels
