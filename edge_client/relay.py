"""The clouds of one generation, one after the other: where one is lost, the next goes on from the newest latents."""

from __future__ import annotations

import asyncio
import contextlib
import math
import random
import time
from collections.abc import Awaitable, Callable

from edge_client.cloud_lead import CloudLead
from edge_client.cloud_link import CloudLink
from edge_client.lead import Lead, lost_reason
from edge_client.recorder import Recorder
from wire.errors import Busy, EcdiffError, StreamBroke
from wire.messages import State

# What a generation waits in all for a place, where every cloud is full. Longer, and the edge is there sooner.
MAX_BUSY_SECONDS = 5.0
# A cloud that says "at once" is asked this often at most.
MIN_RETRY_SECONDS = 0.1
# For finding another cloud, however many there are to ask; the edge model could make steps meanwhile.
SEARCH_SECONDS = 5.0
# Of what the cloud said, on top: clients that were refused together do not come back together.
BUSY_JITTER = 0.5

NextLink = Callable[[set[str]], Awaitable[CloudLink | None]]


class Relay:
    """Follows the clouds of a generation until one of them comes to the handoff, or none is left.

    Args:
        link: The first one.
        next_link: Returns another that serves the same model, given the addresses that are no use any more; None where
            there is none.
        lead_on: Makes what follows one session on a link, from a state; None: from the start.
        recorder: Told where a generation moves to.
        seconds_to_takeover: Until the edge must take over before a step.
    """

    def __init__(
        self,
        link: CloudLink,
        next_link: NextLink,
        lead_on: Callable[[CloudLink, State | None], CloudLead],
        recorder: Recorder,
        *,
        seconds_to_takeover: Callable[[int], float],
    ) -> None:
        self.link = link
        self.cloud = lead_on(link, None)
        self._next_link = next_link
        self._lead_on = lead_on
        self._recorder = recorder
        self._seconds_to_takeover = seconds_to_takeover
        self._useless: set[str] = set()
        self._broke_at = -1
        self._refused_at = math.inf

    async def follow(self) -> Lead:
        """Return what the last of the clouds left.

        Raises:
            EcdiffError: The first one says that the request itself is wrong.
        """
        self._watch(self.link)
        lead = await self.cloud.follow()
        while lead.lost is not None and (link := await self._onward(lead, lead.lost)) is not None:
            lead = await self._go_on(link, lead, lead.lost)
        return lead

    async def _onward(self, lead: Lead, lost: EcdiffError) -> CloudLink | None:
        """Return the link to go on with: another cloud, or the same address where it has a place or a replica again."""
        step = 0 if lead.state is None else lead.state.step_index
        if self._recorder.plan.max_cloud_calls is not None or self._seconds_to_takeover(step) <= 0.0:
            # What the lost one evaluated is spent: with a hard bound the plan's rest does not fit any more.
            return None
        if isinstance(lost, StreamBroke) and step > self._broke_at:
            # A proxy answers at that address, maybe for another replica too. Only a step made since is worth a return.
            self._broke_at = step
        else:
            self._useless.add(self.link.address)
        link = None
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(min(SEARCH_SECONDS, self._seconds_to_takeover(step))):
                link = await self._next_link(self._useless)
        if link is None and isinstance(lost, Busy) and not self.cloud.answered:
            link = await self._wait_for_place(lost, self._seconds_to_takeover(step))
        return link

    async def _wait_for_place(self, lost: Busy, seconds_left: float) -> CloudLink | None:
        now = time.perf_counter()
        self._refused_at = min(self._refused_at, now)
        wait_seconds = max(lost.retry_after_seconds, MIN_RETRY_SECONDS) * (1 + BUSY_JITTER * random.random())
        if now + wait_seconds - self._refused_at > MAX_BUSY_SECONDS or wait_seconds > seconds_left:
            return None
        self._recorder.enter("waiting for a place")
        await asyncio.sleep(wait_seconds)
        return self.link

    async def _go_on(self, link: CloudLink, lead: Lead, lost: EcdiffError) -> Lead:
        """Follow the next session; where it will not have this generation, what there was stands."""
        await self.leave()
        step = 0 if lead.state is None else lead.state.step_index
        recorder, moves = self._recorder, link is not self.link
        recorder.next_cloud(step)
        if not moves:
            link.start_probing()
        else:
            self._watch(link)
            num_steps = recorder.plan.num_inference_steps
            left = f"left the cloud at {self.link.address} ({lost})"
            recorder.move(
                lost_reason(lost), f"{left}: the cloud at {link.address} goes on from step {step} of {num_steps}"
            )
        self.link, self.cloud = link, self._lead_on(link, lead.state)
        began = time.perf_counter()
        recorder.seconds["network"] += began - lead.decided_at
        try:
            return await self.cloud.follow()
        except EcdiffError as error:
            # This is no wrong request: another cloud took it.
            return Lead(opened=lead.opened, state=lead.state, reason=lead.reason, lost=error, decided_at=began)

    def _watch(self, link: CloudLink) -> None:
        link.estimate.take_new_rtts()  # those of earlier generations
        link.start_probing()
        self._recorder.link = link.estimate
        self._recorder.clouds.append(link.address)

    async def leave(self) -> None:
        """Let go of the present session, and take down what it measured."""
        await self.cloud.close()
        await self.take_down()

    async def take_down(self) -> None:
        """Take down what was measured on the way to the present cloud."""
        await self.link.stop_probing()
        self._recorder.rtt_seconds += self.link.estimate.take_new_rtts()
        self.cloud.record_traffic()
