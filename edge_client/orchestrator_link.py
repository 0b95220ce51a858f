"""The way to an orchestrator: whatever goes wrong there costs a generation a short wait and one line, no picture."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import TypeVar

from diffusion.compatibility import check_pair
from diffusion.model import ModelInfo
from orchestrator.client import CALL_SECONDS, OrchestratorClient
from orchestrator.decision import Decision
from orchestrator.refresh import make_refresh
from wire.credentials import Credentials
from wire.errors import EcdiffError, IncompatibleModels, NotServing, ProtocolError, Unauthenticated
from wire.fleet_messages import PAPER, PlanAnswer, PlanQuery, Replica, SessionReport
from wire.serving.address import Address
from wire.targets import Endpoint

ALONE_SECONDS = 30.0
"""An orchestrator that did not answer is not asked again for so long."""
MOVE_SECONDS = 30.0
"""A replica is kept at least so long before the orchestrator is asked for a better one."""
MAX_PENDING_REPORTS = 8
# A reconnection, a new measurement of the link: worth it for half the wait only.
_WORTH_MOVING_RATIO = 0.5

T = TypeVar("T")


class OrchestratorLink:
    """What one edge process asks of its orchestrator, and tells it.

    Args:
        address: `HOST:PORT`.
        credentials: Token and certificates.

    Raises:
        ValueError: It is no address, or the token would travel in the clear to another host.
        OSError: The token cannot be read.
    """

    def __init__(self, address: str, credentials: Credentials) -> None:
        self.address = str(Address.parse(address))
        credentials.metadata(self.address)
        self._credentials = credentials
        self._client: OrchestratorClient | None = None
        self._alone_until = 0.0
        self._problem = ""
        self._known: tuple[Endpoint, ...] = ()
        self._asked_at = 0.0
        self._reports: set[asyncio.Task[None]] = set()
        self._closing: set[asyncio.Task[None]] = set()

    # ------------------------------------------------------------------------------ replicas

    async def replicas(self, edge: ModelInfo, warn: Callable[[str], object]) -> tuple[Endpoint, ...]:
        """Return the cloud services for an edge model, the one to try first in front.

        Args:
            edge: The model here.
            warn: Told where the orchestrator does not answer and those are used that it named before.

        Raises:
            NotServing: It does not answer, or knows none.
            IncompatibleModels: None of them shares latents with the edge model.
            Unauthenticated: It refuses the token.
        """
        try:
            self._known = tuple(each.endpoint for each in await self._list(edge))
        except NoAnswer as error:
            if not self._known:
                raise NotServing(
                    f"{error}, and it was to name the cloud: check --orchestrator, name a --cloud, or leave both out "
                    "to start a cloud service here"
                ) from None
            warn(f"{error}: using the cloud services that it named before")
        return self._known

    async def better_replicas(self, current: str, edge: ModelInfo) -> tuple[Endpoint, ...]:
        """Return what `replicas` does where another one than the current is now worth moving to; else nothing."""
        if time.monotonic() - self._asked_at < MOVE_SECONDS:
            return ()
        try:
            listed = await self._list(edge)
        except (NoAnswer, NotServing, IncompatibleModels):
            return ()
        if not is_worth_moving(listed, current):
            return ()
        self._known = tuple(each.endpoint for each in listed)
        return self._known

    async def _list(self, edge: ModelInfo) -> list[Replica]:
        refusals: list[str | None] = []

        def check(listed: tuple[Replica, ...]) -> None:
            for each in listed:
                Address.parse(each.address)
                if each.name:
                    Address.parse(each.name)
                refusals.append(None if each.model is None else check_pair(each.model, edge).refusal)

        listed = await self._ask(lambda client: client.list_replicas(edge.fingerprint), check)
        self._asked_at = time.monotonic()
        if not listed:
            raise NotServing(
                f"the orchestrator at {self.address} knows no cloud service: start it with --cloud HOST:PORT, or name "
                "a --cloud here"
            )
        fitting = [each for each, refusal in zip(listed, refusals, strict=True) if refusal is None]
        if not fitting:
            raise IncompatibleModels(f"none of the orchestrator's cloud services fits this edge: {refusals[0]}")
        return fitting

    # ------------------------------------------------------------------------------ plans

    async def plan(self, query: PlanQuery, predictors: tuple[str, ...]) -> Decision:
        """Return the plan for a query, of origin `PAPER` where no searched plan is known for it.

        Args:
            query: What is asked for.
            predictors: What the cloud can extrapolate with.

        Raises:
            NoAnswer: It does not answer in time, refuses, or what it answers does not fit the query.
            Unauthenticated: It refuses the token.
        """
        answer = await self._ask(
            lambda client: client.choose_plan(query), lambda answer: check_answer(answer, query, predictors)
        )
        by_whom = "" if answer.origin == PAPER else f" (chosen by the orchestrator at {self.address})"
        return Decision(**(vars(answer) | {"origin": f"{answer.origin}{by_whom}"}))

    # ------------------------------------------------------------------------------ reports

    def report(self, report: SessionReport) -> None:
        """Tell how a generation went, meanwhile and as well as can be."""
        if self._left_alone or len(self._reports) >= MAX_PENDING_REPORTS:
            return
        task = asyncio.create_task(self._report(report))
        self._reports.add(task)
        task.add_done_callback(self._reports.discard)

    async def _report(self, report: SessionReport) -> None:
        try:
            await self._ask(lambda client: client.report_session(report), lambda _: None)
        except (NoAnswer, Unauthenticated):
            return  # the generation is over: there is nobody to tell, and nothing that would go another way

    async def close(self) -> None:
        """Wait a moment for reports that are under way, and let go of the connection."""
        if self._reports:
            await asyncio.wait(self._reports, timeout=CALL_SECONDS)
        for task in self._reports:
            task.cancel()
        await asyncio.gather(*self._reports, return_exceptions=True)
        client, self._client = self._client, None
        if client is not None:
            await client.close()
        await asyncio.gather(*self._closing)

    # ------------------------------------------------------------------------------ asking

    @property
    def _left_alone(self) -> bool:
        return time.monotonic() < self._alone_until

    async def _ask(self, call: Callable[[OrchestratorClient], Awaitable[T]], check: Callable[[T], object]) -> T:
        """Return an answer that was checked.

        Raises:
            NoAnswer: There is none.
            Unauthenticated: The token is refused.
        """
        if self._left_alone:
            raise NoAnswer(self._problem)
        try:
            if self._client is None:
                self._client = OrchestratorClient(self.address, self._credentials)
            client = self._client
            answer = await call(client)
            check(answer)
        except Unauthenticated:
            raise
        except NotServing as error:
            self._problem = str(error)
            self._alone_until = time.monotonic() + ALONE_SECONDS
            self._drop(client)
            raise NoAnswer(self._problem) from None
        except (EcdiffError, ValueError, OSError) as error:
            raise NoAnswer(f"the orchestrator at {self.address} is of no use here ({error})") from None
        return answer

    def _drop(self, client: OrchestratorClient) -> None:
        """Connect anew the next time: a channel that failed waits longer and longer before it tries again."""
        if self._client is not client:
            return
        self._client = None
        # Another call may be under way on it; to be cancelled by this one would be the end of its generation.
        closing = asyncio.create_task(client.close(CALL_SECONDS))
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)


class NoAnswer(Exception):
    """The orchestrator gave no answer that can be used; the text says why."""


def is_worth_moving(listed: list[Replica], current: str) -> bool:
    """Whether the first of the replicas is much better than the current one."""
    first = listed[0]
    now = next((each for each in listed if each.address == current), None)
    if not first.is_up or first.address == current:
        return False
    return now is None or not now.is_up or first.wait_seconds < _WORTH_MOVING_RATIO * now.wait_seconds


def check_answer(answer: PlanAnswer, query: PlanQuery, predictors: tuple[str, ...]) -> None:
    """Refuse a plan that is not what was asked for, or that the cloud would refuse.

    Raises:
        ProtocolError: It breaks a bound of the query.
        ValueError: It contradicts itself.
    """
    plan, edge_plan = answer.plan, answer.edge_plan
    make_refresh(plan)
    bound = query.max_cloud_calls
    bounds = (plan.max_cloud_calls, edge_plan.max_cloud_calls)
    for holds, what in (
        (plan.num_inference_steps == query.num_inference_steps, "is for another number of steps"),
        (plan.predictor in predictors, f"wants predictor {plan.predictor}, which the cloud does not have"),
        (bound is None or all(each is not None and each <= bound for each in bounds), "breaks max_cloud_calls"),
        (
            query.handoff_step is None or (plan.handoff_step == query.handoff_step and edge_plan.agreement is None),
            "hands off at another step",
        ),
        (query.shadow or not edge_plan.shadow, "has a shadow"),
        (query.corrections in (None, edge_plan.corrections), f"has corrections {edge_plan.corrections}"),
    ):
        if not holds:
            raise ProtocolError(f"its plan {what}")
