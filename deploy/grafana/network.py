"""*Network*: how far away the cloud is, what crosses the way, and what the codec makes of it."""

from __future__ import annotations

from deploy.grafana.panels import RANGE, RATE, Dashboard, Panel, Query, mean, quantile, quantiles

_EDGE = 'job="edge"'
_CHANNEL, _STREAM = f'{_EDGE}, probe="channel"', f'{_EDGE}, probe="stream"'


def _bytes(kind: str, aggregate: str) -> str:
    return f'sum by ({aggregate}) (rate(ecdiff_latents_bytes_total{{{_EDGE}, kind="{kind}"}}[{RATE}]))'


def _all_bytes(kind: str) -> str:
    return f'sum(increase(ecdiff_latents_bytes_total{{{_EDGE}, kind="{kind}"}}[{RANGE}]))'


_VALUES = (
    Panel(
        title="Round trip, median",
        description="Of the probes on a channel of their own, over the time range: the way itself.",
        unit="s",
        kind="value",
        queries=quantiles("ecdiff_network_rtt_seconds", _CHANNEL, 0.5, window=RANGE),
    ),
    Panel(
        title="Clock offset known to within",
        description="The worst edge's bound on the error of its clock offset: so much may stage transit be wrong. "
        "Above 100 ms EcdiffClockUncertain watches.",
        unit="s",
        kind="value",
        bound=0.1,
        queries=(Query(expr=f"max(ecdiff_clock_offset_uncertainty_seconds{{{_EDGE}}})", legend="uncertainty"),),
    ),
    Panel(
        title="Tensors on the wire",
        description="Bytes of latents, noise and predictions in the time range, both ways, as the codec wrote them.",
        unit="bytes",
        kind="value",
        queries=(Query(expr=_all_bytes("wire"), legend="wire"),),
    ),
    Panel(
        title="Wire over raw",
        description="What the codec leaves of the bytes, over the time range.",
        unit="percentunit",
        kind="value",
        queries=(Query(expr=f"{_all_bytes('wire')} / {_all_bytes('raw')}", legend="wire / raw"),),
    ),
)

DASHBOARD = Dashboard(
    uid="ecdiff-network",
    title="Network",
    description="How far away the cloud is, what crosses the way, and what the codec makes of it.",
    rows=(
        _VALUES,
        (
            Panel(
                title="Round trip on its own channel and in the stream",
                description="channel: a connection of its own, the way itself. stream: inside the generation's stream, "
                "the way and the queue that the latents make on it. Far apart: the latents fill the way.",
                unit="s",
                queries=(
                    *(
                        Query(expr=quantile(q, "ecdiff_network_rtt_seconds", _CHANNEL), legend=f"channel p{100 * q:g}")
                        for q in (0.5, 0.95)
                    ),
                    *(
                        Query(expr=quantile(q, "ecdiff_network_rtt_seconds", _STREAM), legend=f"stream p{100 * q:g}")
                        for q in (0.5, 0.95)
                    ),
                ),
            ),
            Panel(
                title="Age of latents on arrival",
                description="From the cloud's send to their arrival here, clock offset taken off, floored at 0: half a "
                "round trip, the bytes' time on the wire, and the queue.",
                unit="s",
                queries=quantiles("ecdiff_latents_transit_seconds", _EDGE, 0.5, 0.95, 0.99),
            ),
        ),
        (
            Panel(
                title="Tensors, bytes a second, raw and wire",
                description="What the models made (raw) and what crossed the way (wire), each way.",
                unit="Bps",
                queries=(
                    Query(expr=_bytes("raw", "direction"), legend="{{direction}} raw"),
                    Query(expr=_bytes("wire", "direction"), legend="{{direction}} wire"),
                ),
            ),
            Panel(
                title="Wire over raw, by codec",
                description="What each codec leaves of the bytes; 100 % is no gain. Only codecs that were used show.",
                unit="percentunit",
                queries=(Query(expr=f"{_bytes('wire', 'codec')} / {_bytes('raw', 'codec')}", legend="{{codec}}"),),
            ),
        ),
        (
            Panel(
                title="Codec, mean time a tensor",
                description="What encoding and decoding cost, on the edge and in the cloud (job).",
                unit="s",
                queries=(mean("ecdiff_codec_seconds", "", "job, operation, codec"),),
            ),
            Panel(
                title="Clock offset and its uncertainty",
                description="Cloud clock minus edge clock. The true offset lies within the uncertainty of it; "
                "durations do not depend on it, one-way times do.",
                unit="s",
                queries=(
                    Query(expr=f"ecdiff_clock_offset_seconds{{{_EDGE}}}", legend="{{instance}} offset"),
                    Query(
                        expr=f"ecdiff_clock_offset_uncertainty_seconds{{{_EDGE}}}", legend="{{instance}} uncertainty"
                    ),
                ),
            ),
        ),
    ),
)
