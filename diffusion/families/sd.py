"""Stable Diffusion 1.x and 2.x, and every model in their layout: CLIP text encoder, conditional UNet, VAE."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from functools import cached_property
from itertools import groupby
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from diffusion.compiled import CompiledNetwork, Network, OnSize
from diffusion.devices import memory_format_for, on_device
from diffusion.guidance import guide
from diffusion.model import Conditioning, Evaluation, ModelInfo
from diffusion.pipeline_folder import PipelineFolder, canonical_json
from diffusion.scheduler_config import PREDICTION_TYPES

FAMILY = "sd"
_VAE_CLASSES = ("AutoencoderKL", "AutoencoderTiny")
# What a UNet may not want: inputs that this pipeline does not have.
_FOREIGN_INPUTS = (
    "class_embed_type",
    "num_class_embeds",
    "addition_embed_type",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
)


def load(folder: PipelineFolder, *, name: str, device: torch.device, dtype: torch.dtype) -> StableDiffusion:
    """Load a `StableDiffusionPipeline` folder; text encoder and VAE follow when they are first needed.

    Raises:
        ValueError: If a part is missing, damaged or of a kind that this family does not run.
    """
    from diffusers import UNet2DConditionModel

    folder.part_class("unet", ("UNet2DConditionModel",))
    folder.part_class("text_encoder", ("CLIPTextModel",))
    folder.part_class("tokenizer", ("CLIPTokenizer", "CLIPTokenizerFast"))
    folder.part_class("vae", _VAE_CLASSES)
    _check_unet(folder)
    # Its attention is torch's scaled_dot_product_attention without a mask, diffusers' default (`set_attention_backend`
    # is for its newer attention classes, which these UNets do not have). torch then picks the kernel by device, dtype
    # and card: flash attention in half precision on CUDA and on a processor, memory-efficient in float32 on CUDA. No
    # other choice is faster everywhere, and none needs another library.
    unet = folder.load_part("unet", UNet2DConditionModel, dtype, device)
    unet = unet.to(memory_format=memory_format_for(device))
    return StableDiffusion(folder, unet, _describe(folder, unet, name=name, device=device, dtype=dtype))


class StableDiffusion:
    """The family's `Model`.

    Args:
        folder: Where text encoder, tokenizer and VAE are read from when first needed.
        unet: The denoising network, on its device.
        info: The description.
    """

    def __init__(self, folder: PipelineFolder, unet: Any, info: ModelInfo) -> None:
        self._folder = folder
        self._unet = unet
        self.info = info
        self.device: torch.device = unet.device
        self.dtype: torch.dtype = unet.dtype
        self._network: Network = functools.partial(_ask, unet)

    @torch.inference_mode()
    def encode_prompt(self, prompt: str, negative_prompt: str = "", *, guided: bool) -> Conditioning:
        """Encode a prompt; the negative one only when `guided`. Tokens past the encoder's length are cut off."""
        return Conditioning(
            prompt_embeds=self._encode(prompt),
            negative_prompt_embeds=self._encode(negative_prompt) if guided else None,
        )

    @torch.inference_mode()
    def compile(self, sizes: Sequence[int], *, on_size: OnSize) -> None:
        """Compile the UNet for pictures of the default size and prompts of its own encoder; see `Model`."""
        latents = torch.zeros(self.latents_shape(0, 0, 1), device=self.device, dtype=self.dtype)
        sample = (latents, on_device([1.0], self.device), self._encode(""))
        # With CUDA graphs: a step of a small batch is as long as the launching of its kernels.
        mode = "reduce-overhead" if self.device.type == "cuda" else "default"
        unet = torch.compile(self._unet, mode=mode, dynamic=False, fullgraph=True)
        compiled = CompiledNetwork(self._network, functools.partial(_ask, unet), sample=sample, sizes=sizes)
        compiled.compile(on_size)
        self._network = compiled

    @torch.inference_mode()
    def evaluate(self, evaluations: Sequence[Evaluation]) -> list[Tensor]:
        """Ask the UNet in one forward pass; rows are the guided evaluations' negative prompts, then every prompt.

        Returns:
            For each evaluation the guided prediction `[B, C, H, W]`, float32, of `info.prediction_type`.
        """
        asked = [
            (each, embeds)
            for each in evaluations
            if each.guided and (embeds := each.conditioning.negative_prompt_embeds) is not None
        ]
        num_negative = sum(len(each.latents) for each, _ in asked)
        asked += [(each, each.conditioning.prompt_embeds) for each in evaluations]
        rows = self._network(
            torch.cat([each.latents for each, _ in asked]).to(
                self.device, self.dtype, memory_format=memory_format_for(self.device)
            ),
            on_device([each.timestep for each, _ in asked for _ in each.latents], self.device),
            torch.cat([embeds.expand(len(each.latents), -1, -1) for each, embeds in asked]).to(self.device, self.dtype),
        )
        negative, positive = rows[:num_negative], rows[num_negative:]
        predictions: list[Tensor] = []
        # Sessions that want the same guidance get it in one go: on a GPU a few launches a session add up.
        for (scale, rescale), same in groupby(evaluations, lambda each: (each.guidance_scale, each.guidance_rescale)):
            sizes = [len(each.latents) for each in same]
            prediction, positive = positive[: sum(sizes)], positive[sum(sizes) :]
            if scale > 1.0:
                unwanted, negative = negative[: sum(sizes)], negative[sum(sizes) :]
                prediction = guide(unwanted, prediction, scale, rescale)
            predictions += prediction.split(sizes)
        return predictions

    @torch.inference_mode()
    def decode(self, latents: Tensor) -> NDArray[Any]:
        """Turn clean latents `[B, C, H, W]` (scheduler scaling) into pictures `[B, H, W, 3]`, uint8 RGB."""
        unscaled = latents.to(self.device, self._vae.dtype) / self.info.vae_scaling_factor + self.info.vae_shift_factor
        pictures = self._vae.decode(unscaled, return_dict=False)[0].float()
        pixels = (pictures / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return pixels.permute(0, 2, 3, 1).cpu().numpy()  # type: ignore[no-any-return]

    def latents_shape(self, height: int, width: int, num_images: int) -> tuple[int, int, int, int]:
        """Return `[B, C, H, W]` for pictures of `height` x `width` pixels; 0 is the model's default.

        Raises:
            ValueError: If the size is not a positive multiple of `info.vae_scale_factor`.
        """
        factor = self.info.vae_scale_factor
        height, width = height or self.info.default_height, width or self.info.default_width
        if height < 1 or width < 1 or height % factor or width % factor:
            raise ValueError(f"height and width must be multiples of {factor} for this model, not {height} x {width}")
        if num_images < 1:
            raise ValueError(f"num_images must be at least 1, not {num_images}")
        return num_images, self.info.latent_channels, height // factor, width // factor

    @cached_property
    def _tokenizer(self) -> Any:
        from transformers import CLIPTokenizer

        return self._folder.load_tokenizer(CLIPTokenizer)

    @cached_property
    def _text_encoder(self) -> Any:
        from transformers import CLIPTextModel

        return self._folder.load_part("text_encoder", CLIPTextModel, self.dtype, self.device)

    @cached_property
    def _vae(self) -> Any:
        import diffusers

        class_name = self._folder.part_class("vae", _VAE_CLASSES)
        # A VAE with force_upcast overflows in half precision.
        upcast = bool(self._folder.config("vae").get("force_upcast", class_name == "AutoencoderKL"))
        dtype = torch.float32 if upcast else self.dtype
        return self._folder.load_part("vae", getattr(diffusers, class_name), dtype, self.device)

    @cached_property
    def _empty_embeds(self) -> Tensor:
        # What nearly every negative prompt is. No other prompt is kept: who asks twice could tell by the time it takes.
        return self._run_text_encoder("")

    def _encode(self, prompt: str) -> Tensor:
        return self._run_text_encoder(prompt) if prompt else self._empty_embeds

    def _run_text_encoder(self, prompt: str) -> Tensor:
        encoder = self._text_encoder
        length = min(self._tokenizer.model_max_length, encoder.config.max_position_embeddings)
        tokens = self._tokenizer(prompt, padding="max_length", max_length=length, truncation=True, return_tensors="pt")
        mask = tokens.attention_mask.to(self.device) if getattr(encoder.config, "use_attention_mask", False) else None
        embeds: Tensor = encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0]
        return embeds.to(self.dtype)


def _ask(unet: Any, latents: Tensor, timesteps: Tensor, prompt_embeds: Tensor) -> Tensor:
    prediction: Tensor = unet(latents, timesteps, encoder_hidden_states=prompt_embeds, return_dict=False)[0]
    return prediction.float()


def _check_unet(folder: PipelineFolder) -> None:
    unet, latent_channels = folder.config("unet"), folder.config("vae").get("latent_channels", 4)
    for key in ("in_channels", "out_channels"):
        if unet.get(key, 4) != latent_channels:
            raise ValueError(
                f"{folder.path}: the UNet's {key} is {unet.get(key, 4)}, the VAE's latents have {latent_channels}; "
                "inpainting and other models with extra channels are not supported"
            )
    foreign = [key for key in _FOREIGN_INPUTS if unet.get(key) is not None]
    if foreign:
        raise ValueError(
            f"{folder.path}: the UNet wants inputs that text-to-image does not have ({', '.join(foreign)})"
        )
    wanted, given = unet.get("cross_attention_dim", 1280), folder.config("text_encoder").get("hidden_size", 512)
    if wanted != given:
        raise ValueError(f"{folder.path}: the UNet wants embeddings of size {wanted}, the text encoder makes {given}")


def _describe(folder: PipelineFolder, unet: Any, *, name: str, device: torch.device, dtype: torch.dtype) -> ModelInfo:
    vae = folder.config("vae")
    # AutoencoderTiny names its blocks by side; both sides halve or double once between two blocks.
    blocks = vae.get("block_out_channels") or vae.get("decoder_block_out_channels")
    if not isinstance(blocks, list) or not blocks:
        raise ValueError(f"{folder.path}: the VAE's configuration has no block_out_channels")
    scale_factor = 2 ** (len(blocks) - 1)
    sample_size = unet.config.sample_size
    if sample_size is None:
        raise ValueError(f"{folder.path}: the UNet's configuration has no sample_size")
    rows, columns = sample_size if isinstance(sample_size, list | tuple) else (sample_size, sample_size)
    # StableDiffusionPipeline corrects the same two keys of outdated folders; latents are never clipped.
    scheduler = folder.config("scheduler", "scheduler_config.json") | {"steps_offset": 1, "clip_sample": False}
    prediction_type = scheduler.get("prediction_type", "epsilon")
    if prediction_type not in PREDICTION_TYPES:
        raise ValueError(
            f"{folder.path}: prediction_type {prediction_type!r} is not one of {', '.join(PREDICTION_TYPES)}"
        )
    tiny = folder.part_class("vae", _VAE_CLASSES) == "AutoencoderTiny"
    return ModelInfo(
        name=name,
        fingerprint=folder.fingerprint("unet", "diffusion_pytorch_model"),
        family=FAMILY,
        prediction_type=prediction_type,
        latent_channels=int(vae.get("latent_channels", 4)),
        layout="BCHW",
        vae_scale_factor=scale_factor,
        vae_scaling_factor=float(vae.get("scaling_factor", 1.0 if tiny else 0.18215)),
        vae_shift_factor=float(vae.get("shift_factor") or 0.0),
        vae_fingerprint=folder.fingerprint("vae", "diffusion_pytorch_model"),
        text_encoder_fingerprint=folder.fingerprint("text_encoder", "model", extra=_vocabulary(folder)),
        scheduler_class=str(scheduler.get("_class_name", "")),
        scheduler_config=canonical_json(scheduler),
        default_height=rows * scale_factor,
        default_width=columns * scale_factor,
        num_parameters=sum(parameter.numel() for parameter in unet.parameters()),
        dtype=str(dtype).removeprefix("torch."),
        device=device.type,
    )


def _vocabulary(folder: PipelineFolder) -> bytes:
    """Return the tokenizer files that decide which tokens a prompt becomes."""
    names = ("tokenizer.json", "vocab.json", "merges.txt")
    files = [folder.path / "tokenizer" / name for name in names]
    if not files[0].is_file() and not files[1].is_file():
        raise ValueError(f"{folder.path / 'tokenizer'} has neither tokenizer.json nor vocab.json")
    length = folder.config("tokenizer", "tokenizer_config.json").get("model_max_length")
    return b"\0".join(file.read_bytes() for file in files if file.is_file()) + f"\0{length}".encode()
