from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from bench.quality.cases import Case
from bench.quality.choose import crowded_steps
from bench.quality.figures import by_prompt, error_of, psnr_db, relative_errors
from bench.quality.runner import Made
from wire.messages import Plan


def _made(latents: np.ndarray, denoised: np.ndarray | None = None) -> Made:
    counts = np.zeros(len(latents), dtype=np.int64)
    return Made(
        latents=latents.astype(np.float32),
        denoised=(latents if denoised is None else denoised).astype(np.float32),
        cloud_calls=counts,
        edge_steps=counts,
        handoff_steps=counts,
        cloud_seconds=1.0,
        wall_seconds=1.0,
        edge_step_seconds=0.0,
    )


def _case(scheduler: str) -> Case:
    return Case(name="x", group="solvers", plan=Plan(num_inference_steps=5, handoff_step=5), scheduler=scheduler)


def test_errors_are_relative_to_each_row_of_the_reference() -> None:
    wanted = np.array([[3.0, 4.0], [0.0, 10.0]])

    errors = relative_errors(_case("ddim"), _made(wanted + np.array([[0.0, 1.0], [0.0, 1.0]])), _made(wanted))

    assert errors == pytest.approx([0.2, 0.1])


def test_a_solver_that_ends_without_noise_is_held_against_the_reference_without_noise() -> None:
    clean = np.ones((2, 4))
    reference = _made(clean + 0.5, denoised=clean)
    solved = _made(clean)

    assert relative_errors(_case("dpmpp-2m"), solved, reference) == pytest.approx([0.0, 0.0])
    assert relative_errors(_case("ddim"), solved, reference) == pytest.approx([1 / 3, 1 / 3])


def test_seeds_of_one_prompt_count_once() -> None:
    values, prompts = [1.0, 5.0, 3.0, 5.0], ["a", "b", "a", "b"]

    error = error_of(values, prompts)

    assert by_prompt(values, prompts) == [2.0, 5.0]
    assert error.mean == 3.5
    assert (error.low, error.high) == (2.0, 5.0)


def test_psnr_of_pictures_off_by_one_level() -> None:
    picture = np.full((2, 4, 4, 3), 100, dtype=np.uint8)

    assert psnr_db(picture + 1, picture) == pytest.approx(48.13, abs=0.01)
    assert psnr_db(picture, picture) is None


@pytest.mark.parametrize("crowding", [0.8, 1.0, 1.3])
@pytest.mark.parametrize("last_real", [False, True])
def test_crowded_steps_begin_with_the_warmup_and_stay_in_the_schedule(crowding: float, last_real: bool) -> None:
    steps = crowded_steps(10, 50, crowding, last_real=last_real)

    assert steps is not None
    assert steps[:2] == (0, 1)
    assert len(set(steps)) == 10
    assert list(steps) == sorted(steps)
    assert (steps[-1] == 49) is last_real


def test_steps_that_collide_are_no_plan() -> None:
    assert crowded_steps(10, 9, 1.0, last_real=False) is None


def test_what_a_case_depends_on_leaves_its_name_out() -> None:
    case = _case("ddim")

    assert replace(case, name="y", chosen_error=0.1).recipe == case.recipe
    assert replace(case, spacing="trailing").recipe != case.recipe
