"""*Cloud*: what the device does, for whom, and how good extrapolation is in its place."""

from __future__ import annotations

from deploy.grafana.panels import RANGE, RATE, Dashboard, Panel, Query, increases, per_minute, quantile, quantiles

_CLOUD = 'job="cloud"'


def _steps(source: str) -> str:
    return f'sum(increase(ecdiff_nfe_total{{{_CLOUD}, source=~"{source}"}}[{RANGE}]))'


_VALUES = (
    Panel(
        title="Open sessions",
        description="Running and parked, over all replicas.",
        unit="short",
        kind="value",
        queries=(Query(expr=f"sum(ecdiff_cloud_sessions{{{_CLOUD}}}) or vector(0)", legend="sessions"),),
    ),
    Panel(
        title="Steps that cost nothing",
        description="Share of the cloud's steps in the time range that were extrapolated, not evaluated.",
        unit="percentunit",
        kind="value",
        queries=(Query(expr=f"{_steps('extrapolated')} / {_steps('cloud|extrapolated')}", legend="extrapolated"),),
    ),
    Panel(
        title="Sessions in a forward pass",
        description="Mean batch size over the time range: above 1, sessions share the device.",
        unit="short",
        kind="value",
        queries=(
            Query(
                expr=f"sum(increase(ecdiff_cloud_batch_size_sum{{{_CLOUD}}}[{RANGE}])) "
                f"/ sum(increase(ecdiff_cloud_batch_size_count{{{_CLOUD}}}[{RANGE}]))",
                legend="batch size",
            ),
        ),
    ),
    Panel(
        title="Turned away or refused",
        description="Calls and sessions in the time range, for any reason.",
        unit="short",
        kind="value",
        bound=1,
        queries=(
            Query(expr=f"round(sum(increase(ecdiff_sessions_rejected_total{{{_CLOUD}}}[{RANGE}])))", legend="rejected"),
        ),
    ),
)

DASHBOARD = Dashboard(
    uid="ecdiff-cloud",
    title="Cloud",
    description="What the device does, for whom, and how good extrapolation is in its place.",
    rows=(
        _VALUES,
        (
            Panel(
                title="Open sessions, by replica",
                description="Running and parked. A parked one waits for corrections and takes no place on the device.",
                unit="short",
                queries=(Query(expr=f"ecdiff_cloud_sessions{{{_CLOUD}}}", legend="{{instance}}"),),
            ),
            Panel(
                title="Batch size",
                description="How many sessions shared each forward pass.",
                unit="short",
                kind="heatmap",
                queries=(increases("ecdiff_cloud_batch_size", _CLOUD),),
            ),
        ),
        (
            Panel(
                title="Waiting for the device",
                description="How long a real step waits for the device before it is evaluated.",
                unit="s",
                queries=quantiles("ecdiff_cloud_queue_seconds", _CLOUD, 0.5, 0.95, 0.99),
            ),
            Panel(
                title="Wait in evaluations",
                description="Evaluations of others that a step waits for, mean over 5 minutes. Dashed: the bound of "
                "EcdiffCloudQueueLong.",
                unit="short",
                bound=2,
                queries=(Query(expr="instance:ecdiff_cloud_queue_steps:mean_rate5m", legend="{{instance}}"),),
            ),
        ),
        (
            Panel(
                title="One real step",
                description="An evaluation of the large model with its scheduler step. Slower with larger batches; "
                "slower at the same batch: the device is shared or throttled.",
                unit="s",
                queries=quantiles("ecdiff_cloud_step_seconds", _CLOUD, 0.5, 0.95, 0.99),
            ),
            Panel(
                title="Steps by source",
                description="cloud: evaluated. extrapolated: predicted from earlier ones, at no cost. correction: "
                "evaluated for an edge after its handoff.",
                unit="suffix: /min",
                kind="stack",
                queries=(per_minute("ecdiff_nfe_total", _CLOUD, "source"),),
            ),
        ),
        (
            Panel(
                title="Extrapolation error",
                description="How far extrapolation would have been off where the model was asked: relative L2. It "
                "rises with harder prompts, longer intervals and fewer steps. edges: of the generations that were "
                "finished.",
                unit="percentunit",
                queries=(
                    *quantiles("ecdiff_extrapolation_error", _CLOUD, 0.5, 0.95),
                    Query(expr=quantile(0.95, "ecdiff_extrapolation_error", 'job="edge"'), legend="p95, edges"),
                ),
            ),
            Panel(
                title="Corrections",
                description="answered: evaluated and sent. failed: the model gave no answer. dropped: nobody waited "
                "any more.",
                unit="suffix: /min",
                kind="stack",
                queries=(per_minute("ecdiff_corrections_total", _CLOUD, "outcome"),),
            ),
        ),
        (
            Panel(
                title="Turned away or refused, by reason",
                description="busy: the places are taken. The others: the request itself was refused, see "
                "docs/operations.md.",
                unit="suffix: /min",
                kind="stack",
                queries=(per_minute("ecdiff_sessions_rejected_total", _CLOUD, "reason"),),
            ),
            Panel(
                title="Tensors out and in, as the cloud counts them",
                description="Wire bytes a second over all replicas; the edges' own account is on Network.",
                unit="Bps",
                queries=(
                    Query(
                        expr=f'sum by (direction) (rate(ecdiff_latents_bytes_total{{{_CLOUD}, kind="wire"}}[{RATE}]))',
                        legend="{{direction}}",
                    ),
                ),
            ),
        ),
    ),
)
