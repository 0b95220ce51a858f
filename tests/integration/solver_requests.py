"""One request for each scheduler, and what one process makes of the same steps."""

from __future__ import annotations

from edge_client.request import GenerationRequest
from harness.reference import ReferencePair
from orchestrator.plan import PlanOptions
from wire.messages import Array

STEPS, HANDOFF_STEP = 20, 12
MULTISTEP = ["dpmpp-2m", "unipc"]
HISTORY = {
    "ddim": set(),
    "euler": set(),
    "dpmpp-2m": {"denoised_1"},
    "unipc": {"denoised_1", "denoised_2", "last_latents"},
}
SOURCES = {"split": "C" * 12 + "e" * 8, "ecdiff": "CCCxxCxxCxxC" + "e" * 8}
OPTIONS = {
    "split": PlanOptions(num_inference_steps=STEPS, handoff_step=HANDOFF_STEP),
    "ecdiff": PlanOptions(
        num_inference_steps=STEPS, handoff_step=HANDOFF_STEP, warmup_steps=3, skip_interval=2, smoothing=0.3
    ),
}


def a_request(scheduler: str, mode: str = "split", codec: str = "raw") -> GenerationRequest:
    return GenerationRequest(
        prompt="a cat",
        mode=mode,
        plan_options=OPTIONS[mode],
        guidance_scale=2.0,
        seed=5,
        scheduler=scheduler,
        latents_codec=codec,
    )


def reference(pair: ReferencePair, scheduler: str, mode: str, sources: str = "", restart_step: int = 0) -> Array:
    """Return what one process makes of the same steps, with one scheduler from end to end."""
    return pair.final_latents(
        sources or SOURCES[mode],
        prompt="a cat",
        guidance_scale=2.0,
        seed=5,
        plan=a_request(scheduler, mode).plan,
        scheduler=scheduler,
        restart_step=restart_step,
    )
