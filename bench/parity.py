"""`python -m bench.parity`: every family against stock diffusers pipelines, on tiny random-weight models.

Each family's `cloud` mode against the stock pipeline of the same model, seed and scheduler, and a handoff against the
two stock pipelines run by hand: the large one up to the step, the small one from its latents on. Differences are
`max |ours - theirs| / std(theirs)` of the final latents, float32.
"""

from __future__ import annotations

import copy
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


_VIDEO = {"height": 80, "width": 64, "num_frames": 9}
SUBJECTS: dict[str, Subject] = {
    "sd": Subject(),
    "sdxl": Subject(),
    "sd3": Subject(),
    "flux": Subject(size={"height": 128, "width": 192}, negative_prompt=None),
    "flux-schnell": Subject(size={"height": 128, "width": 192}, negative_prompt=None),
    "cogvideox": Subject(size=_VIDEO),
    "cogvideox-2b": Subject(size={**_VIDEO, "height": 64, "width": 96}),
    "cogvideox-1.5": Subject(size=_VIDEO),
    "wan": Subject(size=_VIDEO),
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


@dataclass(frozen=True)
class StockStep:
    """What a stock pipeline has after a step.

    Attributes:
        latents: As it keeps them.
        scheduler: Its scheduler, with whatever that remembers.
    """

    latents: Tensor
    scheduler: Any


def stock_steps(
    pipeline: Any, subject: Subject, *, num_images: int = 1, taken_over: StockStep | None = None
) -> list[StockStep]:
    """Run a stock pipeline and return what it had after each step.

    Args:
        pipeline: Of diffusers.
        subject: What it is asked for.
        num_images: Of the prompt.
        taken_over: Stands in for its own before `HANDOFF_STEP`.
    """
    made: list[StockStep] = []

    def after(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        latents = tensors["latents"]
        if step == HANDOFF_STEP - 1 and taken_over is not None:
            latents, pipeline.scheduler = taken_over.latents, copy.deepcopy(taken_over.scheduler)
        made.append(StockStep(latents.clone(), copy.deepcopy(pipeline.scheduler)))
        return {"latents": latents}

    given = {} if subject.negative_prompt is None else {"negative_prompt": [subject.negative_prompt] * num_images}
    pipeline(
        [PROMPT] * num_images,
        num_inference_steps=NUM_STEPS,
        guidance_scale=subject.guidance_scale,
        generator=[torch.Generator().manual_seed(SEED + index) for index in range(num_images)],
        output_type="latent",
        callback_on_step_end=after,
        **given,
        **subject.size,
    )
    return made


def stock_latents(pipeline: Any, subject: Subject, *, num_images: int = 1) -> Tensor:
    """Return the final latents of a stock pipeline, as it keeps them; see `stock_steps`."""
    return stock_steps(pipeline, subject, num_images=num_images)[-1].latents


def stock_handoff(large: Any, small: Any, subject: Subject) -> Tensor:
    """Return the final latents of both stock pipelines run by hand; the second goes on with the first's scheduler."""
    early = stock_steps(large, subject)[HANDOFF_STEP - 1]
    return stock_steps(small, subject, taken_over=early)[-1].latents


def unpacked(pipeline: Any, latents: Tensor, shape: tuple[int, ...]) -> Tensor:
    """Return a stock pipeline's latents as ours: FLUX's keeps them packed."""
    if latents.shape == shape:
        return latents
    factor = pipeline.vae_scale_factor
    plain: Tensor = pipeline._unpack_latents(latents, shape[-2] * factor, shape[-1] * factor, factor)
    return plain


def our_latents(large: Model, small: Model, subject: Subject, *, handoff_step: int, num_images: int = 1) -> Tensor:
    """Return our final latents: `large` before `handoff_step`, then `small`, driven by the large model's scheduler."""
    height, width, num_frames = (subject.size.get(name, 0) for name in ("height", "width", "num_frames"))
    shape = large.latents_shape(height, width, num_images, num_frames)
    config, own = scheduler_config_at(large.info.scheduler_config, shape), large.info.scheduler_class
    stepper = Stepper(*scheduler_for(default_scheduler(own, config), config, own_class=own), NUM_STEPS)
    trajectory = Trajectory(draw_noise(shape, SEED) * stepper.schedule.init_noise_sigma, stepper, dtype=large.dtype)
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
        "stock": difference(alone, unpacked(stock, stock_latents(stock, subject), shape)),
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
