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
    wanted = (name for name in vars(given) if request.guided or "negative" not in name)
    arrays = ((name, getattr(given, name)) for name in wanted)
    return Conditioning(**{name: on_device(array, model) for name, array in arrays if array is not None})


def prompt_embeds(conditioning: Conditioning) -> PromptEmbeds:
    """Return the embeddings as they travel."""
    return PromptEmbeds(**{name: to_array(tensor) for name, tensor in vars(conditioning).items() if tensor is not None})


def on_device(array: Array, model: Model) -> Tensor:
    """Return an array as a tensor of the model's device and dtype."""
    return from_array(array).to(model.device, model.dtype)
