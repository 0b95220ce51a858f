"""Making the pictures of a command: with the agent of this machine where it fits, else in this process."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_client.outcome import run_to_end
from edge_client.request import GenerationRequest
from edge_client.series import Observation
from wire.errors import Busy, EcdiffError, IncompatibleModels, NotServing, Unauthenticated, VersionMismatch
from wire.messages import Array

if TYPE_CHECKING:
    from edge_client.client import EdgeClient
    from edge_client.report import Report
    from edge_client.terminal import ProgressDisplay


@dataclass(frozen=True, kw_only=True)
class Made:
    """What a generation gave, wherever it ran.

    Attributes:
        pngs: The pictures, in the order of their seeds, with the report in them; videos are animated ones.
        report: docs/report.md.
        latents: Final latents in the model's layout, float32, before the VAE's own scaling; None: not wanted.
        observations: What it had to say to the metrics.
    """

    pngs: list[bytes]
    report: Report
    latents: Array | None
    observations: list[Observation]


class Runs:
    """Runs a command's requests, one after the other.

    Args:
        requests: What is asked for.
        display: Shows how it goes.
        title: What the display calls a request.
        keep: Takes each result as soon as it is there, before anything else can fail.
        want_latents: Whether the final latents are wanted.
    """

    def __init__(
        self,
        requests: Sequence[GenerationRequest],
        display: ProgressDisplay,
        *,
        title: Callable[[GenerationRequest], str],
        keep: Callable[[Made], None],
        want_latents: bool = False,
    ) -> None:
        self._left = list(requests)
        self._display = display
        self._title = title
        self._keep = keep
        self._want_latents = want_latents
        self._has_made = False
        self._why_here = ""
        self._told: str | None = None

    @property
    def are_done(self) -> bool:
        """Whether nothing is left to do."""
        return not self._left

    def run_by_itself(self, why: str) -> None:
        """Tell the user, and the reports, why the agent makes no picture from here on."""
        self._why_here = f"{why}: this command runs by itself"
        self._display.note(self._why_here)

    # ------------------------------------------------------------------------------ with the agent

    def with_agent(self, address: str, named: frozenset[str], options: Mapping[str, Any]) -> None:
        """Let the agent make what it can; what it cannot is left to `here`.

        Args:
            address: Where something listens.
            named: The options that the user gave.
            options: All of them, with their values.

        Raises:
            EcdiffError: As without an agent; or its queue is full at the first request.
        """
        run_to_end(self._with_agent(address, named, options))

    async def _with_agent(self, address: str, named: frozenset[str], options: Mapping[str, Any]) -> None:
        from edge_client.agent.connection import AgentConnection, AgentLost

        async with AgentConnection(address) as agent:
            try:
                why_not = await agent.why_not(named, options)
                if why_not is not None:
                    self._told = address
                    self.run_by_itself(why_not)
                    return

                async def make(request: GenerationRequest) -> Made:
                    return await agent.generate(
                        request,
                        self._display,
                        want_latents=self._want_latents,
                    )

                await self._make_all(make)
            except AgentLost as lost:
                self.run_by_itself(str(lost))
            except Busy:
                if not self._has_made:
                    raise
                # Pictures that are there are not lost for one that finds no place.
                self.run_by_itself("the agent's queue is full")

    # ------------------------------------------------------------------------------ in this process

    def here(self, client: EdgeClient) -> None:
        """Make what is left, and tell the agent what it took, if there is one that does not fit.

        Raises:
            EcdiffError, ValueError, OSError: See `EdgeClient.generate`.
        """
        run_to_end(self._here(client))

    async def _here(self, client: EdgeClient) -> None:
        from edge_client.videos import encode_pixels

        observed: list[Observation] = []

        async def make(request: GenerationRequest) -> Made:
            try:
                result = await client.run(request, self._display)
            finally:
                observed.extend(client.metrics.latest)
            if self._why_here:
                result.report["warnings"].append(self._why_here)
            return Made(
                pngs=await asyncio.to_thread(encode_pixels, result.pixels, result.report),
                report=result.report,
                latents=result.latents,
                observations=client.metrics.latest,
            )

        async with client:
            try:
                # Kept before the client lets go of its cloud: neither that nor a Ctrl-C meanwhile may cost a picture.
                await self._make_all(make)
            finally:
                if self._told is not None:
                    await self._record(self._told, observed)

    async def _record(self, address: str, observed: list[Observation]) -> None:
        from edge_client.agent.connection import AgentConnection

        async with AgentConnection(address) as agent:
            try:
                await agent.record(observed)
            except EcdiffError as error:
                self._display.note(f"the agent at {address} did not take what this run measured ({error})")

    async def _make_all(self, make: Callable[[GenerationRequest], Awaitable[Made]]) -> None:
        while self._left:
            request = self._left[0]
            self._display.title, self._display.request_id = self._title(request), request.request_id
            try:
                made = await make(request)
            except EcdiffError as error:
                # These are found before a request is sent; what fails later stands in the cloud's log by its id.
                if not isinstance(error, IncompatibleModels | NotServing | Unauthenticated | VersionMismatch):
                    error.add_note(f"request {request.request_id}")
                raise
            self._keep(made)
            self._has_made = True
            del self._left[0]
