"""The Python API: an `EdgeClient` holds an edge model and a cloud, and generates."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import Any

from diffusion.compatibility import check_pair
from diffusion.lora_file import Lora
from diffusion.model import ModelInfo
from diffusion.vae_choice import OWN_VAE, VaeChoice
from edge_client.cloud_link import CloudLink
from edge_client.contact import CloudContact
from edge_client.counsel import Counsel
from edge_client.decision import decide
from edge_client.edge_model import EdgeModel
from edge_client.generation import Generation, GenerationResult
from edge_client.local_cloud import half_of_the_cores
from edge_client.measured_costs import time_once
from edge_client.metrics import EdgeMetrics
from edge_client.orchestrator_link import OrchestratorLink
from edge_client.pair_folders import check_folders
from edge_client.patience import Patience
from edge_client.preview import previewing
from edge_client.recorder import Recorder, Snapshot
from edge_client.request import GenerationRequest
from models import bundled_pair
from orchestrator.handoff import HandoffReason
from orchestrator.link import LinkEstimate
from orchestrator.plan import DEFAULT_MODE, PlanOptions
from wire.credentials import Credentials
from wire.errors import EcdiffError, IncompatibleModels
from wire.fleet_messages import LatencyEstimate
from wire.targets import parse_targets


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
        loras: Fused into the small model's weights.
        vae: What decodes, where that is not the small model's own, and how.
        cloud_loras: Fused into those of the large one of a cloud service of its own.
        offload: Where the small model's weights wait: `none`, `model` or `sequential`.
        device: `auto`, `cpu` or `cuda`.
        dtype: `auto`, `float32`, `float16` or `bfloat16`.
        orchestrator: `HOST:PORT` of an orchestrator service. It names the cloud where neither `cloud` nor
            `cloud_model` does, chooses the plans of mode adaptive, and is told how generations went.
        credentials: Token and certificates for `cloud` and `orchestrator`.
        silence_seconds: A cloud that says nothing for this long is lost, and the edge goes on alone.
        step_seconds: So is one that makes no step for this long, although it says that it is at it.

    Raises:
        ValueError: `cloud` is given together with `cloud_model` or `cloud_loras`, or an address is none.
    """

    def __init__(
        self,
        *,
        cloud: str | None = None,
        cloud_model: str | None = None,
        edge_model: str | None = None,
        loras: Sequence[Lora] = (),
        vae: VaeChoice = OWN_VAE,
        cloud_loras: Sequence[Lora] = (),
        offload: str = "none",
        device: str = "auto",
        dtype: str = "auto",
        orchestrator: str | None = None,
        credentials: Credentials | None = None,
        silence_seconds: float = 3.0,
        step_seconds: float = 120.0,
    ) -> None:
        if cloud is not None and (cloud_model is not None or cloud_loras):
            raise ValueError("--cloud uses the model that is served there; leave --cloud-model out, and --cloud-lora")
        targets = () if cloud is None else parse_targets(cloud)
        credentials = credentials or Credentials()
        self._orchestrator = None if orchestrator is None else OrchestratorLink(orchestrator, credentials)
        self._contact = CloudContact(
            targets,
            self._orchestrator,
            cloud_model=cloud_model,
            cloud_loras=cloud_loras,
            device=device,
            dtype=dtype,
            credentials=credentials,
        )
        self._counsel = Counsel(self._orchestrator)
        self._edge_model_path = edge_model or str(bundled_pair().edge)
        self._loras, self._offload, self._vae = tuple(loras), offload, vae
        self._device = device
        self._dtype = dtype
        self._patience = Patience(silence_seconds=silence_seconds, step_seconds=step_seconds)
        self._warnings: tuple[str, ...] = ()
        self._edge: EdgeModel | None = None
        self._loading = asyncio.Lock()
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
        """Let go of the cloud (stop it, if it is the client's own), of the orchestrator and of the model."""
        await self._contact.forget()
        if self._orchestrator is not None:
            await self._orchestrator.close()
        if self._edge is not None:
            self._edge.close()
        self._edge = None

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
        if request.preview and self._offload != "none":
            raise ValueError("a preview needs the VAE at hand: leave --preview out, or --offload")
        recorder = Recorder(request=request, link=LinkEstimate(), on_progress=on_progress)
        self.metrics.begin(recorder)
        recorder.enter("loading models")
        try:
            edge, link = await self._ready(request, recorder)
            request = recorder.request = request.for_model(edge.model.info if link is None else link.description.model)
            if link is not None:
                recorder.link = link.estimate
                for line in self._warnings:
                    recorder.warn(line)
            decision = recorder.decision = await self._counsel.decide(request, edge, link, recorder)
            generation = Generation(
                request,
                edge,
                link,
                recorder,
                decision=decision,
                patience=self._patience,
                next_link=lambda useless: self._contact.another(useless, recorder, self._about_edge),
            )
            for line in decision.lines:
                recorder.warn(line)
            async with previewing(edge, recorder, lambda: generation.schedule, generation.size):
                result = await generation.run()
        except BaseException as error:
            interrupted = isinstance(error, asyncio.CancelledError)
            self.metrics.failed(interrupted=interrupted)
            await self._contact.close_left()
            link = self._contact.link if request.uses_cloud else None
            self._counsel.failed(recorder, link, interrupted=interrupted)
            raise
        self.metrics.finished(with_fallbacks=bool(recorder.fallbacks))
        self._counsel.learn(recorder, edge, None if link is None else self._contact.link, result.latents.shape)
        await self._contact.close_left()
        if self._is_to_be_forgotten(recorder):
            await self._contact.forget()
        return result

    def _is_to_be_forgotten(self, recorder: Recorder) -> bool:
        """Whether the next generation should look for its cloud anew."""
        reason = recorder.handoff_reason
        lost_later = any(why == "cloud_lost" for _, why in recorder.corrections_skipped)
        is_elsewhere = reason is HandoffReason.CLOUD_FULL and self._contact.is_assigned
        return lost_later or is_elsewhere or reason in (HandoffReason.CLOUD_LOST, HandoffReason.CLOUD_ERROR)

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
            link = self._contact.link
            if link is not None:
                try:
                    await link.probe()
                except EcdiffError:
                    await self._contact.forget()
                    raise
                return link
            recorder = Recorder(request=GenerationRequest(prompt="nothing"), link=LinkEstimate())
            return await self._contact.reach(recorder, self._about_edge)

    @property
    def link(self) -> CloudLink | None:
        """The way to the cloud; None before first contact and after a loss."""
        return self._contact.link

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
            edge = await self._load_edge()
            link = await self._contact.reach(Recorder(request=request, link=LinkEstimate()), self._about_edge)
            request = request.for_model(link.description.model)
            costs = await self._counsel.costs(request, edge, link)
            decision = decide(request, link.description.model, edge.model.info, costs)
        assert decision.estimate is not None
        return decision.estimate

    async def _ready(self, request: GenerationRequest, recorder: Recorder) -> tuple[EdgeModel, CloudLink | None]:
        """Load the edge model and reach the cloud, at the same time."""
        if not request.uses_cloud:
            return await self._load_edge(), None
        if self._edge is None and (cloud_model := self._contact.model_to_start) is not None:
            await asyncio.to_thread(
                check_folders,
                cloud_model,
                self._edge_model_path,
                vae=self._vae,
                text_encoder=request.text_encoder,
            )
        try:
            async with asyncio.TaskGroup() as group:
                loading = group.create_task(self._load_edge())
                connecting = group.create_task(self._contact.reach(recorder, self._about_edge))
        except BaseExceptionGroup as errors:
            raise errors.exceptions[0] from None
        edge, link = loading.result(), connecting.result()
        if self._contact.is_own:
            await edge.compute_on(half_of_the_cores())
        verdict = check_pair(link.description.model, edge.model.info, text_encoder=request.text_encoder)
        if verdict.refusal is not None:
            raise IncompatibleModels(verdict.refusal)
        self._warnings = verdict.warnings
        return edge, link

    async def _load_edge(self) -> EdgeModel:
        async with self._loading:
            if self._edge is None:
                self._edge = await EdgeModel.load(
                    self._edge_model_path,
                    device=self._device,
                    dtype=self._dtype,
                    loras=self._loras,
                    offload=self._offload,
                    vae=self._vae,
                )
            return self._edge

    async def _about_edge(self) -> ModelInfo:
        return (await self._load_edge()).model.info
