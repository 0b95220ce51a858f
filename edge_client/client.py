"""The Python API: an `EdgeClient` holds an edge model and a cloud, and generates."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from dataclasses import replace
from types import TracebackType
from typing import Any

from diffusion.compatibility import check_pair
from diffusion.model import ModelInfo
from edge_client.cloud_link import CloudLink
from edge_client.cloud_session import Patience
from edge_client.decision import decide
from edge_client.edge_model import EdgeModel
from edge_client.generation import Generation, GenerationResult
from edge_client.local_cloud import STOP_SECONDS, LocalCloud, half_of_the_cores
from edge_client.measured_costs import MeasuredCosts, time_once
from edge_client.metrics import EdgeMetrics
from edge_client.recorder import Recorder, Snapshot
from edge_client.request import REMOTE_WAIT_SECONDS, GenerationRequest, parse_addresses
from models import DEFAULT_GUIDANCE_SCALE as BUNDLED_GUIDANCE_SCALE
from models import bundled_pair
from orchestrator.cost import Costs
from orchestrator.decision import Decision
from orchestrator.handoff import HandoffReason
from orchestrator.link import LinkEstimate
from orchestrator.plan import DEFAULT_MODE, PlanOptions
from wire.credentials import Credentials
from wire.errors import EcdiffError, IncompatibleModels
from wire.fleet_messages import LatencyEstimate

# A service of our own may be downloading its model; its end is noticed at once.
OWN_WAIT_SECONDS = 3600.0
DIFFUSERS_GUIDANCE_SCALE = 7.5


class EdgeClient:
    """Generates pictures with a small model here and a large one in a cloud service.

    ```python
    async with EdgeClient() as client:
        result = await client.generate("red apple, fluent style")
        result.images[0].save("apple.png")
    ```

    Args:
        cloud: `HOST:PORT[,HOST:PORT]` of running cloud services. Without it the client starts one of its
            own, on loopback, when a mode first needs it.
        cloud_model: Folder or hub id for a cloud service of its own; default: the bundled large model.
        edge_model: Folder or hub id of the small model; default: the bundled one.
        device: `auto`, `cpu` or `cuda`.
        dtype: `auto`, `float32`, `float16` or `bfloat16`.
        credentials: Token and certificates for `cloud`.
        silence_seconds: A cloud that says nothing for this long is lost, and the edge goes on alone.
        step_seconds: So is one that makes no step for this long, although it says that it is at it.

    Raises:
        ValueError: Both `cloud` and `cloud_model` are given.
    """

    def __init__(
        self,
        *,
        cloud: str | None = None,
        cloud_model: str | None = None,
        edge_model: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        credentials: Credentials | None = None,
        silence_seconds: float = 3.0,
        step_seconds: float = 120.0,
    ) -> None:
        if cloud is not None and cloud_model is not None:
            raise ValueError("--cloud uses the model that is served there; leave --cloud-model out")
        self._addresses = () if cloud is None else parse_addresses(cloud)
        self._cloud_model = cloud_model
        self._edge_model_path = edge_model or str(bundled_pair().edge)
        self.default_guidance_scale = BUNDLED_GUIDANCE_SCALE if edge_model is None else DIFFUSERS_GUIDANCE_SCALE
        self._device = device
        self._dtype = dtype
        self._credentials = credentials or Credentials()
        self._patience = Patience(silence_seconds=silence_seconds, step_seconds=step_seconds)
        self._local_cloud: LocalCloud | None = None
        self._link: CloudLink | None = None
        self._warnings: tuple[str, ...] = ()
        self._edge: EdgeModel | None = None
        self._measured: MeasuredCosts | None = None
        # One edge model, one thread: generations take turns.
        self._turn = asyncio.Lock()
        self.metrics = EdgeMetrics()

    async def __aenter__(self) -> EdgeClient:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self.close()

    async def close(self) -> None:
        """Let go of the cloud (stop it, if it is the client's own) and of the model."""
        if self._link is not None:
            await self._link.close()
        if self._local_cloud is not None:
            await self._local_cloud.stop()
        if self._edge is not None:
            self._edge.close()
        self._link = self._local_cloud = self._edge = self._measured = None

    async def generate(self, prompt: str, *, mode: str = DEFAULT_MODE, **options: Any) -> GenerationResult:
        """Generate from a prompt; the options are those of `GenerationRequest` and `PlanOptions`.

        Raises:
            ValueError: An option does not fit.
            EcdiffError: Nobody serves at first contact, or the cloud says that the request is wrong. Later
                than that the cloud cannot cost the picture.
            OSError: A model cannot be loaded.
        """
        plan_fields = PlanOptions.__dataclass_fields__
        plan_options = PlanOptions(**{name: options.pop(name) for name in list(options) if name in plan_fields})
        options.setdefault("guidance_scale", self.default_guidance_scale)
        request = GenerationRequest(prompt=prompt, mode=mode, plan_options=plan_options, **options)
        return await self.run(request)

    async def run(
        self, request: GenerationRequest, on_progress: Callable[[Snapshot], None] | None = None
    ) -> GenerationResult:
        """Run one request; see `generate` for what it raises. Concurrent calls take turns."""
        async with self._turn:
            return await self._run(request, on_progress)

    async def _run(
        self, request: GenerationRequest, on_progress: Callable[[Snapshot], None] | None
    ) -> GenerationResult:
        recorder = Recorder(request=request, link=LinkEstimate(), on_progress=on_progress)
        self.metrics.begin(recorder)
        recorder.enter("loading models")
        try:
            edge, link = await self._ready(request, recorder)
            if link is not None:
                recorder.link = link.estimate
                for line in self._warnings:
                    recorder.warn(line)
            decision = await self._decide(request, edge, link, recorder)
            generation = Generation(request, edge, link, recorder, decision=decision, patience=self._patience)
            for line in decision.lines:
                recorder.warn(line)
            result = await generation.run()
        except BaseException as error:
            self.metrics.failed(interrupted=isinstance(error, asyncio.CancelledError))
            raise
        self.metrics.finished(with_fallbacks=bool(recorder.fallbacks))
        if self._measured is not None:
            self._measured.learn(recorder.cloud_steps.values(), len(recorder.disagreements), result.latents.shape)
        lost_later = any(reason == "cloud_lost" for _, reason in recorder.corrections_skipped)
        if lost_later or recorder.handoff_reason in (HandoffReason.CLOUD_LOST, HandoffReason.CLOUD_ERROR):
            await self._forget_cloud()
        return result

    async def load(self) -> ModelInfo:
        """Load the edge model and evaluate it, so that no generation pays for its first time; return what it is.

        Raises:
            ValueError: The model cannot be used here.
            OSError: It cannot be loaded.
        """
        async with self._turn:
            edge = await self._load_edge()
            await time_once(edge)
            return edge.model.info

    async def reach_cloud(self) -> CloudLink:
        """Return the link to a cloud that has just answered; a new one where there was none, or it was lost.

        Raises:
            EcdiffError: Nobody serves. The next call or generation makes its own first contact.
        """
        async with self._turn:
            if self._link is not None:
                try:
                    await self._link.probe()
                except EcdiffError:
                    await self._forget_cloud()
                    raise
                return self._link
            return await self._connect(Recorder(request=GenerationRequest(prompt="nothing"), link=LinkEstimate()))

    @property
    def link(self) -> CloudLink | None:
        """The way to the cloud; None before first contact and after a loss."""
        return self._link

    @property
    def edge(self) -> EdgeModel | None:
        """The edge model; None before it is loaded."""
        return self._edge

    async def predict(self, request: GenerationRequest) -> LatencyEstimate:
        """Return what a request is predicted to take here and now, without connecting and loading models.

        Raises:
            ValueError: As `generate`, as the next two; also in mode edge it asks a cloud, for what it measures at once.
            EcdiffError: Nobody serves, or the cloud does not answer.
            OSError: A model cannot be loaded.
        """
        async with self._turn:
            edge, link = await self._load_edge(), await self._connect(Recorder(request=request, link=LinkEstimate()))
            decision = decide(request, link.description.model, edge.model.info, await self._costs(request, edge, link))
        assert decision.estimate is not None
        return decision.estimate

    async def _costs(self, request: GenerationRequest, edge: EdgeModel, link: CloudLink) -> Costs:
        if self._measured is None:
            self._measured = MeasuredCosts(edge, link)
        default = link.description.model
        height, width = request.height or default.default_height, request.width or default.default_width
        return await self._measured.now(edge.model.latents_shape(height, width, request.num_images))

    async def _decide(
        self, request: GenerationRequest, edge: EdgeModel, link: CloudLink | None, recorder: Recorder
    ) -> Decision:
        cloud = None if link is None else link.description.model
        if link is None or request.plan_options.deadline_ms is None:
            decision = decide(request, cloud, edge.model.info, None)
        else:
            started = time.perf_counter()
            try:
                costs = await self._costs(request, edge, link)
            except EcdiffError as error:
                # It was seen serving: the stream finds out what became of it, and the edge makes the picture in time.
                recorder.fall_back(f"what the plans take cannot be measured ({error}): chosen without the deadline")
                timeless = replace(request, plan_options=replace(request.plan_options, deadline_ms=None))
                decision = decide(timeless, cloud, edge.model.info, None)
            else:
                decision = decide(request, cloud, edge.model.info, costs)
            recorder.seconds["connect"] += time.perf_counter() - started
        recorder.decision = decision
        return decision

    async def _ready(self, request: GenerationRequest, recorder: Recorder) -> tuple[EdgeModel, CloudLink | None]:
        """Load the edge model and reach the cloud, at the same time."""
        if not request.uses_cloud:
            return await self._load_edge(), None
        try:
            async with asyncio.TaskGroup() as group:
                loading = group.create_task(self._load_edge())
                connecting = group.create_task(self._connect(recorder))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        edge, link = loading.result(), connecting.result()
        if self._local_cloud is not None:
            await edge.compute_on(half_of_the_cores())
        verdict = check_pair(link.description.model, edge.model.info)
        if verdict.refusal is not None:
            raise IncompatibleModels(verdict.refusal)
        self._warnings = verdict.warnings
        return edge, link

    async def _load_edge(self) -> EdgeModel:
        if self._edge is None:
            self._edge = await EdgeModel.load(self._edge_model_path, device=self._device, dtype=self._dtype)
        return self._edge

    async def _connect(self, recorder: Recorder) -> CloudLink:
        if self._link is not None:
            return self._link
        if self._addresses:
            started = time.perf_counter()
            self._link = await CloudLink.connect(self._addresses, self._credentials, wait_seconds=REMOTE_WAIT_SECONDS)
            recorder.seconds["connect"] = time.perf_counter() - started
            if self._link.address != self._addresses[0]:
                recorder.warn(f"{self._addresses[0]} does not serve; using the cloud at {self._link.address}")
            return self._link
        if self._local_cloud is None:
            self._local_cloud = await LocalCloud.start(self._cloud_model, device=self._device, dtype=self._dtype)
        return await self._connect_to_own(self._local_cloud, recorder)

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
            self._link = connecting.result()
        finally:
            for task in (failing, connecting):
                task.cancel()
            await asyncio.gather(failing, connecting, return_exceptions=True)
        started = time.perf_counter()
        await self._link.describe()
        recorder.seconds["connect"] = time.perf_counter() - started
        return self._link

    async def _forget_cloud(self) -> None:
        """After a loss the next generation makes its own first contact; a dead service of ours is replaced."""
        if self._link is not None:
            await self._link.close()
            self._link = self._measured = None
        if self._local_cloud is not None:
            await self._local_cloud.stop()
            self._local_cloud = None
