"""The published models and the pairs of them that people run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from bench.pairs import parts
from bench.pairs.parts import Config

CLIP, CLIP_PROJECTED, T5, UMT5 = "CLIPTextModel", "CLIPTextModelWithProjection", "T5EncoderModel", "UMT5EncoderModel"


@dataclass(frozen=True, kw_only=True)
class PublishedModel:
    """A model on the hub, without its weights.

    Attributes:
        hub_id: What `--cloud-model` and `--edge-model` take.
        pipeline: Its class in diffusers.
        network: Configuration of its network.
        vae: Of its VAE.
        scheduler: Of its scheduler.
        text_encoders: Class and configuration of each, in order.
        said_parameters: What its makers say that the network has; in billions.
        licence: As its makers call it.
    """

    hub_id: str
    pipeline: str
    network: Config
    vae: Config
    scheduler: Config
    text_encoders: tuple[tuple[str, Config], ...]
    said_parameters: float
    licence: str


@dataclass(frozen=True, kw_only=True)
class Pair:
    """Two models and what is known of running them together.

    Attributes:
        cloud: The large one.
        edge: The small one.
        paper: EC-Diff's parameters for the pair, as command line options; None where a search is needed.
    """

    cloud: PublishedModel
    edge: PublishedModel
    paper: Mapping[str, float] | None = None


def _sd(hub_id: str, network: Config, clip: Config, said: float, licence: str) -> PublishedModel:
    return PublishedModel(
        hub_id=hub_id,
        pipeline="StableDiffusionPipeline",
        network=network,
        vae=parts.SD_VAE,
        scheduler=parts.PNDM,
        text_encoders=((CLIP, clip),),
        said_parameters=said,
        licence=licence,
    )


def _sdxl(hub_id: str, network: Config, said: float, licence: str) -> PublishedModel:
    return PublishedModel(
        hub_id=hub_id,
        pipeline="StableDiffusionXLPipeline",
        network=network,
        vae=parts.SDXL_VAE,
        scheduler=parts.EULER,
        text_encoders=((CLIP, parts.CLIP_L), (CLIP_PROJECTED, parts.CLIP_BIG_G)),
        said_parameters=said,
        licence=licence,
    )


def _cogvideox(
    hub_id: str, network: Config, vae: Config, scheduler: Config, said: float, licence: str
) -> PublishedModel:
    return PublishedModel(
        hub_id=hub_id,
        pipeline="CogVideoXPipeline",
        network=network,
        vae=vae,
        scheduler=scheduler,
        text_encoders=((T5, parts.T5_XXL),),
        said_parameters=said,
        licence=licence,
    )


def _sd3(hub_id: str, network: Config, said: float) -> PublishedModel:
    clips = ((CLIP_PROJECTED, parts.CLIP_L), (CLIP_PROJECTED, parts.CLIP_BIG_G))
    return PublishedModel(
        hub_id=hub_id,
        pipeline="StableDiffusion3Pipeline",
        network=network,
        vae=parts.SD3_VAE,
        scheduler=parts.SD3_FLOW,
        text_encoders=(*clips, (T5, parts.T5_XXL)),
        said_parameters=said,
        licence="Stability AI Community",
    )


def _flux(hub_id: str, network: Config, scheduler: Config, said: float, licence: str) -> PublishedModel:
    return PublishedModel(
        hub_id=hub_id,
        pipeline="FluxPipeline",
        network=network,
        vae=parts.FLUX_VAE,
        scheduler=scheduler,
        text_encoders=((CLIP, parts.CLIP_L), (T5, parts.T5_XXL)),
        said_parameters=said,
        licence=licence,
    )


def _wan(hub_id: str, network: Config, said: float) -> PublishedModel:
    return PublishedModel(
        hub_id=hub_id,
        pipeline="WanPipeline",
        network=network,
        vae=parts.WAN_VAE,
        scheduler=parts.WAN_UNIPC,
        text_encoders=((UMT5, parts.UMT5_XXL),),
        said_parameters=said,
        licence="Apache-2.0",
    )


_OPENRAIL, _OPENRAIL_PLUS, _DEV = "CreativeML OpenRAIL-M", "CreativeML OpenRAIL++-M", "FLUX.1 [dev] Non-Commercial"
_SD_14 = _sd("CompVis/stable-diffusion-v1-4", parts.SD_1_UNET, parts.CLIP_L, 0.86, _OPENRAIL)
_BK_TINY = _sd("nota-ai/bk-sdm-tiny", parts.BK_SDM_TINY_UNET, parts.CLIP_L, 0.33, _OPENRAIL)
_SD_21 = _sd("stabilityai/stable-diffusion-2-1-base", parts.SD_2_UNET, parts.CLIP_H, 0.87, _OPENRAIL_PLUS)
_BK_V2 = _sd("nota-ai/bk-sdm-v2-tiny", parts.BK_SDM_V2_TINY_UNET, parts.CLIP_H, 0.33, _OPENRAIL)
_SDXL = _sdxl("stabilityai/stable-diffusion-xl-base-1.0", parts.SDXL_UNET, 2.6, _OPENRAIL_PLUS)
_SSD_1B = _sdxl("segmind/SSD-1B", parts.SSD_1B_UNET, 1.3, "Apache-2.0")
_VEGA = _sdxl("segmind/Segmind-Vega", parts.VEGA_UNET, 0.74, "Apache-2.0")
_COG_5B = _cogvideox(
    "THUDM/CogVideoX-5b", parts.COGVIDEOX_5B, parts.COGVIDEOX_5B_VAE, parts.COGVIDEOX_5B_DPM, 5.6, "CogVideoX"
)
_COG_2B = _cogvideox(
    "THUDM/CogVideoX-2b", parts.COGVIDEOX_2B, parts.COGVIDEOX_2B_VAE, parts.COGVIDEOX_2B_DDIM, 1.7, "Apache-2.0"
)
_SD35_LARGE = _sd3("stabilityai/stable-diffusion-3.5-large", parts.SD35_LARGE, 8.1)
# Its makers say 2.5 billion of the model; what they count beside the transformer is not told here.
_SD35_MEDIUM = _sd3("stabilityai/stable-diffusion-3.5-medium", parts.SD35_MEDIUM, 2.2)
_FLUX_DEV = _flux("black-forest-labs/FLUX.1-dev", parts.FLUX_DEV, parts.DEV_FLOW, 12, _DEV)
_FLUX_LITE = _flux("Freepik/flux.1-lite-8B", parts.FLUX_LITE, parts.DEV_FLOW, 8, _DEV)
_SCHNELL = _flux("black-forest-labs/FLUX.1-schnell", parts.FLUX_SCHNELL, parts.SCHNELL_FLOW, 12, "Apache-2.0")
_WAN_14B = _wan("Wan-AI/Wan2.1-T2V-14B-Diffusers", parts.WAN_14B, 14)
_WAN_1_3B = _wan("Wan-AI/Wan2.1-T2V-1.3B-Diffusers", parts.WAN_1_3B, 1.4)


def _paper(warmup_steps: int, skip_interval: int, smoothing: float, handoff_step: int) -> dict[str, float]:
    return {
        "warmup-steps": warmup_steps,
        "skip-interval": skip_interval,
        "smoothing": smoothing,
        "handoff-step": handoff_step,
    }


PAIRS: dict[str, Pair] = {
    "SD 1.4 + BK-SDM-Tiny": Pair(cloud=_SD_14, edge=_BK_TINY, paper=_paper(7, 2, 0.3, 37)),
    "SD 2.1 + BK-SDM-v2-Tiny": Pair(cloud=_SD_21, edge=_BK_V2),
    "SDXL + SSD-1B": Pair(cloud=_SDXL, edge=_SSD_1B, paper=_paper(6, 5, 0.2, 36)),
    "SDXL + Segmind-Vega": Pair(cloud=_SDXL, edge=_VEGA),
    "SD 3.5 large + medium": Pair(cloud=_SD35_LARGE, edge=_SD35_MEDIUM),
    "FLUX.1 dev + lite 8B": Pair(cloud=_FLUX_DEV, edge=_FLUX_LITE),
    "FLUX.1 dev + schnell": Pair(cloud=_FLUX_DEV, edge=_SCHNELL),
    "CogVideoX 5B + 2B": Pair(cloud=_COG_5B, edge=_COG_2B, paper=_paper(10, 3, 0.2, 38)),
    "Wan 2.1 14B + 1.3B": Pair(cloud=_WAN_14B, edge=_WAN_1_3B),
}
"""By what people call them. `paper` are 50 DDIM steps (arXiv 2507.11980 and its authors' code)."""
