"""One module per model family, with one class: a `FamilyModel`."""

FAMILIES: dict[str, str] = {
    "StableDiffusionPipeline": "diffusion.families.sd:StableDiffusion",
    "StableDiffusionXLPipeline": "diffusion.families.sdxl:StableDiffusionXL",
}
"""Pipeline class in model_index.json -> module and class, imported when such a model is loaded."""
