"""Real messages between an edge and the orchestrator service, full ones and the least that is legal."""

from __future__ import annotations

import math
from dataclasses import replace

from wire.edge_plan import Agreement, EdgePlan
from wire.fleet_messages import (
    FleetStatus,
    KnownCosts,
    LatencyEstimate,
    PlanAnswer,
    PlanFileStatus,
    PlanQuery,
    Replica,
    SessionReport,
)
from wire.messages import Load, ModelDescription, Plan

QUERY = PlanQuery(
    cloud_fingerprint="c",
    edge_fingerprint="e",
    scheduler="ddim",
    num_inference_steps=4,
    guidance_scale=2.0,
    latents_elements=1024,
    costs=KnownCosts(latents_bytes=4096),
)
FULL_QUERY = replace(
    QUERY,
    costs=KnownCosts(
        latents_bytes=4096,
        rtt_seconds=0.0,
        bandwidth_bytes_per_second=1e6,
        cloud_step_seconds=0.1,
        cloud_queue_seconds=0.0,
        edge_step_seconds=0.02,
        encode_prompt_seconds=0.01,
        edge_encode_prompt_seconds=0.01,
        decode_seconds=0.03,
        shared_cores=True,
    ),
    deadline_seconds=0.9,
    tolerance=0.0,
    max_cloud_calls=0,
    corrections="none",
    shadow=False,
    handoff_step=0,
    replica="127.0.0.1:50051",
)
ANSWER = PlanAnswer(
    plan=Plan(num_inference_steps=4, handoff_step=3, refresh="listed", real_steps=(0, 1), max_cloud_calls=0),
    edge_plan=EdgePlan(
        shadow=True,
        residual="linear",
        fade=(1.0, 1.0, 0.5, 0.0),
        reach=2,
        corrections="planned",
        correction_steps=(3,),
        max_cloud_calls=5,
        agreement=Agreement(disagreement=(0.1,) * 4, tail_error=(math.inf, math.inf, 0.2, 0.1, 0.0), tolerance=0.1),
    ),
    origin="ddim-4.json",
    why="because",
    lines=("a line",),
    expected_error=0.05,
    estimate=LatencyEstimate(handoff_step=3, cloud_calls=3, cloud_compute_seconds=0.3),
    calibration=1.5,
)
PLAIN_ANSWER = PlanAnswer(plan=Plan(num_inference_steps=4, handoff_step=4), edge_plan=EdgePlan(), origin="paper")
MODEL = ModelDescription(
    name="cloud",
    fingerprint="c",
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
)
REPLICA = Replica(
    address="127.0.0.1:50051",
    is_up=True,
    model=MODEL,
    load=Load(sessions=1, queue=2, step_seconds=0.1),
    max_sessions=4,
    wait_seconds=1.0,
    step_seconds=0.1,
    rtt_seconds=0.01,
    calibration=0.9,
    num_reports=7,
)
UNSEEN = Replica(address="127.0.0.1:50052", is_up=False)
REPORT = SessionReport(
    mode="adaptive",
    outcome="done",
    replica="127.0.0.1:50051",
    total_seconds=1.5,
    connect_seconds=0.1,
    predicted_seconds=1.2,
    calibration=1.1,
    nfe_cloud=6,
    nfe_extrapolated=20,
    nfe_edge=24,
    nfe_correction=2,
    handoff_seconds={"transit": 0.01, "total": 0.02},
    cloud_step_seconds=0.1,
    cloud_queue_seconds=0.0,
    rtt_seconds=0.02,
    bandwidth_bytes_per_second=1e6,
    latents_elements=1024,
)
LEAST_REPORT = SessionReport(mode="edge", outcome="failed")
STATUS = FleetStatus(
    version="0.1.0",
    uptime_seconds=12.5,
    replicas=(REPLICA, UNSEEN),
    plan_files=(
        PlanFileStatus(name="bad.json", problem="it is no JSON"),
        PlanFileStatus(
            name="good.json",
            cloud_fingerprint="c",
            edge_fingerprint="e",
            scheduler="ddim",
            num_inference_steps=50,
            guidance_scale=2.0,
            num_plans=20,
        ),
    ),
    num_plans_handed_out=3,
    num_reports=2,
)
