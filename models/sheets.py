"""Sheets of sample pictures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderTiny, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from torch import Tensor
from transformers import CLIPTextModel, CLIPTokenizer

from models.unets import make_scheduler


def make_pipeline(
    vae: AutoencoderTiny, text_encoder: CLIPTextModel, tokenizer: CLIPTokenizer, unet: UNet2DConditionModel
) -> StableDiffusionPipeline:
    """Assemble the stock pipeline around the parts."""
    pipeline = StableDiffusionPipeline(
        vae=vae,
        text_encoder=text_encoder,
        tokenizer=tokenizer,
        unet=unet,
        scheduler=make_scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def generate(
    pipeline: StableDiffusionPipeline,
    prompts: list[str],
    *,
    guidance_scale: float,
    num_inference_steps: int = 25,
    seed: int = 0,
) -> list[Image.Image]:
    """Make one picture a prompt; the i-th takes the seed `seed + i`."""
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompts))]
    result = pipeline(
        prompts, guidance_scale=guidance_scale, num_inference_steps=num_inference_steps, generator=generators
    )
    images: list[Image.Image] = result.images
    return images


def to_images(pictures: Tensor) -> list[Image.Image]:
    """Pictures in [-1, 1], `[N, 3, H, W]`, as images."""
    pixels = ((pictures.float().clamp(-1, 1) + 1) * 127.5).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def images_to_tensor(images: Sequence[Image.Image]) -> Tensor:
    """The inverse of `to_images`."""
    return torch.stack([torch.from_numpy(np.array(image)) for image in images]).permute(0, 3, 1, 2).float() / 127.5 - 1


def save_sheet(rows: Sequence[Sequence[Image.Image]], path: Path) -> None:
    """Paste rows of equally large images into one picture."""
    width, height = rows[0][0].size
    sheet = Image.new("RGB", (width * max(map(len, rows)), height * len(rows)), "white")
    for top, row in enumerate(rows):
        for left, image in enumerate(row):
            sheet.paste(image, (left * width, top * height))
    path.parent.mkdir(parents=True, exist_ok=True)
    sheet.save(path)
