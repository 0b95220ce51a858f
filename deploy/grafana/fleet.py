"""*Fleet*: the replicas and the edges together, as the orchestrator and the agents know them."""

from __future__ import annotations

from deploy.grafana.panels import RANGE, Dashboard, Panel, Query, mean, per_minute, quantile, quantiles

_FLEET = 'job="orchestrator"'
_EDGE = 'job="edge"'
_STAGES = f'{_FLEET}, stage!="total"'
_TOTAL = f'{_FLEET}, stage="total"'


def _by_replica(series: str) -> Query:
    return Query(expr=f"{series}{{{_FLEET}}}", legend="{{replica}}")


_VALUES = (
    Panel(
        title="Replicas that serve",
        description="Cloud replicas that the orchestrator sees SERVING.",
        unit="short",
        kind="value",
        queries=(Query(expr=f"sum(ecdiff_fleet_replica_up{{{_FLEET}}})", legend="up"),),
    ),
    Panel(
        title="Places taken",
        description="Sessions over places, on replicas that serve. Above 90 % EcdiffFleetFull watches.",
        unit="percentunit",
        kind="value",
        bound=0.9,
        queries=(Query(expr="ecdiff_fleet:sessions_taken:ratio", legend="taken"),),
    ),
    Panel(
        title="Generations",
        description="Of the time range, as the edges reported them to the orchestrator.",
        unit="short",
        kind="value",
        queries=(
            Query(
                expr=f"round(sum(increase(ecdiff_fleet_generations_total{{{_FLEET}}}[{RANGE}])))", legend="generations"
            ),
        ),
    ),
    Panel(
        title="Alerts that fire",
        description="Of deploy/prometheus/rules/alerts.yml; what to do is in docs/operations.md.",
        unit="short",
        kind="value",
        bound=1,
        queries=(Query(expr='count(ALERTS{alertstate="firing"}) or vector(0)', legend="firing"),),
    ),
)

DASHBOARD = Dashboard(
    uid="ecdiff-fleet",
    title="Fleet",
    description="The replicas and the edges together, as the orchestrator and the agents know them.",
    rows=(
        _VALUES,
        (
            Panel(
                title="Replica serves",
                description="1 where its health says SERVING, else 0.",
                unit="short",
                queries=(_by_replica("ecdiff_fleet_replica_up"),),
            ),
            Panel(
                title="Sessions and places, by replica",
                description="Running sessions, and how many each takes.",
                unit="short",
                queries=(
                    Query(expr=f"ecdiff_fleet_replica_sessions{{{_FLEET}}}", legend="{{replica}} sessions"),
                    Query(expr=f"ecdiff_fleet_replica_max_sessions{{{_FLEET}}}", legend="{{replica}} places"),
                ),
            ),
            Panel(
                title="Queue, by replica",
                description="Sessions that wait for the device there.",
                unit="short",
                queries=(_by_replica("ecdiff_fleet_replica_queue"),),
            ),
        ),
        (
            Panel(
                title="Step time, by replica",
                description="What one evaluation takes there, as the replica says: plans and choices rest on it.",
                unit="s",
                queries=(_by_replica("ecdiff_fleet_replica_step_seconds"),),
            ),
            Panel(
                title="Round trip, by replica",
                description="As edges reported it, the median of recent reports.",
                unit="s",
                queries=(_by_replica("ecdiff_fleet_replica_rtt_seconds"),),
            ),
            Panel(
                title="Plans handed out",
                description="searched: from a plan file that fits the pair. paper: the paper's parameters, where none "
                "fits.",
                unit="suffix: /min",
                kind="stack",
                queries=(per_minute("ecdiff_fleet_plans_total", _FLEET, "origin"),),
            ),
        ),
        (
            Panel(
                title="Generations by mode and outcome",
                description="As reported to the orchestrator. fallback: a picture, but not as it was asked for.",
                unit="suffix: /min",
                kind="stack",
                queries=(per_minute("ecdiff_fleet_generations_total", _FLEET, "mode, outcome"),),
            ),
            Panel(
                title="Generations by outcome, as the edges count them",
                description="Of all edges that are scraped, with and without the orchestrator; failed ones gave no "
                "picture.",
                unit="suffix: /min",
                kind="stack",
                queries=(per_minute("ecdiff_generations_total", _EDGE, "outcome"),),
            ),
            Panel(
                title="Prompt to picture, median by mode",
                description="As reported to the orchestrator, over all edges.",
                unit="s",
                queries=(
                    Query(expr=quantile(0.5, "ecdiff_fleet_generation_seconds", _FLEET, by="mode"), legend="{{mode}}"),
                ),
            ),
        ),
        (
            Panel(
                title="Handoff over the fleet, mean, stacked",
                description="As on Handoff latency, but of every edge that reports, scraped or not.",
                unit="s",
                kind="stack",
                queries=(mean("ecdiff_fleet_handoff_seconds", _STAGES, "stage"),),
            ),
            Panel(
                title="Handoff over the fleet, p50 and p95",
                description="The whole handoff, of every edge that reports.",
                unit="s",
                queries=quantiles("ecdiff_fleet_handoff_seconds", _TOTAL, 0.5, 0.95),
            ),
            Panel(
                title="Measured over predicted latency",
                description="1: generations take what was predicted. The recorded median over 30 minutes is what "
                "EcdiffPredictionsOff watches (bounds 0.5 and 2).",
                unit="short",
                queries=(
                    *quantiles("ecdiff_fleet_prediction_ratio", _FLEET, 0.5, 0.95),
                    Query(expr="ecdiff_fleet:prediction_ratio:p50_rate30m", legend="p50 over 30 min"),
                ),
            ),
        ),
        (
            Panel(
                title="Steps by source, fleet",
                description="What the pictures are made of: cloud and correction cost the device, extrapolated "
                "nothing, edge the small model.",
                unit="suffix: /min",
                kind="stack",
                queries=(per_minute("ecdiff_fleet_nfe_total", _FLEET, "source"),),
            ),
            Panel(
                title="Agents' queues",
                description="Generations that wait for their turn at each agent. Never empty and growing: "
                "EcdiffAgentQueueGrows.",
                unit="short",
                queries=(Query(expr=f"ecdiff_agent_queue{{{_EDGE}}}", legend="{{instance}}"),),
            ),
            Panel(
                title="Calls refused for their token",
                description="At the orchestrator: a wrong or missing token. Those at the replicas are on Cloud. Above "
                "ten in 10 minutes EcdiffRequestsRefused watches both.",
                unit="suffix: /min",
                queries=(per_minute("ecdiff_fleet_token_refusals_total", _FLEET, "instance"),),
            ),
            Panel(
                title="What runs",
                description="Processes by component and version; two versions of one component: a roll-out is under "
                "way.",
                unit="short",
                queries=(
                    Query(expr="count by (component, version) (ecdiff_build_info)", legend="{{component}} {{version}}"),
                ),
            ),
        ),
    ),
)
