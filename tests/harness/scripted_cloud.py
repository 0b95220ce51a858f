"""A gRPC server that speaks ecdiff.v1 and says what a test tells it to: for clouds that lie, drain or are too new."""

from __future__ import annotations

import contextlib
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import grpc
import numpy as np
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from diffusion.schedulers import Stepper, parse_scheduler_config, scheduler_for
from protos import ecdiff_v1_pb2 as pb
from protos import ecdiff_v1_pb2_grpc
from wire.chain import Chain
from wire.channel import FRAGMENT_BYTES, SERVER_OPTIONS
from wire.clock import stamp_seconds
from wire.convert import ClientSpecs, decode_client, encode_description, encode_server
from wire.errors import EcdiffError, to_status
from wire.framing import Assembler, fragments
from wire.messages import (
    Array,
    ClientMessage,
    Codec,
    Credit,
    Description,
    DType,
    Open,
    Opened,
    Ping,
    Scaling,
    ServerMessage,
    Source,
    Step,
)
from wire.tensors import TensorSpec

Send = Callable[[ServerMessage | pb.ServerMessage | bytes], Awaitable[None]]
Receive = Callable[[], Awaitable[ClientMessage]]
Script = Callable[[Open, Send], Awaitable[None]]
Conversation = Callable[[Open, Send, Receive], Awaitable[None]]

_MAX_BYTES = 8 * 2**20


def _specs(description: Description) -> ClientSpecs:
    return ClientSpecs(
        latents=TensorSpec(
            shape=None,
            rank=len(description.model.layout),
            dtypes=frozenset(DType),
            codecs=frozenset(Codec),
            scaling=Scaling.SCHEDULER,
            max_bytes=_MAX_BYTES,
        )
    )


@contextlib.asynccontextmanager
async def scripted_cloud(
    description: Description, script: Script, *, stamps: Callable[[], float] = stamp_seconds
) -> AsyncIterator[str]:
    """Serve `description` and play `script` for each Denoise call; yields HOST:PORT. Probes are answered with `stamps`.

    The script is given the Open and a function that sends, bytes too; what it raises ends the call with that error's
    status.
    """

    async def speak(opening: Open, send: Send, receive: Receive) -> None:
        await script(opening, send)

    async with conversing_cloud(description, speak, stamps=stamps) as address:
        yield address


@contextlib.asynccontextmanager
async def conversing_cloud(
    description: Description, script: Conversation, *, stamps: Callable[[], float] = stamp_seconds
) -> AsyncIterator[str]:
    """The same for a script that listens as well: it is given what returns the next message, no Ping and no Credit."""
    server = grpc.aio.server(interceptors=[_AnyBytes()], options=SERVER_OPTIONS)
    ecdiff_v1_pb2_grpc.add_CloudDenoiserServicer_to_server(_Servicer(description, script, stamps), server)
    states = health.aio.HealthServicer()
    await states.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.stop(0)


class _AnyBytes(grpc.aio.ServerInterceptor):
    """Lets a method answer with bytes, which need be no message."""

    async def intercept_service(self, continuation: Any, handler_call_details: grpc.HandlerCallDetails) -> Any:
        handler = await continuation(handler_call_details)
        serialize = handler.response_serializer
        return handler._replace(
            response_serializer=lambda message: message if isinstance(message, bytes) else serialize(message)
        )


class _Servicer(ecdiff_v1_pb2_grpc.CloudDenoiserServicer):
    def __init__(self, description: Description, script: Conversation, stamps: Callable[[], float]) -> None:
        self._description = description
        self._stamps = stamps
        self._script = script

    async def Describe(self, request: pb.DescribeRequest, context: Any) -> pb.DescribeResponse:
        return encode_description(self._description)

    async def Probe(self, request: pb.ProbeRequest, context: Any) -> pb.ProbeResponse:
        return pb.ProbeResponse(t0=request.t0, t1=self._stamps(), t2=self._stamps())

    async def Denoise(self, request_iterator: Any, context: Any) -> None:
        specs, assembler, chain = _specs(self._description), Assembler(pb.ClientMessage, _MAX_BYTES), Chain()

        async def read() -> ClientMessage:
            while (whole := assembler.push(await context.read())) is None:
                pass
            return decode_client(whole, specs=specs)

        opening = await read()
        assert isinstance(opening, Open)

        async def send(message: ServerMessage | pb.ServerMessage | bytes) -> None:
            if not isinstance(message, pb.ServerMessage | bytes):
                message = encode_server(message, codec=opening.codecs[0], chain=chain)
            for piece in [message] if isinstance(message, bytes) else fragments(message, FRAGMENT_BYTES):
                await context.write(piece)

        async def receive() -> ClientMessage:
            while True:
                message = await read()
                if not isinstance(message, Ping | Credit):
                    return message

        try:
            await self._script(opening, send, receive)
        except EcdiffError as error:
            code, details, metadata = to_status(error)
            await context.abort(code, details, metadata)


def honest_opened(description: Description, opening: Open, *, latents_shape: tuple[int, ...]) -> Opened:
    """Return the Opened that a real cloud would answer."""
    own_class, own_config = description.model.scheduler_class, description.model.scheduler_config
    class_name, config = scheduler_for(opening.scheduler, parse_scheduler_config(own_config), own_class=own_class)
    schedule = Stepper(class_name, config, opening.plan.num_inference_steps).schedule
    return Opened(
        session_id="scripted",
        model=description.model,
        scheduler_class=class_name,
        scheduler_config=json.dumps(config),
        timesteps=schedule.timesteps,
        sigmas=schedule.sigmas,
        latents_shape=latents_shape,
        latents_dtype=DType.FLOAT32,
        codec=opening.codecs[0],
    )


def step_with(latents: Array, step_index: int = 0) -> pb.ServerMessage:
    """Return an honest Step, ready to be tampered with."""
    return encode_server(Step(step_index=step_index, source=Source.CLOUD, latents=latents), codec=Codec.RAW)


def some_latents(shape: tuple[int, ...], seed: int) -> Array:
    """Return finite float32 numbers."""
    return np.random.default_rng(seed).standard_normal(shape, dtype=np.float32)
