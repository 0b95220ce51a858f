"""The prompt as the edge model is fed it, and as the cloud is told it: who encodes it is the user's choice."""

from __future__ import annotations

import asyncio
import time

from diffusion.model import Conditioning
from diffusion.tensors import from_array, to_array
from edge_client.edge_model import EdgeModel
from edge_client.recorder import Recorder
from edge_client.request import GenerationRequest
from wire.errors import ModelError, ProtocolError
from wire.messages import Opened, PromptEmbeds, PromptText


class Prompt:
    """One generation's prompt.

    Args:
        request: With the text, and in `text_encoder` who encodes it: `own`, `cloud` or `edge`.
        edge: The small model.
        recorder: Told how long encoding took, and where it fell back.
    """

    def __init__(self, request: GenerationRequest, edge: EdgeModel, recorder: Recorder) -> None:
        self._request, self._edge, self._recorder = request, edge, recorder
        self._encoding: asyncio.Task[Conditioning] | None = None
        self._given: Conditioning | None = None

    @property
    def is_clouds(self) -> bool:
        """Whether the edge model is fed what the cloud encoded."""
        return self._request.text_encoder == "cloud"

    def start(self) -> None:
        """Begin to encode, where that is the edge's part."""
        if not self.is_clouds:
            self._encoding = asyncio.create_task(self._encode())

    def stop(self) -> None:
        """Nobody waits any more."""
        if self._encoding is not None:
            self._encoding.cancel()

    async def for_cloud(self) -> PromptText | PromptEmbeds:
        """Return what the cloud is told: the text; with the choice `edge` the embeddings, and nothing else."""
        if self._request.text_encoder == "edge":
            embeds = vars(await self.conditioning())
            return PromptEmbeds(**{name: to_array(tensor) for name, tensor in embeds.items() if tensor is not None})
        return PromptText(prompt=self._request.prompt, negative_prompt=self._request.negative_prompt)

    def take(self, opened: Opened) -> None:
        """Take the embeddings that the cloud was asked for; a second cloud's are not needed.

        Raises:
            ProtocolError: There are none, or the edge model cannot be fed with them.
        """
        if not self.is_clouds or self._given is not None:
            return
        if opened.prompt_embeds is None:
            raise ProtocolError("the cloud was asked for the prompt's embeddings and sent none")
        model = self._edge.model
        arrays = {name: array for name, array in vars(opened.prompt_embeds).items() if array is not None}
        widths = {"prompt_embeds": model.info.prompt_embeds_width}
        if model.info.pooled_prompt_embeds_width:
            widths["pooled_prompt_embeds"] = model.info.pooled_prompt_embeds_width
        if self._request.guided and not model.info.guidance_distilled:
            widths |= {f"negative_{name}": width for name, width in widths.items()}
        found = {name: array.shape[-1] for name, array in arrays.items()}
        if found != widths or any(len(array) != 1 for array in arrays.values()):
            raise ProtocolError(f"the cloud's embeddings have widths {found}, the edge model takes {widths}")
        self._given = Conditioning(
            **{name: from_array(array).to(model.device, model.dtype) for name, array in arrays.items()}
        )

    async def conditioning(self) -> Conditioning:
        """Return what the edge model is fed.

        Raises:
            ModelError: The cloud was to encode it and is gone, and the edge model has no text encoder.
        """
        if self._given is not None:
            return self._given
        if self._encoding is None:
            if not self._edge.model.info.text_encoder_fingerprint:
                raise ModelError(
                    "the cloud was lost before it had encoded the prompt, and the edge model has no text encoder: "
                    "try again, or name an --edge-model with one"
                )
            self._recorder.fall_back("the cloud encoded no prompt: the edge encoded it with its own text encoder")
            self._encoding = asyncio.create_task(self._encode())
        return await self._encoding

    async def _encode(self) -> Conditioning:
        started = time.perf_counter()
        request = self._request
        encoded = await self._edge.encode_prompt(request.prompt, request.negative_prompt, guided=request.guided)
        self._recorder.seconds["encode_prompt"] = time.perf_counter() - started
        return encoded
