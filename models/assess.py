"""How often the picture that was asked for is the nearest one: a rough, model-free measure of quality.

A generated picture is compared, at a quarter of its resolution, with every picture of its style. Where the
asked-for one is nearest, one most likely recognises it; there are about 280, so chance is 0.4 %.
"""

from dataclasses import dataclass
from pathlib import Path
from random import Random

from diffusers import StableDiffusionPipeline
from torch import Tensor
from torch.nn import functional as F

from models.autoencoder import psnr
from models.captions import plain_caption
from models.data import Icons
from models.sheets import generate, images_to_tensor
from models.tasks import as_tensor

BLUR = 4  # pixels averaged into one before comparing: outlines count, texture does not


@dataclass(frozen=True, kw_only=True)
class Assessment:
    """What one model made of some prompts.

    Attributes:
        top1: Share of prompts whose picture is the nearest.
        top5: Share of those among the five nearest.
        psnr: Generated against asked-for pictures at full resolution, in dB.
        ranks: Of each prompt's picture, from 0.
    """

    top1: float
    top5: float
    psnr: float
    ranks: dict[str, int]


def assess(
    pipeline: StableDiffusionPipeline,
    icons: Icons,
    *,
    guidance_scale: float,
    num_inference_steps: int = 50,
    held_out: bool = False,
    num_prompts: int = 96,
    seed: int = 0,
) -> Assessment:
    """Generate one picture for each of some captions, trained on or `held_out`, and rank the right ones."""
    candidates = [i for i in range(len(icons)) if icons.held_out[i] == held_out]
    chosen = Random(seed).sample(candidates, min(num_prompts, len(candidates)))
    prompts = [plain_caption(icons, i) for i in chosen]
    images = generate(
        pipeline, prompts, guidance_scale=guidance_scale, num_inference_steps=num_inference_steps, seed=seed
    )
    pictures = images_to_tensor(images)
    ranks = dict(zip(prompts, rank_pictures(pictures, icons, chosen), strict=True))
    return Assessment(
        top1=sum(rank < 1 for rank in ranks.values()) / len(ranks),
        top5=sum(rank < 5 for rank in ranks.values()) / len(ranks),
        psnr=psnr(pictures, as_tensor(icons)[chosen]),
        ranks=ranks,
    )


def rank_pictures(pictures: Tensor, icons: Icons, wanted: list[int]) -> list[int]:
    """Count, for each picture, the icons of the wanted one's style that are nearer than the wanted one.

    Args:
        pictures: `[N, 3, H, W]` in [-1, 1].
        icons: What they are compared with.
        wanted: Index into `icons` of what each picture should show.
    """
    blurred, real = _blur(pictures), _blur(as_tensor(icons))
    ranks = []
    for picture, index in zip(blurred, wanted, strict=True):
        rivals = [i for i, style in enumerate(icons.styles) if style == icons.styles[index]]
        distances = (real[rivals] - picture).square().mean(1)
        ranks.append(int((distances < distances[rivals.index(index)]).sum()))
    return ranks


def assess_pair(
    pair_dir: Path, icons: Icons, *, guidance_scales: tuple[float, ...], held_out: bool, num_prompts: int
) -> list[str]:
    """Assess both models at several guidance scales, one line each."""
    lines = []
    for name in ("cloud", "edge"):
        pipeline = StableDiffusionPipeline.from_pretrained(pair_dir / name)
        pipeline.set_progress_bar_config(disable=True)
        for guidance_scale in guidance_scales:
            result = assess(pipeline, icons, guidance_scale=guidance_scale, held_out=held_out, num_prompts=num_prompts)
            scores = f"top-1 {result.top1:.0%}, top-5 {result.top5:.0%}, PSNR {result.psnr:.1f} dB"
            lines.append(f"{name} guidance {guidance_scale:g}: {scores}")
            missed = [prompt for prompt, rank in result.ranks.items() if rank > 0]
            if missed:
                lines.append(f"  not the nearest: {'; '.join(missed)}")
    return lines


def _blur(pictures: Tensor) -> Tensor:
    return F.avg_pool2d(pictures, BLUR).flatten(1)
