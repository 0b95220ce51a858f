"""*Handoff latency*: where every millisecond between the cloud's last step and the edge's first went."""

from __future__ import annotations

from deploy.grafana.panels import RANGE, Dashboard, Panel, Query, increases, mean, per_minute, quantile, quantiles

_EDGE = 'job="edge"'
_TOTAL = f'{_EDGE}, stage="total"'
_STAGES = f'{_EDGE}, stage!="total"'
_LOST = f'{_EDGE}, reason=~"cloud_lost|cloud_error"'
_BOUND_SECONDS = 0.25

_VALUES = (
    Panel(
        title="Handoff, 95 of 100 take at most",
        description="All handoffs of the time range, from the decision (or the cloud's last step) to the edge's first "
        "step. Above 250 ms EcdiffHandoffSlow watches.",
        unit="s",
        kind="value",
        bound=_BOUND_SECONDS,
        queries=quantiles("ecdiff_handoff_seconds", _TOTAL, 0.95, window=RANGE),
    ),
    Panel(
        title="Handoffs",
        description="How many there were in the time range.",
        unit="short",
        kind="value",
        queries=(Query(expr=f"round(sum(increase(ecdiff_handoffs_total{{{_EDGE}}}[{RANGE}])))", legend="handoffs"),),
    ),
    Panel(
        title="Of them because the cloud was lost",
        description="Share of the handoffs of the time range that nobody planned: the cloud was silent, gone or sent "
        "what cannot be used. Above 5 % EcdiffCloudLost watches.",
        unit="percentunit",
        kind="value",
        bound=0.05,
        queries=(
            Query(
                expr=f"sum(increase(ecdiff_handoffs_total{{{_LOST}}}[{RANGE}])) "
                f"/ sum(increase(ecdiff_handoffs_total{{{_EDGE}}}[{RANGE}]))",
                legend="lost",
            ),
        ),
    ),
    Panel(
        title="Prompt to picture, median",
        description="All generations of the time range, in any mode.",
        unit="s",
        kind="value",
        queries=quantiles("ecdiff_generation_seconds", _EDGE, 0.5, window=RANGE),
    ),
)

DASHBOARD = Dashboard(
    uid="ecdiff-handoff",
    title="Handoff latency",
    description="Where every millisecond between the cloud's last step and the edge's first went.",
    rows=(
        _VALUES,
        (
            Panel(
                title="Stages of a handoff, mean, stacked",
                description="cloud_encode: waiting for and encoding the latents in the cloud. transit: on the way, "
                "clock offset taken off. edge_decode: decoding them. edge_start: from there to the edge's first step. "
                "The height is the mean handoff.",
                unit="s",
                kind="stack",
                queries=(mean("ecdiff_handoff_seconds", _STAGES, "stage"),),
            ),
            Panel(
                title="Handoff, p50, p95, p99",
                description="The whole handoff, over all edges; dashed: the bound of EcdiffHandoffSlow, which watches "
                "each edge's p95 over 5 minutes (the recorded line).",
                unit="s",
                bound=_BOUND_SECONDS,
                queries=(
                    *quantiles("ecdiff_handoff_seconds", _TOTAL, 0.5, 0.95, 0.99),
                    Query(expr="instance:ecdiff_handoff_seconds:p95_rate5m", legend="{{instance}} p95 over 5 min"),
                ),
            ),
        ),
        (
            Panel(
                title="Stages of a handoff, p95",
                description="Each stage by itself: the one that grew is where to look. They do not add up.",
                unit="s",
                queries=quantiles("ecdiff_handoff_seconds", _STAGES, 0.95, by="stage"),
            ),
            Panel(
                title="Handoffs by reason",
                description="Why the edge took over: plan, agreement and requested are intended; deadline: the cloud "
                "would have been too late; cloud_lost, cloud_full and cloud_error: the edge had to.",
                unit="suffix: /min",
                kind="stack",
                queries=(per_minute("ecdiff_handoffs_total", _EDGE, "reason"),),
            ),
            Panel(
                title="Moves to another cloud",
                description="Generations that another replica went on with, by what they left theirs for: lost, full, "
                "or an answer that cannot be used. They cost time and evaluations, and no handoff.",
                unit="suffix: /min",
                kind="stack",
                queries=(per_minute("ecdiff_cloud_moves_total", _EDGE, "reason"),),
            ),
        ),
        (
            Panel(
                title="Handoffs, how long each took",
                description="Every handoff of the time range in its bucket: two bands are two links, or two causes.",
                unit="s",
                kind="heatmap",
                queries=(increases("ecdiff_handoff_seconds", _TOTAL),),
            ),
            Panel(
                title="First step of the edge",
                description="At which step the edge takes over: early where the models agree, or where the cloud was "
                "lost early.",
                unit="short",
                queries=quantiles("ecdiff_handoff_step", _EDGE, 0.1, 0.5, 0.9),
            ),
        ),
        (
            Panel(
                title="Prompt to picture, median by mode",
                description="The whole generation as the edge measured it, models loaded.",
                unit="s",
                queries=(
                    Query(
                        expr=quantile(0.5, "ecdiff_generation_seconds", _EDGE, by="mode"),
                        legend="{{mode}}",
                    ),
                ),
            ),
            Panel(
                title="What pictures are made of",
                description="Steps by the source of their prediction, as the edges count them: where the cloud is "
                "lost, edge takes over from cloud and extrapolated.",
                unit="suffix: /min",
                kind="stack",
                queries=(per_minute("ecdiff_nfe_total", _EDGE, "source"),),
            ),
            Panel(
                title="How ready an agent is",
                description="queue: from a generation's arrival to its turn. start: from its turn to its first step, "
                "in the cloud or here. Dashed: 150 ms, what a warm agent promises for both.",
                unit="s",
                bound=0.15,
                queries=(
                    Query(expr=quantile(0.95, "ecdiff_agent_queue_seconds", _EDGE), legend="queue p95"),
                    Query(expr=quantile(0.5, "ecdiff_agent_start_seconds", _EDGE), legend="start p50"),
                    Query(expr=quantile(0.95, "ecdiff_agent_start_seconds", _EDGE), legend="start p95"),
                ),
            ),
        ),
    ),
)
