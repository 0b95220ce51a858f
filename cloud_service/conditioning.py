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
    wanted = {name: array for name, array in vars(given).items() if request.guided or "negative" not in name}
    return Conditioning(**{name: None if array is None else on_device(array, model) for name, array in wanted.items()})


def prompt_embeds(conditioning: Conditioning) -> PromptEmbeds:
    """Return the embeddings as they travel."""
    embeds = vars(conditioning)
    return PromptEmbeds(**{name: None if tensor is None else to_array(tensor) for name, tensor in embeds.items()})


def on_device(array: Array, model: Model) -> Tensor:
    """Return an array as a tensor of the model's device and dtype."""
    return from_array(array).to(model.device, model.dtype)
