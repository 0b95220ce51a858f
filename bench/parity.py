"""`python -m bench.parity`: every family against stock diffusers pipelines, on tiny random-weight models.

Each family's `cloud` mode against the stock pipeline of the same model, seed and scheduler, and a handoff against the
two stock pipelines run by hand: the large one up to the step, the small one from its latents on. Differences are
`max |ours - theirs| / std(theirs)` of the final latents, float32.
"""

from __future__ import annotations

import json
import tempfile
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from bench.machine import RESULTS, machine_line, write_results
from diffusion.loading import load_model
from diffusion.model import Evaluation, Model
from diffusion.noise import draw_noise
from diffusion.predictors import make_predictor
from diffusion.scheduler_config import default_scheduler, scheduler_config_at, scheduler_for
from diffusion.schedulers import Stepper
from diffusion.trajectory import Trajectory, denoise
from models.tiny.build import build

PROMPT, SEED, NUM_STEPS, HANDOFF_STEP = "a cat on a mat", 11, 6, 4
BOUND = 1e-4
_RECORDED = Path(__file__).resolve().parents[1] / "tests" / "data"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One family as it is compared.

    Attributes:
        guidance_scale: As its users start.
        size: What both sides are asked for.
        negative_prompt: None: not given. diffusers' SDXL takes that for zeros.
    """

    guidance_scale: float = 5.0
    size: Mapping[str, int] = field(default_factory=dict)
    negative_prompt: str | None = "a dog"


SUBJECTS: dict[str, Subject] = {
    "sd": Subject(),
    "sdxl": Subject(),
    "sd3": Subject(),
    "flux": Subject(size={"height": 128, "width": 192}, negative_prompt=None),
    "flux-schnell": Subject(size={"height": 128, "width": 192}, negative_prompt=None),
}
"""By the name in `models.tiny.build`."""


def stock_pipeline(folder: Path, **parts: Any) -> Any:
    """Return diffusers' own pipeline of a folder; `parts` stand for the folder's."""
    from diffusers import DiffusionPipeline

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        pipeline = DiffusionPipeline.from_pretrained(folder, **parts)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def stock_latents(
    pipeline: Any, subject: Subject, *, num_images: int = 1, replaced: Mapping[int, Tensor] | None = None
) -> list[Tensor]:
    """Return what the stock pipeline made after each step, as it keeps it.

    Args:
        pipeline: Of diffusers.
        subject: What it is asked for.
        num_images: Of the prompt.
        replaced: Step -> latents to go on with after it, instead of its own.
    """
    made: list[Tensor] = []

    def after(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        latents = (replaced or {}).get(step, tensors["latents"])
        made.append(latents.clone())
        return {"latents": latents}

    given = {} if subject.negative_prompt is None else {"negative_prompt": subject.negative_prompt}
    pipeline(
        PROMPT,
        num_inference_steps=NUM_STEPS,
        guidance_scale=subject.guidance_scale,
        num_images_per_prompt=num_images,
        generator=[torch.Generator().manual_seed(SEED + index) for index in range(num_images)],
        output_type="latent",
        callback_on_step_end=after,
        **given,
        **subject.size,
    )
    return made


def stock_handoff(large: Any, small: Any, subject: Subject) -> Tensor:
    """Return the final latents of both stock pipelines run by hand; neither scheduler keeps a history."""
    early = stock_latents(large, subject)[HANDOFF_STEP - 1]
    return stock_latents(small, subject, replaced={HANDOFF_STEP - 1: early})[-1]


def unpacked(pipeline: Any, latents: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a stock pipeline's latents as ours: FLUX's keeps them packed."""
    if latents.dim() == len(shape):
        return latents
    factor = pipeline.vae_scale_factor
    plain: Tensor = pipeline._unpack_latents(latents, shape[-2] * factor, shape[-1] * factor, factor)
    return plain


def our_latents(large: Model, small: Model, subject: Subject, *, handoff_step: int, num_images: int = 1) -> Tensor:
    """Return our final latents: `large` before `handoff_step`, then `small`, driven by the large model's scheduler."""
    shape = large.latents_shape(subject.size.get("height", 0), subject.size.get("width", 0), num_images)
    config, own = scheduler_config_at(large.info.scheduler_config, shape), large.info.scheduler_class
    stepper = Stepper(*scheduler_for(default_scheduler(own, config), config, own_class=own), NUM_STEPS)
    trajectory = Trajectory(draw_noise(shape, SEED) * stepper.schedule.init_noise_sigma, stepper)
    guided = subject.guidance_scale > 1
    negative = subject.negative_prompt or ""
    prompts = {model: model.encode_prompt(PROMPT, negative, guided=guided) for model in (large, small)}

    def evaluate(now: Trajectory) -> Tensor:
        model = large if now.step_index < handoff_step else small
        asked = Evaluation(
            latents=now.model_input(),
            timestep=now.timestep,
            conditioning=prompts[model],
            guidance_scale=subject.guidance_scale,
        )
        return model.evaluate([asked])[0]

    *_, last = denoise(trajectory, evaluate, lambda step: True, stop_step=NUM_STEPS)
    return last.latents


def difference(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference over the reference's standard deviation."""
    return float((ours - theirs).abs().max() / theirs.std())


def golden_difference(folder: Path) -> float | None:
    """Return the difference to the recorded EC-Diff trajectory of the paper's own code; None where there is none.

    Args:
        folder: With `cases.json` and both models, as `tests/data/README.md` describes it.
    """
    if not (folder / "cases.json").is_file():
        return None
    case = next(each for each in json.loads((folder / "cases.json").read_text()) if each["name"] == "ecdiff")
    models = {"C": load_model(folder / "cloud", device="cpu"), "e": load_model(folder / "edge", device="cpu")}
    guided = case["guidance_scale"] > 1
    prompts = {
        letter: model.encode_prompt(case["prompt"], case["negative_prompt"] or "", guided=guided)
        for letter, model in models.items()
    }
    noise = torch.from_numpy(np.load(folder / case["initial_latents"]))
    info = models["C"].info
    config = scheduler_config_at(info.scheduler_config, noise.shape)
    stepper = Stepper(*scheduler_for("ddim", config, own_class=info.scheduler_class), case["num_inference_steps"])
    predictor = make_predictor(
        "ecdiff", stepper.schedule, prediction_type=stepper.prediction_type, smoothing=case["smoothing"]
    )
    trajectory = Trajectory(noise * stepper.schedule.init_noise_sigma, stepper, predictor=predictor)
    for letter in case["step_sources"]:
        if letter == "x":
            trajectory.extrapolate()
            continue
        asked = Evaluation(
            latents=trajectory.model_input(),
            timestep=trajectory.timestep,
            conditioning=prompts[letter],
            guidance_scale=case["guidance_scale"],
        )
        trajectory.advance(models[letter].evaluate([asked])[0], prediction_type=models[letter].info.prediction_type)
    return difference(trajectory.latents, torch.from_numpy(np.load(folder / case["final_latents"])))


def compare(name: str, folder: Path) -> dict[str, float | None]:
    """Return the differences of one family: `stock`, `handoff` and `golden`.

    Args:
        name: One of `SUBJECTS`.
        folder: For its two tiny models.
    """
    subject, folders = SUBJECTS[name], (folder / name / "large", folder / name / "small")
    for where in folders:
        build(name, where, size=where.name)
    large, small = (load_model(where, device="cpu", dtype="float32") for where in folders)
    stock, stock_small = (stock_pipeline(where) for where in folders)
    alone = our_latents(large, small, subject, handoff_step=NUM_STEPS)
    handed = our_latents(large, small, subject, handoff_step=HANDOFF_STEP)
    shape = tuple(alone.shape)
    return {
        "stock": difference(alone, unpacked(stock, stock_latents(stock, subject)[-1], shape)),
        "handoff": difference(handed, unpacked(stock, stock_handoff(stock, stock_small, subject), shape)),
        "golden": golden_difference(_RECORDED / f"{name}-tiny"),
    }


@click.command()
@click.option("--output", type=click.Path(path_type=Path, file_okay=False), default=RESULTS, show_default=True)
def main(output: Path) -> None:
    """Compare every family with the stock pipelines of diffusers, on tiny random-weight models."""
    console = Console(highlight=False)
    table = Table("family", "stock diffusers", "handoff by hand", "golden EC-Diff", title=machine_line())
    differences: dict[str, dict[str, float | None]] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in SUBJECTS:
            with console.status(f"{name}: two tiny models, ours and stock"):
                differences[name] = compare(name, Path(folder))
            found = differences[name]
            table.add_row(name, *("-" if value is None else f"{value:.1e}" for value in found.values()))
    console.print(table)
    click.echo(f"wrote {write_results('parity', {'bound': BOUND, 'differences': differences}, output)}")
    worst = max(value for found in differences.values() for value in found.values() if value is not None)
    if worst > BOUND:
        raise SystemExit(f"error: a difference of {worst:.1e}, above {BOUND:.0e}")


if __name__ == "__main__":
    main()
