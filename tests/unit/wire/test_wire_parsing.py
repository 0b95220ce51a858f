"""Bytes that are no message: every kind of method refuses them in our words, and nothing is logged as a bug."""

import contextlib
import logging

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from protos import ecdiff_v1_pb2 as pb
from protos import ecdiff_v1_pb2_grpc as rpc
from wire.errors import EcdiffError, ProtocolError, from_status, to_status
from wire.serving.parsing import ParsingInterceptor

GARBAGE = b"\xff\xff\xff"
PING = pb.ClientMessage(ping=pb.Ping(t0=1.0)).SerializeToString()


class Service(rpc.CloudDenoiserServicer):
    async def Probe(self, request, context):
        return pb.ProbeResponse(t0=request.t0)

    async def Denoise(self, requests, context):
        try:
            async for message in requests:
                await context.write(pb.ServerMessage(pong=pb.Pong(t0=message.ping.t0)))
        except EcdiffError as error:
            await context.abort(*to_status(error))


@contextlib.asynccontextmanager
async def calling():
    server = grpc.aio.server(interceptors=[ParsingInterceptor()])
    rpc.add_CloudDenoiserServicer_to_server(Service(), server)
    states = health.aio.HealthServicer()
    await states.set("", health_pb2.HealthCheckResponse.SERVING)
    health_pb2_grpc.add_HealthServicer_to_server(states, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    async with grpc.aio.insecure_channel(f"127.0.0.1:{port}") as channel:
        yield channel
    await server.stop(0)


def told(error):
    return from_status(error.code(), error.details(), error.trailing_metadata())


@pytest.mark.parametrize("method", ["ecdiff.v1.CloudDenoiser/Probe", "grpc.health.v1.Health/Check"])
async def test_garbage_in_a_unary_call_is_refused(method, caplog):
    async with calling() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary(f"/{method}")(GARBAGE)
        assert isinstance(told(caught.value), ProtocolError)
        assert "3 bytes that are no message" in caught.value.details()
        assert await channel.unary_unary(f"/{method}")(b"") is not None
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_garbage_that_asks_for_a_stream_is_refused(caplog):
    async with calling() as channel:
        watch = channel.unary_stream("/grpc.health.v1.Health/Watch")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            [answer async for answer in watch(GARBAGE)]
        assert isinstance(told(caught.value), ProtocolError)
        watching = watch(b"")
        assert health_pb2.HealthCheckResponse.FromString(await watching.read()).status == 1
        watching.cancel()
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_garbage_inside_a_stream_is_raised_where_the_method_reads(caplog):
    async with calling() as channel:
        call = channel.stream_stream("/ecdiff.v1.CloudDenoiser/Denoise")()
        await call.write(PING)
        assert pb.ServerMessage.FromString(await call.read()).pong.t0 == 1.0
        await call.write(GARBAGE)
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call.read()
        assert isinstance(told(caught.value), ProtocolError)
    assert [record for record in caplog.records if record.levelno >= logging.ERROR] == []


async def test_a_method_that_nobody_serves_is_left_to_grpc():
    async with calling() as channel:
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await channel.unary_unary("/ecdiff.v1.CloudDenoiser/Nothing")(GARBAGE)
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED
