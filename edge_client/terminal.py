"""What the user sees: one live line while a generation runs, and a table when it is done."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from edge_client.recorder import Snapshot
    from edge_client.report import Report

SOURCE_STYLES = {"C": "bold blue", "x": "cyan", "e": "bold green", "-": "dim"}
LEGEND = "C cloud   x extrapolated   e edge"


class ProgressDisplay:
    """Shows snapshots on stderr: live on a terminal, only the notes elsewhere, each note once.

    Set `title` and `request_id` before a generation starts.
    """

    def __init__(self, *, quiet: bool, on_preview: Callable[[bytes], None] | None = None) -> None:
        """Prepare.

        Args:
            quiet: Show nothing.
            on_preview: Takes the previews; None: a terminal shows them.
        """
        self._on_preview = on_preview
        self._preview: Text | None = None
        self._console = Console(stderr=True, quiet=quiet, highlight=False, soft_wrap=True)
        self._live: Live | None = None
        self._noted: set[str] = set()
        self._queued: set[str] = set()
        self.title = ""
        self.request_id = ""

    @contextmanager
    def running(self, title: str) -> Iterator[ProgressDisplay]:
        """Show a live line for the length of the block."""
        if not self._console.is_terminal:
            yield self
            return
        self.title = title
        with Live(
            Text(f"{title}: starting"), console=self._console, refresh_per_second=12, transient=True
        ) as self._live:
            try:
                yield self
            finally:
                self._live.update(Text(""))
        self._live = None

    def __call__(self, snapshot: Snapshot) -> None:
        """Show a snapshot."""
        if snapshot.note:
            self.note(f"{snapshot.note} (request {self.request_id})")
        if snapshot.preview:
            self._take_preview(snapshot.preview)
        if self._live is not None:
            shown = render(self.title, snapshot)
            self._live.update(shown if self._preview is None else Group(shown, self._preview))

    def _take_preview(self, png: bytes) -> None:
        if self._on_preview is not None:
            self._on_preview(png)
        elif self._live is not None:
            from edge_client.preview_output import in_half_blocks

            self._preview = in_half_blocks(png)

    def wait_in_queue(self, num_ahead: int) -> None:
        """Show a place in the agent's queue; where there is no live line, the first one only."""
        if not num_ahead:
            return
        line = f"{num_ahead} ahead in the agent's queue"
        if self._live is not None:
            place = Text.assemble((f"{'waiting':<14} ", "bold"), (line, "yellow"))
            self._live.update(Group(Text(self.title, "italic"), place))
        elif self.request_id not in self._queued:
            self._queued.add(self.request_id)
            self.note(f"{line} (request {self.request_id})")

    def note(self, line: str) -> None:
        """Show a line for the user, once."""
        if line not in self._noted:
            self._noted.add(line)
            self._console.print(f"note: {line}", markup=False)


def render(title: str, snapshot: Snapshot) -> RenderableType:
    """Return a snapshot as two lines: the steps, and the numbers."""
    steps = Text()
    for letter in snapshot.step_sources:
        steps.append(letter, SOURCE_STYLES[letter])
    steps.append("·" * (snapshot.num_inference_steps - len(snapshot.step_sources)), "dim")
    numbers = Text(f"{snapshot.phase:<14}", "bold")
    numbers.append(f" step {len(snapshot.step_sources)}/{snapshot.num_inference_steps}")
    if snapshot.queue_position:
        numbers.append(f"  {snapshot.queue_position} ahead in the cloud's queue", "yellow")
    if snapshot.rtt_seconds:
        numbers.append(f"  round trip {snapshot.rtt_seconds * 1000:.1f} ms")
    if snapshot.bytes_received:
        numbers.append(f"  received {kib(snapshot.bytes_received)}  sent {kib(snapshot.bytes_sent)}")
    numbers.append(f"   {LEGEND}", "dim")
    return Group(Text(title, "italic"), steps, numbers)


def kib(num_bytes: int) -> str:
    """Return a byte count in KiB or MiB."""
    return f"{num_bytes / 1024:.1f} KiB" if num_bytes < 2**20 else f"{num_bytes / 2**20:.2f} MiB"


def milliseconds(seconds: float) -> str:
    """Return a duration in ms."""
    return f"{seconds * 1000:.0f}" if seconds >= 0.1 else f"{seconds * 1000:.1f}"


def results_table(reports: Sequence[Report]) -> Table:
    """Return the table of one prompt, one column a generation: what ran where and what it cost."""
    table = Table(
        title=Text(f'"{reports[0]["prompt"]}"'),
        title_justify="left",
        caption=_caption(reports),
        caption_justify="left",
        caption_style="dim",
        header_style="bold",
        pad_edge=False,
    )
    table.add_column("")
    for report in reports:
        table.add_column(report["mode"], justify="right")
    columns = [_cells(report) for report in reports]
    for name in columns[0]:
        table.add_row(name, *(cells[name] for cells in columns), end_section=name in LAST_OF_SECTION)
    return table


def _caption(reports: Sequence[Report]) -> str:
    """Say by which ids the logs know these generations, and which agent made them."""
    agents = dict.fromkeys(report["agent"] for report in reports if report["agent"])
    made_by = f", made by the agent at {', '.join(agents)}" if agents else ""
    return f"request {', '.join(report['request_id'] for report in reports)}{made_by}"


LAST_OF_SECTION = ("handoff", "total s", "latents wire/raw")


def _cells(report: Report) -> dict[str, str]:
    nfe, seconds, sizes = report["nfe"], report["seconds"], report["bytes"]
    discarded = f" ({nfe['cloud_discarded']} discarded)" if nfe["cloud_discarded"] else ""
    handoff = report["handoff"]
    online = bool(sizes["sent"])
    rtt, raw = report["network"]["rtt_seconds"], sizes["latents_raw"]
    return {
        "cloud evaluations": f"{nfe['cloud']}{discarded}",
        "extrapolated steps": str(nfe["extrapolated"]),
        "corrections": str(nfe["corrections"]) if online else "-",
        "edge evaluations": str(nfe["edge"]),
        "handoff": f"{handoff['reason']} @ {handoff['step']}" if handoff else "-",
        "cloud compute ms": milliseconds(seconds["cloud_compute"]) if online else "-",
        "network ms": milliseconds(seconds["network"]) if online else "-",
        "handoff ms": milliseconds(seconds["handoff"]) if handoff else "-",
        "edge compute ms": milliseconds(seconds["edge_compute"]),
        "decode ms": milliseconds(seconds["decode"]),
        "total s": f"{seconds['total']:.2f}",
        "received": kib(sizes["received"]) if online else "-",
        "sent": kib(sizes["sent"]) if online else "-",
        "latents wire/raw": f"{sizes['latents_wire'] / raw:.2f}" if raw else "-",
        "round trip ms p50 (p95)": f"{milliseconds(rtt['p50'])} ({milliseconds(rtt['p95'])})" if online else "-",
    }


def print_results(reports: Sequence[Report], written: Sequence[str]) -> None:
    """Print the table, the steps and the files on stdout."""
    console = Console(highlight=False)
    for prompt in dict.fromkeys(report["prompt"] for report in reports):
        console.print(results_table([report for report in reports if report["prompt"] == prompt]))
    for report in reports:
        steps = Text(f"{report['mode']:>8}  ")
        for letter in report["step_sources"]:
            steps.append(letter, SOURCE_STYLES[letter])
        console.print(steps, soft_wrap=True)
    console.print(Text(f"{'':>8}  {LEGEND}", "dim"))
    for report in reports:
        shadow = report["shadow"] or {}
        for why in filter(None, (report["plan"].get("why"), shadow.get("why"))):
            console.print(Text(f'"{report["prompt"]}": {why}', "dim"), soft_wrap=True)
    for name in written:
        console.print(f"wrote {name}", markup=False, soft_wrap=True)
