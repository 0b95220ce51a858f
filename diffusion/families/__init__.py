"""One module per model family, with one class: a `FamilyModel`."""

FAMILIES: dict[str, str] = {
    "CogVideoXPipeline": "diffusion.families.cogvideox:CogVideoX",
    "FluxPipeline": "diffusion.families.flux:Flux",
    "StableDiffusionPipeline": "diffusion.families.sd:StableDiffusion",
    "StableDiffusion3Pipeline": "diffusion.families.sd3:StableDiffusion3",
    "StableDiffusionXLPipeline": "diffusion.families.sdxl:StableDiffusionXL",
    "WanPipeline": "diffusion.families.wan:Wan",
}
"""Pipeline class in model_index.json -> module and class, imported when such a model is loaded."""

FROM_PICTURES = ("sd", "sdxl")
"""Families that start from a picture."""
