"""The agent's three methods: parse, call, encode."""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Iterator
from typing import Any, TypeAlias

import grpc.aio

from edge_client.agent.agent import Agent, Made
from edge_client.agent.config import LOGGER_NAME
from edge_client.agent.convert import decode_observations, decode_request, encode_latents, encode_observations
from edge_client.agent.updates import Updates
from edge_client.outcome import plain_text
from protos import edge_agent_v1_pb2 as pb
from protos import edge_agent_v1_pb2_grpc
from wire.errors import EcdiffError, InvalidRequest, ModelError, NotServing
from wire.serving.answer import answer

_log = logging.getLogger(LOGGER_NAME)
PIECE_BYTES = 16 * 2**20
"""Of a picture in one message; a video has several."""
GenerateContext: TypeAlias = "grpc.aio.ServicerContext[pb.GenerateRequest, pb.GenerateUpdate]"


class EdgeAgentServicer(edge_agent_v1_pb2_grpc.EdgeAgentServicer):
    """The gRPC methods.

    Args:
        agent: Does the work.
    """

    def __init__(self, agent: Agent) -> None:
        self._agent = agent

    # The generated stub knows generators only; a coroutine that writes is told of a cancellation at once.
    async def Generate(  # type: ignore[override]
        self, request: pb.GenerateRequest, context: GenerateContext
    ) -> None:
        """Generate in turn, telling how it goes."""
        await answer(context, _log, self._generate(request, context))

    async def Status(
        self, request: pb.AgentStatusRequest, context: grpc.aio.ServicerContext[Any, Any]
    ) -> pb.AgentStatus:
        """Say what is served and who waits."""
        return self._agent.status(want_prompts=request.want_prompts)

    async def Record(self, request: pb.RecordRequest, context: grpc.aio.ServicerContext[Any, Any]) -> pb.RecordResponse:
        """Count what a generation elsewhere observed."""
        return await answer(context, _log, self._record(request))

    async def _record(self, request: pb.RecordRequest) -> pb.RecordResponse:
        self._agent.record(decode_observations(request.observations))
        return pb.RecordResponse()

    async def _generate(self, message: pb.GenerateRequest, context: GenerateContext) -> None:
        request = decode_request(message)
        updates = Updates()
        generating = self._agent.start(request, updates)
        try:
            async for update in updates:
                await context.write(update)
            made = await _result(generating)
        finally:
            generating.cancel()
        for png in made.pngs:
            for piece in _pieces(png):
                await context.write(piece)
        await context.write(pb.GenerateUpdate(done=_done(made, want_latents=message.want_latents)))


def _pieces(png: bytes) -> Iterator[pb.GenerateUpdate]:
    """Yield one picture, in as many messages as its size wants: a video is larger than a message may be."""
    for start in range(0, len(png), PIECE_BYTES):
        end = start + PIECE_BYTES
        yield pb.GenerateUpdate(picture=pb.GenerateUpdate.Picture(png=png[start:end], continues=end < len(png)))


def _done(made: Made, *, want_latents: bool) -> pb.GenerateUpdate.Done:
    return pb.GenerateUpdate.Done(
        report=json.dumps(made.result.report),
        observations=encode_observations(made.observations),
        latents=encode_latents(made.result.latents) if want_latents else None,
        queue_seconds=made.queue_seconds,
        start_seconds=made.start_seconds,
    )


async def _result(generating: asyncio.Task[Made]) -> Made:
    """Return what a generation gave.

    Raises:
        EcdiffError: What failed, in the words that a command without the agent would use.
        NotServing: The agent gave it up, because it ends.
    """
    await asyncio.wait({generating})
    if generating.cancelled():
        raise NotServing("the agent went down")
    error = generating.exception()
    if error is None:
        return generating.result()
    if isinstance(error, ValueError | OSError):
        raise InvalidRequest(str(error)) from error
    if isinstance(error, EcdiffError) or not isinstance(error, Exception):
        raise error
    text = plain_text(error)
    if text is None:
        raise error
    raise ModelError(text) from error
