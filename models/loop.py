"""The one training loop: optimiser, learning rate, averaged weights, checkpoints and log."""

import copy
import shutil
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

import click
import torch
from torch import Tensor, nn


class Task(Protocol):
    """What a stage brings to the loop."""

    modules: dict[str, Any]
    """Networks by folder name; parameters that ask for gradients are trained."""

    def loss(self, batch_size: int, random: torch.Generator) -> Tensor:
        """Draw a batch from `random`, on which the whole step depends, and return its loss."""
        ...

    def draw_sheet(self, averaged: dict[str, Any], path: Path) -> str:
        """Save a picture of what the averaged weights can do, and return a figure for the log."""
        ...


@dataclass(frozen=True, kw_only=True)
class LoopConfig:
    """How long and how fast to train; exactly one of `minutes` and `num_steps` is the budget.

    Attributes:
        out_dir: Where the checkpoint, log, sheets and averaged weights go.
        stage: Prefix of the files in it.
        minutes: Budget in wall-clock minutes of training, over all resumed runs.
        num_steps: Budget in optimiser steps.
        learning_rate: Peak; it warms up over `num_warmup_steps` and falls to zero as the budget is spent.
        ema_decay: Averaging of the weights, shorter at the start.
        learning_share: Share of the budget, by network, after which its averaged weights become final; 1 if absent.
    """

    out_dir: Path
    stage: str
    minutes: float | None = None
    num_steps: int | None = None
    batch_size: int = 64
    learning_rate: float = 6e-4
    num_warmup_steps: int = 100
    weight_decay: float = 0.01
    ema_decay: float = 0.999
    learning_share: Mapping[str, float] = field(default_factory=dict)
    checkpoint_seconds: float = 120.0
    sheet_seconds: float = 1200.0
    seed: int = 0
    device: str = "cpu"
    bfloat16: bool = False

    def __post_init__(self) -> None:
        """Refuse an unclear budget."""
        if (self.minutes is None) == (self.num_steps is None):
            raise ValueError(f"give one of minutes and num_steps, not {self.minutes} and {self.num_steps}")

    @property
    def checkpoint_path(self) -> Path:
        """The file that a later run resumes from."""
        return self.out_dir / f"{self.stage}.ckpt"

    def progress(self, step: int, seconds: float) -> float:
        """Share of the budget spent, up to 1."""
        spent = step / self.num_steps if self.num_steps else seconds / 60 / (self.minutes or 1)
        return min(spent, 1.0)


class Trainer:
    """The state that a checkpoint holds: weights, averaged weights, optimiser, steps and seconds."""

    def __init__(self, task: Task, config: LoopConfig) -> None:
        """Start from the checkpoint if there is one, else from the task's weights."""
        self.task, self.config = task, config
        for module in task.modules.values():
            module.to(config.device)
        self.averaged = {name: copy.deepcopy(module).eval() for name, module in task.modules.items()}
        self.parameters = [p for module in task.modules.values() for p in module.parameters() if p.requires_grad]
        self.averaged_parameters = [
            average
            for name, module in task.modules.items()
            for average, p in zip(self.averaged[name].parameters(), module.parameters(), strict=True)
            if p.requires_grad
        ]
        self.optimizer = torch.optim.AdamW(
            self.parameters, lr=config.learning_rate, betas=(0.9, 0.99), weight_decay=config.weight_decay, fused=True
        )
        self.step, self.seconds = 0, 0.0
        if config.checkpoint_path.is_file():
            self._load()

    def run(self, *, stop_step: int | None = None) -> None:
        """Train until the budget is spent or `stop_step` is reached, then save."""
        config = self.config
        saved = drawn = logged = time.monotonic()
        loss_sum, num_losses = 0.0, 0
        while config.progress(self.step, self.seconds) < 1 and self.step != stop_step:
            started = time.monotonic()
            self._settle_networks()
            loss_sum += self._train_step()
            num_losses += 1
            now = time.monotonic()
            self.seconds += now - started
            if now - logged > 15:
                self._log(loss_sum / num_losses, num_losses * config.batch_size / (now - logged))
                loss_sum, num_losses, logged = 0.0, 0, now
            if now - saved > config.checkpoint_seconds:
                self.save()
                saved = time.monotonic()
            if now - drawn > config.sheet_seconds:
                self._draw_sheet()
                drawn = logged = time.monotonic()
                loss_sum, num_losses = 0.0, 0
        self.save()
        self._draw_sheet()

    def save(self) -> None:
        """Write the checkpoint and the averaged weights, each moved into place when complete."""
        config = self.config
        config.out_dir.mkdir(parents=True, exist_ok=True)
        state = {
            "modules": {name: module.state_dict() for name, module in self.task.modules.items()},
            "averaged": {name: module.state_dict() for name, module in self.averaged.items()},
            "optimizer": self.optimizer.state_dict(),
            "step": self.step,
            "seconds": self.seconds,
        }
        replace_path(config.checkpoint_path, lambda path: torch.save(state, path))
        for name, module in self.averaged.items():
            replace_path(config.out_dir / name, module.save_pretrained)

    def _load(self) -> None:
        state = torch.load(self.config.checkpoint_path, map_location=self.config.device, weights_only=True)
        for name, module in self.task.modules.items():
            module.load_state_dict(state["modules"][name])
            self.averaged[name].load_state_dict(state["averaged"][name])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step, self.seconds = state["step"], state["seconds"]

    def _settle_networks(self) -> None:
        """Fix the networks whose share of the budget is spent at their averaged weights."""
        for name, share in self.config.learning_share.items():
            network = self.task.modules[name]
            if self.config.progress(self.step, self.seconds) >= share and next(network.parameters()).requires_grad:
                network.load_state_dict(self.averaged[name].state_dict())
                network.requires_grad_(False)
                self.save()
                click.echo(f"{self.config.stage} step {self.step}: {name} is final")

    def _train_step(self) -> float:
        config = self.config
        # One generator a step, seeded by its number: a resumed run draws what an uninterrupted one would.
        random = torch.Generator().manual_seed(config.seed * 1_000_003 + self.step)
        torch.manual_seed(config.seed * 1_000_003 + self.step)
        rate = config.learning_rate * min(1.0, (self.step + 1) / config.num_warmup_steps)
        remaining = 1 - config.progress(self.step, self.seconds)
        for group in self.optimizer.param_groups:
            group["lr"] = rate * min(1.0, remaining / 0.6)  # flat, then linear to zero
        with torch.autocast(torch.device(config.device).type, torch.bfloat16, enabled=config.bfloat16):
            loss = self.task.loss(config.batch_size, random)
        loss.backward()
        nn.utils.clip_grad_norm_(self.parameters, 1.0)
        self.optimizer.step()
        self.optimizer.zero_grad()
        self.step += 1
        decay = min(config.ema_decay, (1 + self.step) / (10 + self.step))
        with torch.no_grad():
            torch._foreach_lerp_(self.averaged_parameters, self.parameters, 1 - decay)
        return float(loss.detach())

    def _log(self, loss: float, samples_per_second: float) -> None:
        config = self.config
        progress = config.progress(self.step, self.seconds)
        remaining_minutes = self.seconds / 60 * (1 - progress) / max(progress, 1e-6)
        line = (
            f"{config.stage} step {self.step} loss {loss:.4f} {samples_per_second:.1f} samples/s "
            f"{self.step * config.batch_size} samples {self.seconds / 60:.1f} min ETA {remaining_minutes:.1f} min"
        )
        click.echo(line)
        with (config.out_dir / f"{config.stage}.log").open("a") as log:
            log.write(line + "\n")

    def _draw_sheet(self) -> None:
        path = self.config.out_dir / f"{self.config.stage}-{self.step:06d}.png"
        click.echo(f"{path.name}: {self.task.draw_sheet(self.averaged, path)}")


def replace_path(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file or folder beside `path`, then move it there."""
    partial = path.with_name(path.name + ".partial")
    if partial.is_dir():
        shutil.rmtree(partial)
    write(partial)
    if path.is_dir():
        shutil.rmtree(path)
    partial.replace(path)
