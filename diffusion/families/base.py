"""What every model family shares: one forward pass for many questions, guidance, compiling, the description."""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any, ClassVar

import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.compiled import CompiledNetwork, Network, OnSize
from diffusion.devices import in_memory_format, memory_format_for, on_device
from diffusion.families.description import describe
from diffusion.guidance import guide
from diffusion.model import Conditioning, Evaluation
from diffusion.pipeline_folder import PipelineFolder
from diffusion.text_encoders import find_text_encoders, lacking_text_encoders
from diffusion.vae import PICTURE_CLASSES, find_vae, to_pixels
from diffusion.vae_choice import OWN_VAE, VaeChoice


@dataclass(frozen=True, kw_only=True)
class Embeds:
    """One encoded prompt.

    Attributes:
        sequence: `[1, L, D]`.
        pooled: `[1, P]`; None where the family has none.
    """

    sequence: Tensor
    pooled: Tensor | None = None


@dataclass(frozen=True)
class Rows:
    """What the network is asked in one forward pass, one row a question; all on its device.

    Attributes:
        latents: `[R, ...]` in the model's layout and dtype.
        timesteps: `[R]`, float32.
        guidance_scales: `[R]`, float32; for networks that are fed them.
        prompt_embeds: `[R, L, D]`.
        pooled_prompt_embeds: `[R, P]`; None where the family has none.
    """

    latents: Tensor
    timesteps: Tensor
    guidance_scales: Tensor
    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor | None = None

    @property
    def tensors(self) -> tuple[Tensor, ...]:
        """All of them, in the order of the fields."""
        first = (self.latents, self.timesteps, self.guidance_scales, self.prompt_embeds)
        return first if self.pooled_prompt_embeds is None else (*first, self.pooled_prompt_embeds)


class FamilyModel(ABC):
    """A `Model` made of a diffusers pipeline folder; a family says what its class variables and abstract methods ask.

    The denoising network is loaded now; text encoders and VAE are checked now and loaded when first used.

    Args:
        folder: A pipeline of this family.
        name: What the other end is told.
        device: Where everything runs.
        dtype: Of the network, and of the loop.
        vae: What decodes, where that is not the folder's own, and how.

    Raises:
        ValueError: If a part is missing, damaged or of a kind that this family does not run.
    """

    family: ClassVar[str]
    """Models of one family denoise the same kind of latents."""
    network_part: ClassVar[str] = "transformer"
    """Subfolder of the denoising network."""
    network_class: ClassVar[str]
    """Its class in diffusers."""
    text_encoder_classes: ClassVar[tuple[tuple[str, ...], ...]]
    """Of each text encoder, in the order of the subfolders `text_encoder`, `text_encoder_2`, ..."""
    optional_text_encoders: ClassVar[tuple[str, ...]] = ()
    """Subfolders of those that a folder may leave out."""
    vae_classes: ClassVar[tuple[str, ...]] = PICTURE_CLASSES
    layout: ClassVar[str] = "BCHW"
    default_prediction_type: ClassVar[str] = "epsilon"
    """Where the scheduler's configuration says none."""
    default_guidance_scale: ClassVar[float] = 7.5

    def __init__(
        self,
        folder: PipelineFolder,
        *,
        name: str,
        device: torch.device,
        dtype: torch.dtype,
        vae: VaeChoice = OWN_VAE,
    ) -> None:
        import diffusers

        self.folder, self.device, self.dtype = folder, device, dtype
        folder.part_class(self.network_part, (self.network_class,))
        self.text_encoders = find_text_encoders(
            folder, self.text_encoder_classes, optional=self.optional_text_encoders, device=device, dtype=dtype
        )
        self.own_vae, self.vae = find_vae(folder, self.vae_classes, vae, device=device, dtype=dtype)
        self.check()
        # Attention is torch's scaled_dot_product_attention without a mask, diffusers' default. torch then picks the
        # kernel by device, dtype and card: flash attention in half precision on CUDA and on a processor,
        # memory-efficient in float32 on CUDA. No other choice is faster everywhere, and none needs another library.
        network = folder.load_part(self.network_part, getattr(diffusers, self.network_class), dtype, device)
        self.network: Any = network.to(memory_format=memory_format_for(device))
        self.info = describe(self, name)
        self._ask: Network = self._asker(self.network)

    # ------------------------------------------------------------------------------ what a family says

    def check(self) -> None:  # noqa: B027 - most families have nothing to check
        """Raise `ValueError` for a folder whose parts do not fit each other; nothing is loaded yet."""

    @abstractmethod
    def encode(self, prompt: str) -> Embeds:
        """Encode one prompt as the family's pipeline does."""

    def encode_negative(self, prompt: str) -> Embeds:
        """Encode a negative prompt; as any other, unless the family's pipeline does otherwise."""
        return self._encode(prompt)

    @abstractmethod
    def ask(self, network: Any, rows: Rows) -> Tensor:
        """Return the network's prediction for each row, of the latents' shape."""

    @property
    @abstractmethod
    def default_size(self) -> tuple[int, int]:
        """Height and width that the network was made for, in picture pixels."""

    @property
    @abstractmethod
    def embeds_widths(self) -> tuple[int, int]:
        """D of the embeddings that the network takes, and P of the pooled ones; 0 where the family has none."""

    def more_info(self) -> dict[str, Any]:
        """Return the fields of `ModelInfo` that only some families set."""
        return {}

    def scheduler_config(self) -> dict[str, Any]:
        """Return the configuration of the model's own scheduler, as its pipeline uses it."""
        return self.folder.config("scheduler", "scheduler_config.json")

    # ------------------------------------------------------------------------------ `Model`

    @torch.inference_mode()
    def encode_prompt(self, prompt: str, negative_prompt: str = "", *, guided: bool) -> Conditioning:
        """Encode a prompt; the negative one only when `guided`. Tokens past the encoder's length are cut off.

        Raises:
            ValueError: The folder has no text encoder.
        """
        if not self.text_encoders:
            lacking = lacking_text_encoders(self.folder, len(self.text_encoder_classes), self.optional_text_encoders)
            raise ValueError(f"{self.folder.path} has no text encoder: add its {', '.join(lacking)} and tokenizers")
        positive = self._encode(prompt)
        if not guided or self.info.guidance_distilled:
            return Conditioning(prompt_embeds=positive.sequence, pooled_prompt_embeds=positive.pooled)
        negative = self.encode_negative(negative_prompt)
        return Conditioning(
            prompt_embeds=positive.sequence,
            pooled_prompt_embeds=positive.pooled,
            negative_prompt_embeds=negative.sequence,
            negative_pooled_prompt_embeds=negative.pooled,
        )

    @torch.inference_mode()
    def compile(self, sizes: Sequence[int], *, on_size: OnSize) -> None:
        """Compile the network for pictures of the default size and prompts of its own encoder; see `Model`."""
        latents = torch.zeros(self.latents_shape(0, 0, 1), device=self.device, dtype=self.dtype)
        conditioning = self.encode_prompt("", guided=False)
        sample = self._rows([Evaluation(latents=latents, timestep=1.0, conditioning=conditioning)])
        # With CUDA graphs: a step of a small batch is as long as the launching of its kernels.
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        network = torch.compile(self.network, mode=mode, dynamic=False, fullgraph=True)
        compiled = CompiledNetwork(self._ask, self._asker(network), sample=sample.tensors, sizes=sizes)
        compiled.compile(on_size)
        self._ask = compiled

    @torch.inference_mode()
    def evaluate(self, evaluations: Sequence[Evaluation]) -> list[Tensor]:
        """Ask the network in one forward pass; rows are the guided evaluations' negative prompts, then every prompt.

        Returns:
            For each evaluation the guided prediction, of its latents' shape, float32, of `info.prediction_type`.

        Raises:
            ValueError: A guidance scale above 1 without a negative prompt, of a network that needs one.
        """
        for each in evaluations:
            if each.guidance_scale > 1.0 and not (each.guided or self.info.guidance_distilled):
                raise ValueError(f"guidance_scale {each.guidance_scale} needs negative_prompt_embeds")
        num_negative = sum(len(each.latents) for each in evaluations if each.guided)
        rows = self._ask(*self._rows(evaluations).tensors)
        negative, positive = rows[:num_negative], rows[num_negative:]
        predictions: list[Tensor] = []
        # Sessions that want the same guidance get it in one go: on a GPU a few launches a session add up.
        for (guided, scale, rescale), same in groupby(
            evaluations, lambda each: (each.guided, each.guidance_scale, each.guidance_rescale)
        ):
            sizes = [len(each.latents) for each in same]
            prediction, positive = positive[: sum(sizes)], positive[sum(sizes) :]
            if guided:
                unwanted, negative = negative[: sum(sizes)], negative[sum(sizes) :]
                prediction = guide(unwanted, prediction, scale, rescale)
            predictions += prediction.split(sizes)
        return predictions

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> NDArray[Any]:
        """Turn clean latents `[B, C, H, W]` (scheduler scaling) into pictures `[B, H, W, 3]`, uint8 RGB."""
        return to_pixels(self.vae.decode(latents))

    def latents_shape(self, height: int, width: int, num_images: int, num_frames: int = 0) -> tuple[int, ...]:
        """Return `[B, C, H, W]` for pictures of `height` x `width` pixels; 0 is the model's default.

        Raises:
            ValueError: If the size is not a positive multiple of `size_multiple`, or frames are asked for.
        """
        if num_frames:
            raise ValueError(f"num_frames is for video models; {self.info.name} makes pictures")
        return num_images, self.info.latent_channels, *self._latent_size(height, width, num_images)

    # ------------------------------------------------------------------------------ inside

    @property
    def size_multiple(self) -> int:
        """What height and width must be multiples of, in pixels."""
        return self.info.vae_scale_factor

    def _latent_size(self, height: int, width: int, num_images: int) -> tuple[int, int]:
        multiple, factor = self.size_multiple, self.info.vae_scale_factor
        height, width = height or self.info.default_height, width or self.info.default_width
        if height < 1 or width < 1 or height % multiple or width % multiple:
            raise ValueError(f"height and width must be multiples of {multiple} for this model, not {height} x {width}")
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, not {num_images}")
        return height // factor, width // factor

    def _asker(self, network: Any) -> Network:
        def ask(*tensors: Tensor) -> Tensor:
            return self.ask(network, Rows(*tensors)).float()

        return ask

    def _rows(self, evaluations: Sequence[Evaluation]) -> Rows:
        asked = [
            (each, each.conditioning.negative_prompt_embeds, each.conditioning.negative_pooled_prompt_embeds)
            for each in evaluations
            if each.guided
        ]
        asked += [
            (each, each.conditioning.prompt_embeds, each.conditioning.pooled_prompt_embeds) for each in evaluations
        ]
        latents = torch.cat([each.latents for each, _, _ in asked]).to(self.device, self.dtype)
        counts = [len(each.latents) for each, _, _ in asked]
        timesteps = [each.timestep for each, _, _ in asked for _ in each.latents]
        guidance_scales = [each.guidance_scale for each, _, _ in asked for _ in each.latents]
        embeds, pooled = [embeds for _, embeds, _ in asked], [pooled for _, _, pooled in asked]
        return Rows(
            latents=in_memory_format(latents),
            timesteps=on_device(timesteps, self.device),
            guidance_scales=on_device(guidance_scales, self.device),
            prompt_embeds=self._repeated(embeds, counts),
            pooled_prompt_embeds=None if pooled[0] is None else self._repeated(pooled, counts),
        )

    def _repeated(self, rows: Sequence[Tensor | None], counts: Sequence[int]) -> Tensor:
        given = [row for row in rows if row is not None]
        expanded = [row.expand(count, *row.shape[1:]) for row, count in zip(given, counts, strict=True)]
        return torch.cat(expanded).to(self.device, self.dtype)

    @functools.cached_property
    def _empty(self) -> Embeds:
        # What nearly every negative prompt is. No other prompt is kept: who asks twice could tell by the time it takes.
        return self.encode("")

    def _encode(self, prompt: str) -> Embeds:
        return self.encode(prompt) if prompt else self._empty
