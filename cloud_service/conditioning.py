"""What a client sends, as the model takes it, and the prompt as a client may ask for it."""

from __future__ import annotations

from torch import Tensor

from cloud_service.request import Request
from diffusion.model import Conditioning, Model
from diffusion.tensors import from_array, to_array
from wire.messages import Array, PromptEmbeds, PromptText


def make_conditioning(request: Request, model: Model) -> Conditioning:
    """Encode the prompt, or take the embeddings in its place, on the model's device."""
    given = request.open.conditioning
    if isinstance(given, PromptText):
        return model.encode_prompt(given.prompt, given.negative_prompt, guided=request.guided)
    negative = given.negative_prompt_embeds if request.guided else None
    return Conditioning(
        prompt_embeds=on_device(given.prompt_embeds, model),
        negative_prompt_embeds=None if negative is None else on_device(negative, model),
    )


def prompt_embeds(conditioning: Conditioning) -> PromptEmbeds:
    """Return the embeddings as they travel."""
    negative = conditioning.negative_prompt_embeds
    return PromptEmbeds(
        prompt_embeds=to_array(conditioning.prompt_embeds),
        negative_prompt_embeds=None if negative is None else to_array(negative),
    )


def on_device(array: Array, model: Model) -> Tensor:
    """Return an array as a tensor of the model's device and dtype."""
    return from_array(array).to(model.device, model.dtype)
