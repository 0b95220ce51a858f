"""One module per model family: `load(folder, name=..., device=..., dtype=...) -> Model`."""

FAMILIES: dict[str, str] = {"StableDiffusionPipeline": "diffusion.families.sd"}
"""Pipeline class in model_index.json -> module, imported when such a model is loaded."""
