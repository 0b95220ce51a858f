"""A service as a process, and hundreds of sessions that come and go in every way: nothing is lost, nothing stays."""

from __future__ import annotations

import asyncio
import contextlib
import random
import signal
import time
from collections import Counter
from collections.abc import AsyncIterator
from dataclasses import dataclass, field

import grpc.aio
import numpy as np
import psutil
import pytest
from cloud_harness import Stream, always, ecdiff, open_channel, opening

from bench.network import EmulatedNetwork, Link
from harness.cloud import Cloud, StartCloud
from harness.programs import Programs
from harness.waiting import eventually
from protos.ecdiff_v1_pb2_grpc import CloudDenoiserStub
from wire.messages import Array, Close, Finished, HandedOff, Plan, Seed, Step
from wire.serving.address import Address

pytestmark = pytest.mark.asyncio(loop_scope="session")

# At a time; the service has places for those too whose end it has not heard of yet.
CONCURRENT, PLACES = 16, 64
# Of the third that does not end well.
SHARES = {"cancelled": 0.4, "cut off": 0.3, "killed": 0.3}
SESSIONS_PER_KILLED_PROCESS = 5
PLANS = (always(6), ecdiff(8, 6), always(9, handoff_step=4))
NUM_SEEDS = 3
# One session takes a fraction of a second; of one that takes this long nobody will hear any more.
HUNG_SECONDS = 60.0
MAX_GROWTH_BYTES = 50 * 2**20


def ways(num_sessions: int, chance: random.Random) -> list[str]:
    """What becomes of each of so many sessions, or of a process with some of them; in any order."""
    counts = {way: round(share * num_sessions / 3) for way, share in SHARES.items()}
    num_processes = max(1, counts["killed"] // SESSIONS_PER_KILLED_PROCESS)
    num_whole = num_sessions - counts["cancelled"] - counts["cut off"] - num_processes * SESSIONS_PER_KILLED_PROCESS
    drawn = ["whole"] * num_whole + ["killed"] * num_processes
    drawn += ["cancelled"] * counts["cancelled"] + ["cut off"] * counts["cut off"]
    chance.shuffle(drawn)
    return drawn


@dataclass(kw_only=True)
class Churn:
    """Sessions of every kind against one service.

    Attributes:
        ended: How many sessions ended in each way.
    """

    cloud: Cloud
    programs: Programs
    chance: random.Random
    ended: Counter[str] = field(default_factory=Counter)
    _expected: dict[tuple[Plan, int], Array] = field(default_factory=dict)
    _at_programs: asyncio.Lock = field(default_factory=asyncio.Lock)

    async def run(self, num_sessions: int) -> None:
        """Run so many sessions; one that hangs, or ends with less than it should, fails the test."""
        waiting = ways(num_sessions, self.chance)

        async def work() -> None:
            async with self._channel() as stub:
                while waiting:
                    way = waiting.pop()
                    async with asyncio.timeout(HUNG_SECONDS):
                        num_ended = await self._live(way, stub)
                    self.ended[way] += num_ended

        async with asyncio.TaskGroup() as group:
            for _ in range(CONCURRENT):
                group.create_task(work())
        await eventually(self.cloud.is_empty, "the last session to be gone")

    @contextlib.asynccontextmanager
    async def _channel(self, address: str = "") -> AsyncIterator[CloudDenoiserStub]:
        async with open_channel(Address.parse(address or self.cloud.address)) as stub:
            yield stub

    async def _live(self, way: str, stub: CloudDenoiserStub) -> int:
        plan, seed = self.chance.choice(PLANS), self.chance.randrange(NUM_SEEDS)
        if way == "killed":
            return await self._be_killed()
        if way == "cut off":
            await self._be_cut_off(plan, seed)
        elif way == "cancelled":
            stream = Stream(stub)
            await stream.send(opening(plan, start=Seed(seed=seed)))
            if self.chance.random() < 0.7:
                await stream.receive_until(Step)
            stream.call.cancel()
        else:
            await self._be_whole(stub, plan, seed)
        return 1

    async def _be_whole(self, stub: CloudDenoiserStub, plan: Plan, seed: int) -> None:
        stream = Stream(stub)
        await stream.send(opening(plan, start=Seed(seed=seed)))
        _, steps, ending = await stream.receive_steps()
        await stream.send(Close())
        await stream.ends_ok()
        assert isinstance(ending, HandedOff if plan.handoff_step < plan.num_inference_steps else Finished)
        assert [step.step_index for step in steps] == list(range(plan.handoff_step))
        # The same request gives the same latents, whatever befalls the others (sums in a batch may round otherwise).
        latents = self._expected.setdefault((plan, seed), ending.state.latents)
        np.testing.assert_allclose(ending.state.latents, latents, rtol=0, atol=1e-4 * float(latents.std()))

    async def _be_cut_off(self, plan: Plan, seed: int) -> None:
        async with EmulatedNetwork(self.cloud.address, Link()) as network, self._channel(network.address) as stub:
            stream = Stream(stub)
            await stream.send(opening(plan, start=Seed(seed=seed)))
            if self.chance.random() < 0.7:
                await stream.receive_until(Step)
            network.reset()
            # It may have had its last message before that; it is not left waiting.
            with contextlib.suppress(grpc.aio.AioRpcError):
                while await stream.receive() is not None:
                    pass

    async def _be_killed(self) -> int:
        words = ("harness.doomed_client", self.cloud.address, str(SESSIONS_PER_KILLED_PROCESS))
        async with self._at_programs:
            client = await asyncio.to_thread(self.programs.forked, *words)
        await eventually(lambda: "under way" in client.stdout, "the client's sessions to be under way")
        client.signal(signal.SIGKILL)
        async with self._at_programs:
            await asyncio.to_thread(client.wait)
        return SESSIONS_PER_KILLED_PROCESS


async def check_churn(cloud: Cloud, programs: Programs, *, num_warm_up: int, num_sessions: int) -> None:
    """Churn, and compare what the service holds before and after."""
    service = psutil.Process(cloud.program.pid)
    churn = Churn(cloud=cloud, programs=programs, chance=random.Random(0))
    await churn.run(num_warm_up)
    num_files, resident_bytes = service.num_fds(), service.memory_info().rss
    churn.ended.clear()
    started = time.monotonic()
    await churn.run(num_sessions)
    seconds = time.monotonic() - started
    await eventually(lambda: service.num_fds() <= num_files, f"no more than {num_files} open files")
    growth_bytes = service.memory_info().rss - resident_bytes
    print(
        f"\n{num_sessions} sessions in {seconds:.0f} s ({dict(churn.ended)}): open files {num_files} -> "
        f"{service.num_fds()}, resident {resident_bytes / 2**20:.0f} MiB {growth_bytes / 2**20:+.1f} MiB"
    )
    assert churn.ended.total() == num_sessions
    assert growth_bytes < MAX_GROWTH_BYTES
    assert '"level": "error"' not in cloud.program.stderr
    assert "Traceback" not in cloud.program.stderr
    cloud.program.signal(signal.SIGTERM)
    assert (await asyncio.to_thread(cloud.program.wait)).returncode == 0


async def test_sessions_that_are_cancelled_cut_off_or_killed_leave_nothing_behind(
    start_cloud: StartCloud, programs: Programs
) -> None:
    cloud = start_cloud("--max-sessions", str(PLACES))
    await check_churn(cloud, programs, num_warm_up=20, num_sessions=60)


@pytest.mark.slow
@pytest.mark.timeout(1800)
async def test_a_thousand_sessions_a_third_of_them_cancelled_cut_off_or_killed_leave_nothing_behind(
    start_cloud: StartCloud, programs: Programs
) -> None:
    cloud = start_cloud("--max-sessions", str(PLACES))
    await check_churn(cloud, programs, num_warm_up=150, num_sessions=1000)
