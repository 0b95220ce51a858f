"""What one client's generations are decided with: measured costs, and the orchestrator where there is one."""

from __future__ import annotations

import math
import time
from dataclasses import replace

from edge_client.cloud_link import CloudLink
from edge_client.decision import decide, wants_searched_plan
from edge_client.edge_model import EdgeModel
from edge_client.measured_costs import MeasuredCosts
from edge_client.orchestrator_link import NoAnswer, OrchestratorLink
from edge_client.recorder import Recorder
from edge_client.request import GenerationRequest
from edge_client.session_report import make_plan_query, make_session_report
from orchestrator.cost import Costs
from orchestrator.decision import Decision
from wire.errors import EcdiffError
from wire.fleet_messages import PAPER


class Counsel:
    """Decides before a generation, and learns from it after.

    Args:
        orchestrator: Asked for plans and told of sessions; None: this edge decides by itself.
    """

    def __init__(self, orchestrator: OrchestratorLink | None) -> None:
        self._orchestrator = orchestrator
        self._costs: tuple[CloudLink, MeasuredCosts] | None = None

    async def decide(
        self, request: GenerationRequest, edge: EdgeModel, link: CloudLink | None, recorder: Recorder
    ) -> Decision:
        """Decide for one request.

        Raises:
            ValueError: An explicit `--plan` that does not fit, or options that do not go together.
            OSError: A plan file cannot be read.
            Unauthenticated: The orchestrator refuses the token.
        """
        started = time.perf_counter()
        costs = None
        if link is not None and request.plan_options.deadline_ms is not None:
            try:
                costs = await self.costs(request, edge, link)
            except EcdiffError as error:
                # It was seen serving: the stream finds out what became of it, and the edge makes the picture in time.
                recorder.fall_back(f"what the plans take cannot be measured ({error}): chosen without the deadline")
                request = replace(request, plan_options=replace(request.plan_options, deadline_ms=None))
        asked = await self._asked(request, edge, link, recorder, costs)
        if asked is not None and asked.origin != PAPER:
            decision = asked
        else:
            decision = decide(request, None if link is None else link.description.model, edge.model.info, costs)
            if asked is not None and asked.plan == decision.plan:
                # Nobody has a searched plan; what the orchestrator learned of predictions holds for this one too.
                decision = replace(decision, estimate=asked.estimate, calibration=asked.calibration)
        if costs is not None or self._orchestrator is not None:
            recorder.seconds["connect"] += time.perf_counter() - started
        return decision

    async def costs(self, request: GenerationRequest, edge: EdgeModel, link: CloudLink) -> Costs:
        """Return what a request's parts take here and now.

        Raises:
            EcdiffError: The cloud does not answer.
        """
        costs = await self._measured(edge, link).now(latents_shape(request, edge, link))
        return replace(costs, start_step=request.plan_options.start_step)

    def learn(self, recorder: Recorder, edge: EdgeModel, link: CloudLink | None, shape: tuple[int, ...]) -> None:
        """Take in a generation that is done, and tell the orchestrator; `shape` is that of its latents."""
        step_seconds = None
        if link is not None:
            measured = self._measured(edge, link)
            step_seconds = measured.learn(recorder.present_cloud_steps, len(recorder.disagreements), shape)
        if self._orchestrator is not None:
            self._orchestrator.report(
                make_session_report(
                    recorder,
                    "fallback" if recorder.fallbacks else "done",
                    link,
                    latents_elements=math.prod(shape),
                    cloud_step_seconds=step_seconds,
                )
            )

    def failed(self, recorder: Recorder, link: CloudLink | None, *, interrupted: bool) -> None:
        """Tell the orchestrator of a generation that gave no picture."""
        if self._orchestrator is not None:
            outcome = "interrupted" if interrupted else "failed"
            self._orchestrator.report(make_session_report(recorder, outcome, link))

    async def _asked(
        self,
        request: GenerationRequest,
        edge: EdgeModel,
        link: CloudLink | None,
        recorder: Recorder,
        costs: Costs | None,
    ) -> Decision | None:
        """Return the orchestrator's decision; None where the edge decides by itself: its plans start from noise."""
        orchestrator, starts_later = self._orchestrator, request.plan_options.start_step > 0
        if orchestrator is None or link is None or starts_later or request.plan_file is not None:
            return None
        if not wants_searched_plan(request):
            return None
        shape = latents_shape(request, edge, link)
        known = await self._measured(edge, link).known(shape) if costs is None else costs.known
        query = make_plan_query(request, link, edge.model.info.fingerprint, math.prod(shape), known)
        try:
            return await orchestrator.plan(query, link.description.predictors)
        except NoAnswer as error:
            recorder.warn(f"{error}: this edge decides by itself")
            return None

    def _measured(self, edge: EdgeModel, link: CloudLink) -> MeasuredCosts:
        """Return what was measured over this link; over another one it is worth nothing."""
        if self._costs is None or self._costs[0] is not link:
            self._costs = (link, MeasuredCosts(edge, link))
        return self._costs[1]


def latents_shape(request: GenerationRequest, edge: EdgeModel, link: CloudLink) -> tuple[int, ...]:
    """Return the shape of a request's latents."""
    return edge.model.latents_shape(*request.size(link.description.model))
