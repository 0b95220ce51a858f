"""The plan file: what a search found for one pair, scheduler, step count and guidance."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol, get_args, get_origin, get_type_hints

from orchestrator.plan import MAX_STEPS, PREDICTORS
from wire.edge_plan import RESIDUALS
from wire.messages import MIN_WARMUP_STEPS

FORMAT = "ecdiff-plans-1"
# More says nothing: the intervals of a search are wider.
_SIGNIFICANT_DIGITS = 5


@dataclass(frozen=True, kw_only=True)
class SearchedPlan:
    """One point of the Pareto set: where the cloud evaluates, who leads when, and what that gave.

    Attributes:
        real_steps: The cloud's real steps while it leads, rising, up to `latest_handoff_step`. Those from
            `handoff_step` on are run only for a prompt that needs the cloud for longer.
        handoff_step: First step of the edge model for a prompt of average disagreement; the step count means never.
        latest_handoff_step: The bound of the handoff by agreement.
        correction_steps: Where the edge asks the cloud after the handoff, rising; those before the actual handoff are
            not run.
        predictor: What the cloud extrapolates with.
        residual: What the edge extrapolates cloud minus edge with; None: the edge's own prediction alone.
        fade: Factor of the extrapolated residual at each step; empty: 1 everywhere.
        tail_error: `Agreement.tail_error`, at tail_error[handoff_step] about `error`.
        cloud_calls: Evaluations in the cloud at `handoff_step`, corrections included.
        edge_steps: Steps of the edge model at `handoff_step`, those with a correction not counted.
        error: Mean relative L2 of the final latents to all-cloud over the search prompts.
        error_interval: 95 % bootstrap interval of that mean.

    Raises:
        ValueError: With the name and the value of whatever does not fit.
    """

    real_steps: tuple[int, ...]
    handoff_step: int
    latest_handoff_step: int
    correction_steps: tuple[int, ...]
    predictor: str
    residual: str | None
    fade: tuple[float, ...]
    tail_error: tuple[float, ...]
    cloud_calls: int
    edge_steps: int
    error: float
    error_interval: tuple[float, float]

    def __post_init__(self) -> None:
        num_steps = len(self.tail_error) - 1
        if not 1 <= num_steps <= MAX_STEPS:
            raise ValueError(f"tail_error must have 2..{MAX_STEPS + 1} values, not {len(self.tail_error)}")
        if not 0 <= self.handoff_step <= self.latest_handoff_step <= num_steps:
            raise ValueError(
                f"handoff_step {self.handoff_step} and latest_handoff_step {self.latest_handoff_step} must rise "
                f"within 0..{num_steps}"
            )
        _check_steps("real_steps", self.real_steps, self.latest_handoff_step)
        _check_steps("correction_steps", self.correction_steps, num_steps)
        warmup = tuple(range(min(MIN_WARMUP_STEPS, self.latest_handoff_step)))
        if self.real_steps[: len(warmup)] != warmup:
            raise ValueError(f"real_steps must begin with {list(warmup)}, not {list(self.real_steps[: len(warmup)])}")
        for name, known in (("predictor", PREDICTORS), ("residual", (None, *RESIDUALS))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} must be one of {', '.join(map(str, known))}, not {getattr(self, name)!r}")
        if self.fade and len(self.fade) != num_steps:
            raise ValueError(f"fade must be empty or have {num_steps} values, not {len(self.fade)}")
        _check_numbers("fade", self.fade, most=1.0)
        _check_numbers("tail_error", self.tail_error, most=math.inf)
        _check_numbers("error", (self.error,))
        _check_numbers("error_interval", self.error_interval)
        calls = sum(i < self.handoff_step for i in self.real_steps)
        corrections = sum(i >= self.handoff_step for i in self.correction_steps)
        if self.cloud_calls != calls + corrections:
            raise ValueError(f"cloud_calls must be {calls + corrections} by its steps, not {self.cloud_calls}")
        if self.edge_steps != num_steps - self.handoff_step - corrections:
            raise ValueError(
                f"edge_steps must be {num_steps - self.handoff_step - corrections} by its steps, not {self.edge_steps}"
            )


@dataclass(frozen=True, kw_only=True)
class PlanFile:
    """A search's result.

    Attributes:
        cloud_fingerprint: Of the large model, as `Describe` tells it.
        edge_fingerprint: Of the small model.
        scheduler: Command-line name of the update rule.
        num_inference_steps: Steps of every plan.
        guidance_scale: What the search used.
        prompts: The search prompts.
        seeds: One per prompt.
        command: What was run.
        disagreement: q_i at each step (`Agreement.disagreement`).
        sensitivity: c_i at each step (`diffusion.sensitivity`).
        plans: The Pareto set, by rising cloud calls.
        default_tolerance: Error that is allowed where the user names none.

    Raises:
        ValueError: With the name and the value of whatever does not fit.
    """

    cloud_fingerprint: str
    edge_fingerprint: str
    scheduler: str
    num_inference_steps: int
    guidance_scale: float
    prompts: tuple[str, ...]
    seeds: tuple[int, ...]
    command: str
    disagreement: tuple[float, ...]
    sensitivity: tuple[float, ...]
    plans: tuple[SearchedPlan, ...]
    default_tolerance: float

    def __post_init__(self) -> None:
        for name in ("cloud_fingerprint", "edge_fingerprint", "scheduler"):
            if not getattr(self, name):
                raise ValueError(f"{name} must not be empty")
        if not 1 <= self.num_inference_steps <= MAX_STEPS:
            raise ValueError(f"num_inference_steps must lie in 1..{MAX_STEPS}, not {self.num_inference_steps}")
        _check_numbers("guidance_scale", (self.guidance_scale,))
        _check_numbers("default_tolerance", (self.default_tolerance,))
        if not self.prompts or len(self.seeds) != len(self.prompts):
            raise ValueError(f"seeds must be one for each prompt, not {len(self.seeds)} for {len(self.prompts)}")
        for name in ("disagreement", "sensitivity"):
            curve = getattr(self, name)
            if len(curve) != self.num_inference_steps:
                raise ValueError(f"{name} must have {self.num_inference_steps} values, not {len(curve)}")
            _check_numbers(name, curve)
        if not self.plans:
            raise ValueError("plans must not be empty")
        for plan in self.plans:
            if len(plan.tail_error) != self.num_inference_steps + 1:
                raise ValueError(
                    f"tail_error of a plan must have {self.num_inference_steps + 1} values, not {len(plan.tail_error)}"
                )
        if any(later.cloud_calls < earlier.cloud_calls for earlier, later in pairwise(self.plans)):
            raise ValueError(f"plans must stand by rising cloud_calls, not {[each.cloud_calls for each in self.plans]}")

    def write(self, path: Path) -> None:
        """Write the file, replacing another of that name at once; numbers keep five digits.

        Raises:
            OSError: If it cannot be written.
        """
        text = json.dumps({"format": FORMAT, **_plain(asdict(self))}, indent=1, allow_nan=False, ensure_ascii=False)
        write_atomically(path, _one_line_lists(text) + "\n")


class ReadableFile(Protocol):
    """What is read of a file: a `Path`, or content that came without one; `str` names it."""

    def read_bytes(self) -> bytes:
        """Return the content."""


def read_plan_file(path: ReadableFile) -> PlanFile:
    """Read what `PlanFile.write` wrote.

    Raises:
        ValueError: One line with the file and the field that is wrong.
        OSError: If it cannot be read.
    """
    try:
        content = json.loads(path.read_bytes().decode(), parse_constant=_refuse_constant)
    except UnicodeDecodeError as error:
        raise ValueError(f"plan file {path} is not JSON: it is no text in UTF-8") from error
    except json.JSONDecodeError as error:
        raise ValueError(f"plan file {path} is not JSON: {error}") from error
    except RecursionError as error:
        raise ValueError(f"plan file {path}: it is nested too deeply") from error
    except ValueError as error:
        raise ValueError(f"plan file {path}: {error}") from error
    try:
        if not isinstance(content, dict) or content.pop("format", None) != FORMAT:
            raise ValueError(f"format must be {FORMAT!r}")
        plan_file: PlanFile = _read(PlanFile, content, "")
    except ValueError as error:
        raise ValueError(f"plan file {path}: {error}") from error
    return plan_file


def write_atomically(path: Path, text: str) -> None:
    """Write a file beside its place and move it there, so that nobody ever reads half of it.

    Raises:
        OSError: If it cannot be written.
    """
    unfinished = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        unfinished.write_text(text, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


def _check_steps(name: str, steps: Sequence[int], end: int) -> None:
    if any(later <= earlier for earlier, later in pairwise(steps)) or not all(0 <= each < end for each in steps):
        raise ValueError(f"{name} must rise within 0..{end - 1}, not {list(steps)}")


def _check_numbers(name: str, numbers: Sequence[float], *, most: float = math.nextafter(math.inf, 0.0)) -> None:
    for number in numbers:
        if not 0.0 <= number <= most:  # NaN is neither
            raise ValueError(
                f"{name} must hold numbers of at least 0{f' and at most {most:g}' if most <= 1 else ''}, not {number}"
            )


def _plain(value: Any) -> Any:
    """Return a value as JSON can say it: infinity is null."""
    match value:
        case float():
            return float(f"{value:.{_SIGNIFICANT_DIGITS}g}") if math.isfinite(value) else None
        case dict():
            return {name: _plain(each) for name, each in value.items()}
        case tuple():
            return [_plain(each) for each in value]
    return value


def _one_line_lists(text: str) -> str:
    """Return indented JSON with every list of numbers on one line."""
    lines: list[str] = []
    for line in text.splitlines():
        item = line.strip()
        begun = bool(lines) and "[" in lines[-1] and not lines[-1].endswith(("]", "],", "{"))
        if begun and (item[0] in "-0123456789]" or item.startswith("null")):
            lines[-1] += item if item[0] == "]" or lines[-1].endswith("[") else f" {item}"
        else:
            lines.append(line)
    return "\n".join(lines)


def _refuse_constant(name: str) -> float:
    raise ValueError(f"{name} is no number of a plan file")


def _read(kind: type[Any], content: Mapping[str, Any], where: str) -> Any:
    """Return a dataclass from its JSON object."""
    names = {field.name for field in fields(kind)}
    if missing := sorted(names - content.keys()):
        raise ValueError(f"{where}{missing[0]} is missing")
    if unknown := sorted(content.keys() - names):
        raise ValueError(f"{where}{unknown[0][:80]} is unknown")
    hints = get_type_hints(kind)
    values = {name: _value(hints[name], content[name], f"{where}{name}") for name in names}
    try:
        return kind(**values)
    except ValueError as error:
        raise ValueError(f"{where}{error}") from error


def _value(hint: Any, value: Any, where: str) -> Any:
    """Return a JSON value as a field's type."""
    if get_origin(hint) is tuple:
        if not isinstance(value, list):
            raise ValueError(f"{where} must be a list, not {_shown(value)}")
        items = get_args(hint)
        if items[-1] is not Ellipsis and len(value) != len(items):
            raise ValueError(f"{where} must have {len(items)} values, not {len(value)}")
        return tuple(_value(items[0], each, f"{where}[{index}]") for index, each in enumerate(value))
    match hint:
        case _ if hint is SearchedPlan and isinstance(value, dict):
            return _read(SearchedPlan, value, f"{where}.")
        case _ if hint is float and value is None and ".tail_error[" in where:
            return math.inf
        case _ if hint is float and isinstance(value, int | float) and not isinstance(value, bool):
            return _finite(value, where)
        case _ if hint is int and isinstance(value, int) and not isinstance(value, bool):
            return value
        case _ if hint is str and isinstance(value, str):
            return value
        case _ if hint == str | None and isinstance(value, str | None):
            return value
    wanted = {float: "a number", int: "a whole number", SearchedPlan: "an object"}.get(hint, "text")
    raise ValueError(f"{where} must be {wanted}, not {_shown(value)}")


def _finite(value: float, where: str) -> float:
    if abs(value) > 1e300:  # a whole number may be larger than any float; 1e999 is read as infinity
        raise ValueError(f"{where} must be a finite number, not {_shown(value)}")
    return float(value)


def _shown(value: object) -> str:
    return repr(value)[:80]
