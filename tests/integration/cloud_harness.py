"""A real cloud service on a free loopback port, or on Ray Serve, and a client as raw as it gets."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import grpc.aio

from cloud_service.config import ServerConfig
from cloud_service.server import CloudServer
from harness import carrier
from harness.paced import PATIENCE_SECONDS, PacedModel, tiny_model
from harness.reference import CLOUD_MODEL
from protos import ecdiff_v1_pb2 as pb
from protos import ecdiff_v1_pb2_grpc
from wire.channel import CHANNEL_OPTIONS
from wire.convert import ServerSpecs, decode_server, encode_client
from wire.errors import from_status
from wire.framing import Assembler, fragments
from wire.messages import (
    ClientMessage,
    Codec,
    DType,
    Finished,
    HandedOff,
    Heartbeat,
    Open,
    Opened,
    Plan,
    PromptText,
    Scaling,
    Seed,
    ServerMessage,
    Step,
)
from wire.serving.address import Address
from wire.tensors import TensorSpec

DATA = Path(__file__).parents[1] / "data"
LOOPBACK = Address(host="127.0.0.1", port=0)


class Cloud:
    """A running service, its model and its addresses."""

    def __init__(self, server: CloudServer, model: PacedModel, address: Address, metrics_address: Address) -> None:
        self.server = server
        self.model = model
        self.address = address
        self.metrics_address = metrics_address

    def sample(self, name: str, **labels: str) -> float:
        """The value of one series of the service's registry."""
        value = self.server.backend.metrics.registry.get_sample_value(name, labels)
        assert value is not None, f"no series {name} {labels}"
        return value

    async def drain(self) -> None:
        """As on SIGTERM."""
        await self.server.drain()


@contextlib.asynccontextmanager
async def running_cloud(**options: object) -> AsyncIterator[Cloud]:
    """Run a service; with `--cloud-on ray` it is a replica on Ray Serve behind Ray's proxy."""
    config = ServerConfig(
        model=str(CLOUD_MODEL), **({"listen": LOOPBACK, "metrics_listen": LOOPBACK, "grace_seconds": 0.0} | options)
    )
    if carrier.on_ray:
        from harness.ray_cloud import running_replica

        async with running_replica(config) as replica:
            yield replica
        return
    model = PacedModel(tiny_model())
    server = CloudServer(config, lambda: model)
    address, metrics_address = await server.listen()
    await server.load()
    model.forget()
    try:
        yield Cloud(server, model, address, metrics_address)
    finally:
        model.run_freely()
        await server.drain()


@contextlib.asynccontextmanager
async def open_channel(address: Address) -> AsyncIterator[ecdiff_v1_pb2_grpc.CloudDenoiserStub]:
    async with grpc.aio.insecure_channel(str(address), options=CHANNEL_OPTIONS) as channel:
        yield ecdiff_v1_pb2_grpc.CloudDenoiserStub(channel)


def _spec(scaling: Scaling, rank: int = 4) -> TensorSpec:
    return TensorSpec(
        shape=None, rank=rank, dtypes=frozenset(DType), codecs=frozenset(Codec), scaling=scaling, max_bytes=2**26
    )


SPECS = ServerSpecs(
    latents=_spec(Scaling.SCHEDULER), embeds=_spec(Scaling.EMBEDDING, rank=3), prediction=_spec(Scaling.PREDICTION)
)


class Stream:
    """One `Denoise` call; nothing is sent or read unless the test says so."""

    def __init__(self, stub: ecdiff_v1_pb2_grpc.CloudDenoiserStub, metadata: tuple[tuple[str, str], ...] = ()) -> None:
        self.call = stub.Denoise(metadata=metadata)
        self._assembler = Assembler(pb.ServerMessage, 2**28)
        self._specs = SPECS

    async def send(self, message: ClientMessage) -> None:
        await self.send_raw(encode_client(message, codec=Codec.RAW))

    async def send_raw(self, message: pb.ClientMessage) -> None:
        for piece in fragments(message):
            await self.call.write(piece)

    async def receive(self) -> ServerMessage | None:
        """Return the next message, or None at the end of the stream."""
        async with asyncio.timeout(PATIENCE_SECONDS):
            while True:
                piece = await self.call.read()
                if piece is grpc.aio.EOF:
                    return None
                message = self._assembler.push(piece)
                if message is not None:
                    return decode_server(message, specs=self._specs)

    def expect_pixels(self, shape: tuple[int, ...]) -> None:
        """Welcome pixels of this shape from now on."""
        self._specs = dataclasses.replace(SPECS, pixels_shape=shape)

    async def receive_until(self, kind: type | tuple[type, ...]) -> list[ServerMessage]:
        """Return every message but heartbeats up to the first of `kind`."""
        received: list[ServerMessage] = []
        while not received or not isinstance(received[-1], kind):
            message = await self.receive()
            assert message is not None, f"the stream ended: {await self.call.details()}"
            if not isinstance(message, Heartbeat) or kind is Heartbeat:
                received.append(message)
        return received

    async def receive_steps(self) -> tuple[Opened, list[Step], HandedOff | Finished]:
        """Return everything up to the end of the cloud's part."""
        opened, *steps, ending = await self.receive_until((HandedOff, Finished))
        return opened, steps, ending

    async def error(self) -> Exception:
        """Return what ended the stream."""
        while await self._next_or_end():
            pass
        code = await self.call.code()
        assert code is not grpc.StatusCode.OK
        return from_status(code, await self.call.details(), await self.call.trailing_metadata())

    async def ends_ok(self) -> None:
        while await self._next_or_end():
            pass
        assert await self.call.code() is grpc.StatusCode.OK

    async def _next_or_end(self) -> bool:
        try:
            return await self.receive() is not None
        except grpc.aio.AioRpcError:
            return False


def always(steps: int, handoff_step: int | None = None) -> Plan:
    return Plan(num_inference_steps=steps, handoff_step=steps if handoff_step is None else handoff_step)


def ecdiff(steps: int, handoff_step: int, *, warmup_steps: int = 2, skip_interval: int = 2) -> Plan:
    return Plan(
        num_inference_steps=steps,
        handoff_step=handoff_step,
        refresh="fixed",
        warmup_steps=warmup_steps,
        skip_interval=skip_interval,
        predictor="ecdiff",
        smoothing=0.3,
    )


def opening(plan: Plan, **fields: object) -> Open:
    """An Open with everything that a test does not care about."""
    defaults = {
        "request_id": "test",
        "conditioning": PromptText(prompt="a red apple"),
        "start": Seed(seed=3),
        "codecs": (Codec.RAW,),
        "credit": 1000,
    }
    return Open(plan=plan, **(defaults | fields))


def letters(steps: Sequence[Step]) -> str:
    return "".join(step.source.letter for step in steps)


async def no_session_left(cloud: Cloud) -> None:
    """Wait until every session's place is free."""
    async with asyncio.timeout(30):
        while cloud.sample("ecdiff_cloud_sessions"):
            await asyncio.sleep(0.005)
