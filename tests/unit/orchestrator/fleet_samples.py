"""Replicas and a plan query, made up for the tests of the service's pure parts."""

from __future__ import annotations

from orchestrator.service.fleet import Fleet
from wire.fleet_messages import KnownCosts, PlanQuery
from wire.messages import Codec, Description, Limits, Load, ModelDescription
from wire.targets import Endpoint

NOW = 1_000_000.0
A, B, C = "a:50051", "b:50051", "c:50051"
CLOUD, EDGE = "c" * 8, "e" * 8  # those of plan_files.FILE
# What one picture of `description()` has: 4 x 16 x 16.
ELEMENTS = 1024

EDGE_COSTS = KnownCosts(
    latents_bytes=4 * ELEMENTS,
    edge_step_seconds=0.02,
    encode_prompt_seconds=0.01,
    edge_encode_prompt_seconds=0.015,
    decode_seconds=0.03,
)
QUERY = PlanQuery(
    cloud_fingerprint=CLOUD,
    edge_fingerprint=EDGE,
    scheduler="ddim",
    num_inference_steps=10,
    guidance_scale=2.0,
    latents_elements=ELEMENTS,
    costs=EDGE_COSTS,
    replica=A,
)


def description(
    *, fingerprint: str = CLOUD, sessions: int = 0, queue: int = 0, step_seconds: float = 0.1
) -> Description:
    """Return what a replica says of itself."""
    return Description(
        model=ModelDescription(
            name="cloud",
            fingerprint=fingerprint,
            family="sd",
            prediction_type="epsilon",
            latent_channels=4,
            layout="BCHW",
            vae_scale_factor=8,
            vae_scaling_factor=0.18,
            vae_shift_factor=0.0,
            vae_fingerprint="v",
            text_encoder_fingerprint="t",
            scheduler_class="DDIMScheduler",
            scheduler_config="{}",
            default_height=128,
            default_width=128,
            num_parameters=1,
            dtype="float32",
            device="cpu",
        ),
        limits=Limits(max_sessions=4),
        load=Load(sessions=sessions, queue=queue, step_seconds=step_seconds),
        schedulers=("ddim",),
        predictors=("linear",),
        codecs=(Codec.RAW,),
        version="0",
    )


def fleet_of(*addresses: str) -> Fleet:
    """Return a fleet of which nothing was seen yet."""
    fleet = Fleet()
    fleet.become([Endpoint(address=address) for address in addresses])
    return fleet
