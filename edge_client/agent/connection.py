"""A command's way to the agent of its machine."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterable, Mapping
from importlib.metadata import version
from types import TracebackType
from typing import TYPE_CHECKING, Any

import grpc.aio

from edge_client.agent.config import AGENT_CHANNEL_OPTIONS
from edge_client.agent.convert import (
    decode_latents,
    decode_observations,
    decode_snapshot,
    encode_observations,
    encode_request,
)
from edge_client.agent.settings import difference
from edge_client.request import GenerationRequest
from edge_client.runs import Made
from edge_client.series import Observation
from protos import edge_agent_v1_pb2 as pb
from protos.edge_agent_v1_pb2_grpc import EdgeAgentStub
from wire.calls import call_unary
from wire.errors import EcdiffError, NotServing, ProtocolError, from_status, names_error

if TYPE_CHECKING:
    from edge_client.terminal import ProgressDisplay

CALL_SECONDS = 2.0
# Ten of its heartbeats.
SILENCE_SECONDS = 10.0


class AgentLost(Exception):
    """No agent is there, or none any more; nothing is wrong with the request."""


class AgentConnection:
    """The calls of one agent.

    Args:
        address: HOST:PORT.
    """

    def __init__(self, address: str) -> None:
        self._address = address
        self._channel: grpc.aio.Channel
        self._stub: Any

    async def __aenter__(self) -> AgentConnection:
        self._channel = grpc.aio.insecure_channel(self._address, options=AGENT_CHANNEL_OPTIONS)
        self._stub = EdgeAgentStub(self._channel)
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        await self._channel.close()

    async def status(self, *, want_prompts: bool = False) -> pb.AgentStatus:
        """Ask what is served and who waits.

        Raises:
            AgentLost: Nobody answers, or something else.
        """
        try:
            request = pb.AgentStatusRequest(want_prompts=want_prompts)
            status: pb.AgentStatus = await call_unary(self._stub.Status, request, timeout_seconds=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            if error.code() is grpc.StatusCode.UNAVAILABLE:
                raise AgentLost(f"no agent answers at {self._address}") from None
            raise AgentLost(f"what listens at {self._address} is no agent that answers ({_told(error)})") from None
        except ProtocolError as error:
            raise AgentLost(f"what listens at {self._address} is no agent ({error})") from None
        return status

    async def why_not(self, named: frozenset[str], options: Mapping[str, Any]) -> str | None:
        """Return why the agent is not for this command; None: it is.

        Args:
            named: The options that the user gave.
            options: All of them, with their values.

        Raises:
            AgentLost: Nobody answers, or one of another version.
        """
        status = await self.status()
        ours = version("ecdiff")
        if status.version != ours:
            raise AgentLost(f"the agent at {self._address} is ecdiff {status.version}, this is {ours}")
        if status.state != "serving":
            return f"the agent at {self._address} is {status.state}"
        return difference(status, named, options)

    async def generate(self, request: GenerationRequest, display: ProgressDisplay, *, want_latents: bool) -> Made:
        """Let the agent generate.

        Args:
            request: The files that it names are read here.
            display: Shows the place in the queue, then the progress.
            want_latents: Whether the final latents come too.

        Raises:
            AgentLost: It went down on the way, or does not answer.
            EcdiffError: What failed there.
            OSError: A file cannot be read.
        """
        message = encode_request(request, want_latents=want_latents)
        pngs: list[bytes] = []
        pieces: list[bytes] = []
        # No deadline for the whole: a queue takes what it takes.
        call = self._stub.Generate(message)
        try:
            while (update := await asyncio.wait_for(call.read(), SILENCE_SECONDS)) is not grpc.aio.EOF:
                if update is None:
                    raise AgentLost(f"the agent at {self._address} sends what is no message of this schema")
                match update.WhichOneof("message"):
                    case "place":
                        display.wait_in_queue(update.place.ahead)
                    case "progress":
                        display(decode_snapshot(update.progress))
                    case "picture":
                        pieces.append(update.picture.png)
                        if not update.picture.continues:
                            pngs.append(b"".join(pieces))
                            pieces = []
                    case "done":
                        return self._made(update.done, pngs)
        except grpc.aio.AioRpcError as error:
            raise await self._why(error) from None
        except TimeoutError:
            raise AgentLost(f"the agent at {self._address} has said nothing for {SILENCE_SECONDS:g} s") from None
        finally:
            call.cancel()
        raise AgentLost(f"the agent at {self._address} ended the call without a picture")

    def _made(self, done: pb.GenerateUpdate.Done, pngs: list[bytes]) -> Made:
        try:
            return Made(
                pngs=pngs,
                report=json.loads(done.report),
                latents=decode_latents(done.latents) if done.HasField("latents") else None,
                observations=decode_observations(done.observations),
            )
        except (ValueError, EcdiffError) as error:
            raise AgentLost(f"the agent at {self._address} sends what cannot be read ({error})") from None

    async def _why(self, error: grpc.aio.AioRpcError) -> EcdiffError | AgentLost:
        """Return what a failed generation means: the agent is gone, or it could not be made there either."""
        told = _told(error)
        # Both an agent that goes down and a cloud that is away are NotServing.
        named = names_error(error.trailing_metadata())
        if named and (not isinstance(told, NotServing) or await self._is_serving()):
            return told
        return AgentLost(f"the agent at {self._address} is gone ({told})")

    async def _is_serving(self) -> bool:
        try:
            return (await self.status()).state == "serving"
        except AgentLost:
            return False

    async def record(self, observations: Iterable[Observation]) -> None:
        """Hand over what a generation in this process observed.

        Raises:
            EcdiffError: The agent did not take it.
        """
        try:
            request = pb.RecordRequest(observations=encode_observations(observations))
            await call_unary(self._stub.Record, request, timeout_seconds=CALL_SECONDS)
        except grpc.aio.AioRpcError as error:
            raise _told(error) from None


def _told(error: grpc.aio.AioRpcError) -> EcdiffError:
    return from_status(error.code(), error.details(), error.trailing_metadata())
