"""Which cloud a client uses: those it was named, those that its orchestrator names, or one of its own."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable, Sequence

from diffusion.lora_file import Lora
from diffusion.model import ModelInfo
from edge_client.cloud_link import CloudLink
from edge_client.local_cloud import STOP_SECONDS, LocalCloud
from edge_client.orchestrator_link import OrchestratorLink
from edge_client.recorder import Recorder
from edge_client.request import REMOTE_WAIT_SECONDS
from wire.credentials import Credentials
from wire.errors import EcdiffError, NotServing
from wire.resolver import Targets
from wire.targets import Endpoint

# A service of our own may be downloading its model; its end is noticed at once.
OWN_WAIT_SECONDS = 3600.0
# For the first contact with another cloud while a generation waits; the edge model could make steps meanwhile.
ANOTHER_SECONDS = 3.0

AboutEdge = Callable[[], Awaitable[ModelInfo]]


class CloudContact:
    """Makes and keeps the link to one cloud.

    Args:
        targets: Running services, in order of preference; empty: see the next ones.
        orchestrator: Names the services where no target was given.
        cloud_model: Folder or hub id for a service of its own; it starts one where nobody names any.
        cloud_loras: Fused into that model's weights.
        device: For that.
        dtype: For that.
        credentials: For all services but its own.
    """

    def __init__(
        self,
        targets: tuple[str, ...],
        orchestrator: OrchestratorLink | None,
        *,
        cloud_model: str | None,
        cloud_loras: Sequence[Lora],
        device: str,
        dtype: str,
        credentials: Credentials,
    ) -> None:
        self.link: CloudLink | None = None
        self._targets = Targets(targets) if targets else None
        # A model that is named for a service of its own is meant: nobody else's is asked for.
        self._orchestrator = None if targets or cloud_model is not None or cloud_loras else orchestrator
        self._cloud_model, self._cloud_loras = cloud_model, cloud_loras
        self._device, self._dtype = device, dtype
        self._credentials = credentials
        self._local_cloud: LocalCloud | None = None
        self._left: list[CloudLink] = []

    @property
    def is_own(self) -> bool:
        """Whether the cloud is a process of this client's, on this machine."""
        return self._local_cloud is not None

    @property
    def model_to_start(self) -> str | None:
        """The large model that the next contact starts a service with; None: it starts none, or the bundled one's."""
        starts = self._targets is None and self._orchestrator is None and self._local_cloud is None
        return self._cloud_model if starts else None

    @property
    def is_assigned(self) -> bool:
        """Whether an orchestrator says which cloud is used."""
        return self._orchestrator is not None

    async def reach(self, recorder: Recorder, about_edge: AboutEdge) -> CloudLink:
        """Return the link, made now where there is none.

        Args:
            recorder: Told of the time it took, and of what is not as it should be.
            about_edge: Returns what the edge model is, which an orchestrator wants to know.

        Raises:
            EcdiffError: Nobody serves.
        """
        if self._orchestrator is not None:
            return await self._reach_assigned(self._orchestrator, recorder, await about_edge())
        if self.link is not None:
            return self.link
        if self._targets is not None:
            started = time.perf_counter()
            self.link = await self._connect(await self._targets.endpoints(), recorder)
            for problem in self._targets.problems:
                recorder.warn(problem)
            recorder.seconds["connect"] = time.perf_counter() - started
            return self.link
        if self._local_cloud is None:
            self._local_cloud = await LocalCloud.start(
                self._cloud_model, device=self._device, dtype=self._dtype, loras=self._cloud_loras
            )
        try:
            return await self._connect_to_own(self._local_cloud, recorder)
        except EcdiffError:
            await self.forget()  # the next contact starts another
            raise

    async def another(self, useless: set[str], recorder: Recorder, about_edge: AboutEdge) -> CloudLink | None:
        """Return a link to another cloud that serves the same model, and keep that; None where there is none.

        The link that was kept is closed by `close_left`: the generation still reads what it measured.

        Args:
            useless: Addresses that are not asked.
            recorder: Told of an orchestrator that does not answer.
            about_edge: As for `reach`.
        """
        if self.link is None or self._local_cloud is not None:
            return None
        try:
            endpoints = await self._named_now(recorder, about_edge)
        except EcdiffError:
            return None
        model = self.link.description.model.fingerprint
        for endpoint in endpoints:
            if endpoint.address in useless:
                continue
            try:
                async with asyncio.timeout(ANOTHER_SECONDS):
                    link = await CloudLink.connect_to((endpoint,), self._credentials, wait_seconds=0.0)
            except (EcdiffError, TimeoutError):
                useless.add(endpoint.address)
                continue
            if link.description.model.fingerprint == model:
                self._left.append(self.link)
                self.link = link
                return link
            useless.add(endpoint.address)
            await link.close()
        return None

    async def _named_now(self, recorder: Recorder, about_edge: AboutEdge) -> tuple[Endpoint, ...]:
        if self._orchestrator is not None:
            return await self._orchestrator.replicas(await about_edge(), recorder.warn)
        assert self._targets is not None, "else there is an orchestrator, or a service of its own"
        return await self._targets.endpoints()

    async def close_left(self) -> None:
        """Close the links that generations have left."""
        left, self._left = self._left, []
        for link in left:
            await link.close()

    async def forget(self) -> None:
        """After a loss the next contact is a first one; a dead service of ours is replaced."""
        await self.close_left()
        if self.link is not None:
            await self.link.close()
            self.link = None
        if self._local_cloud is not None:
            local, self._local_cloud = self._local_cloud, None
            await local.stop()

    async def _reach_assigned(self, orchestrator: OrchestratorLink, recorder: Recorder, edge: ModelInfo) -> CloudLink:
        started = time.perf_counter()
        if self.link is None:
            self.link = await self._connect(await orchestrator.replicas(edge, recorder.warn), recorder)
        elif better := await orchestrator.better_replicas(self.link.address, edge):
            # One that serves is let go only for another that does.
            current = self.link
            try:
                self.link = await self._connect(better, recorder)
            except EcdiffError as error:
                recorder.warn(f"{error}: staying with the cloud at {current.address}")
            else:
                await current.close()
        recorder.seconds["connect"] = time.perf_counter() - started
        return self.link

    async def _connect(self, endpoints: tuple[Endpoint, ...], recorder: Recorder) -> CloudLink:
        link = await self._connect_to_first(endpoints)
        if link.address != endpoints[0].address:
            recorder.warn(f"{endpoints[0].address} does not serve; using the cloud at {link.address}")
        return link

    async def _connect_to_first(self, endpoints: tuple[Endpoint, ...]) -> CloudLink:
        """Return a link to the first that serves; one that loads or drains is waited for where no other serves."""
        if len(endpoints) > 1:
            with contextlib.suppress(NotServing):
                return await CloudLink.connect_to(endpoints, self._credentials, wait_seconds=0.0)
        return await CloudLink.connect_to(endpoints, self._credentials, wait_seconds=REMOTE_WAIT_SECONDS)

    async def _connect_to_own(self, local: LocalCloud, recorder: Recorder) -> CloudLink:
        """Wait for the service to load its model, or to say why it cannot."""
        failing = asyncio.create_task(local.wait_failed())
        connecting = asyncio.create_task(
            CloudLink.connect((local.address,), Credentials(), wait_seconds=OWN_WAIT_SECONDS, keep_trying=True)
        )
        try:
            await asyncio.wait({failing, connecting}, return_when=asyncio.FIRST_COMPLETED)
            if connecting.done() and connecting.exception() is not None:
                # A service that goes down breaks the connection a moment before its process is gone.
                await asyncio.wait({failing}, timeout=STOP_SECONDS)
            if failing.done():
                raise failing.result()
            self.link = connecting.result()
        finally:
            for task in (failing, connecting):
                task.cancel()
            await asyncio.gather(failing, connecting, return_exceptions=True)
        started = time.perf_counter()
        await self.link.describe()
        recorder.seconds["connect"] = time.perf_counter() - started
        return self.link
