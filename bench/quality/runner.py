"""Runs a case on every prompt, and keeps what it made."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from bench.quality.cases import Case
from bench.quality.log_snr import LOG_SNR, LogSnrPair
from diffusion.compiled import OnSize
from diffusion.model import Conditioning, Evaluation, Model
from diffusion.prediction_types import convert_prediction
from diffusion.schedulers import Stepper
from diffusion.trajectory import StepResult
from orchestrator.in_process import InProcessPair
from wire.messages import Source


class Metered:
    """A model that notes how often and for how long it is asked; its scheduler may place the timesteps otherwise.

    Args:
        model: The model.
        spacing: `timestep_spacing` of its scheduler's configuration; None: its own.
    """

    def __init__(self, model: Model, spacing: str | None = None) -> None:
        self._model = model
        config = json.loads(model.info.scheduler_config)
        if spacing is not None:
            config["timestep_spacing"] = spacing
        self.info = replace(model.info, scheduler_config=json.dumps(config))
        self.device, self.dtype = model.device, model.dtype
        self.num_calls = 0
        self.seconds = 0.0

    def evaluate(self, evaluations: Sequence[Evaluation]) -> list[Tensor]:
        """See `Model`."""
        started = time.perf_counter()
        predictions = self._model.evaluate(evaluations)
        self.seconds += time.perf_counter() - started
        self.num_calls += 1
        return predictions

    def compile(self, sizes: Sequence[int], *, on_size: OnSize) -> None:
        """See `Model`."""
        self._model.compile(sizes, on_size=on_size)

    def encode_prompt(self, prompt: str, negative_prompt: str = "", *, guided: bool) -> Conditioning:
        """See `Model`."""
        return self._model.encode_prompt(prompt, negative_prompt, guided=guided)

    def decode(self, latents: Tensor) -> NDArray[Any]:
        """See `Model`."""
        return self._model.decode(latents)

    def latents_shape(self, height: int, width: int, num_images: int, num_frames: int = 0) -> tuple[int, ...]:
        """See `Model`."""
        return self._model.latents_shape(height, width, num_images, num_frames)


ROWS = ("latents", "denoised", "cloud_calls", "edge_steps", "handoff_steps")


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a case made, one row a (prompt, seed).

    Attributes:
        latents: Final latents `[N, C, H, W]`, float32, scheduler scaling.
        denoised: x0 as the last step saw it, likewise: the final latents without the noise that DDIM may leave.
        cloud_calls: Evaluations in the cloud, `[N]`.
        edge_steps: Steps on the edge model's own prediction, `[N]`.
        handoff_steps: First step that the edge led, `[N]`.
        cloud_seconds: In the large model, all rows together.
        wall_seconds: From noise to latents, all rows together.
        edge_step_seconds: A call of the small model, mean over batches; 0 where it was never asked.
    """

    latents: NDArray[np.float32]
    denoised: NDArray[np.float32]
    cloud_calls: NDArray[np.int64]
    edge_steps: NDArray[np.int64]
    handoff_steps: NDArray[np.int64]
    cloud_seconds: float
    wall_seconds: float
    edge_step_seconds: float


class Runner:
    """One pair on one set of prompts.

    Args:
        cloud: The large model.
        edge: The small one.
        prompts: One a row.
        seeds: One a row.
        guidance_scale: Of every case.
        folder: Where what was made is kept, under a name that says what it depends on.
        batch_size: Rows that are run together.
    """

    def __init__(
        self,
        cloud: Model,
        edge: Model,
        prompts: Sequence[str],
        seeds: Sequence[int],
        *,
        guidance_scale: float,
        folder: Path,
        batch_size: int,
    ) -> None:
        self.cloud, self.edge = cloud, edge
        self.prompts, self.seeds = list(prompts), list(seeds)
        self._guidance_scale = guidance_scale
        self._folder = folder
        self._batch_size = batch_size

    def is_made(self, case: Case) -> bool:
        """Whether all of a case is kept already."""
        return all(self._path(case, rows).is_file() for rows in self._batches(case))

    def run(self, case: Case, on_rows: Callable[[int], object] = lambda num_rows: None) -> Made:
        """Return what a case makes, as far as it is there from the folder.

        Args:
            case: What to run.
            on_rows: Told of rows as they are made.
        """
        parts = []
        for rows in self._batches(case):
            path = self._path(case, rows)
            if not path.is_file():
                _keep(self._make(case, rows), path)
                on_rows(len(self.prompts[rows]))
            parts.append(_kept(path))
        return _joined(parts)

    def _batches(self, case: Case) -> list[slice]:
        size = 1 if case.per_prompt else self._batch_size
        return [slice(start, start + size) for start in range(0, len(self.prompts), size)]

    def _path(self, case: Case, rows: slice) -> Path:
        depends_on = {
            **case.recipe,
            "models": [self.cloud.info.fingerprint, self.edge.info.fingerprint],
            "scheduler_config": self.cloud.info.scheduler_config,
            "prompts": self.prompts[rows],
            "seeds": self.seeds[rows],
            "guidance_scale": self._guidance_scale,
            "threads": torch.get_num_threads(),
            "torch": torch.__version__,
        }
        digest = hashlib.sha256(json.dumps(depends_on, sort_keys=True).encode()).hexdigest()
        return self._folder / f"{digest[:16]}.npz"

    def decode(self, made: Made) -> NDArray[np.uint8]:
        """Return the pictures of what was made, `[N, H, W, 3]`."""
        with torch.inference_mode():
            return np.concatenate([self.cloud.decode(part) for part in torch.from_numpy(made.latents).split(32)])

    def single_step_seconds(self, num_rounds: int = 12) -> float:
        """Return the median seconds of a cloud step at batch 1."""
        cloud = Metered(self.cloud)
        pair = InProcessPair(cloud, self.edge, self.prompts[:1], [0], guidance_scale=self._guidance_scale)
        latents = torch.zeros(cloud.latents_shape(0, 0, 1))
        seconds = []
        with torch.inference_mode():
            for _ in range(num_rounds):
                before = cloud.seconds
                pair.ask(cloud, latents, 501.0)
                seconds.append(cloud.seconds - before)
        return float(np.median(seconds[2:]))

    def _make(self, case: Case, rows: slice) -> Made:
        cloud = Metered(self.cloud, None if case.spacing == LOG_SNR else case.spacing)
        edge = Metered(self.edge)
        prompts, seeds = self.prompts[rows], self.seeds[rows]
        pair = (LogSnrPair if case.spacing == LOG_SNR else InProcessPair)(
            cloud, edge, prompts, seeds, guidance_scale=self._guidance_scale, scheduler=case.scheduler
        )
        last = _Last()
        started = time.perf_counter()
        outcome = pair.generate(case.plan, case.edge_plan, on_step=last)
        wall_seconds = time.perf_counter() - started
        edge_steps = outcome.sources.count(Source.EDGE) - len(outcome.corrections)
        stepper = pair.stepper(case.plan.num_inference_steps)
        return Made(
            latents=outcome.latents.cpu().numpy(),
            denoised=_denoised(last.result, stepper, outcome.latents).cpu().numpy(),
            cloud_calls=np.full(len(prompts), outcome.cloud_calls),
            edge_steps=np.full(len(prompts), edge_steps),
            handoff_steps=np.full(len(prompts), outcome.handoff_step),
            cloud_seconds=cloud.seconds,
            wall_seconds=wall_seconds,
            edge_step_seconds=edge.seconds / max(edge.num_calls, 1),
        )


def _keep(made: Made, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_suffix(".partial.npz")
    np.savez_compressed(unfinished, **vars(made))
    unfinished.replace(path)


def _kept(path: Path) -> Made:
    with np.load(path) as kept:
        return Made(**{name: kept[name] if kept[name].ndim else kept[name].item() for name in kept.files})


def _joined(parts: Sequence[Made]) -> Made:
    """Return the rows of all parts, one after the other."""
    return Made(
        **{name: np.concatenate([getattr(part, name) for part in parts]) for name in ROWS},
        cloud_seconds=sum(part.cloud_seconds for part in parts),
        wall_seconds=sum(part.wall_seconds for part in parts),
        edge_step_seconds=float(np.mean([part.edge_step_seconds for part in parts])),
    )


class _Last:
    """Keeps the newest step."""

    result: StepResult

    def __call__(self, result: StepResult) -> None:
        self.result = result


def _denoised(last: StepResult, stepper: Stepper, latents: Tensor) -> Tensor:
    """Return x0 as the last step saw it; a multistep solver's final latents are that already."""
    if stepper.is_multistep:
        return latents
    return convert_prediction(
        last.noise_pred,
        last.latents_before.float(),
        source=stepper.prediction_type,
        target="sample",
        alpha=stepper.schedule.alphas[-1],
        sigma=stepper.schedule.sigmas[-2],
    )
