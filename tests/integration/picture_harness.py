"""What a trajectory from a picture is in numbers, for its tests."""

from __future__ import annotations

from typing import Any

SEED, NUM_STEPS, STRENGTH, GUIDANCE = 11, 10, 0.6, 5.0
START_STEP, HANDOFF_STEP = 4, 7
SIZE = (72, 88)  # height and width that a picture of 77 x 90 pixels is rounded down to
REQUEST: dict[str, Any] = {
    "num_inference_steps": NUM_STEPS,
    "strength": STRENGTH,
    "negative_prompt": "a dog",
    "guidance_scale": GUIDANCE,
    "seed": SEED,
}
