import asyncio
import contextlib

import grpc
import pytest
from wire_samples import gaussian

from protos import ecdiff_v1_pb2 as pb
from protos import ecdiff_v1_pb2_grpc as rpc
from wire import channel
from wire.convert import encode_server
from wire.framing import Assembler, fragments
from wire.messages import Codec, Source, Step

CLIENT = dict(channel.CHANNEL_OPTIONS)
SERVER = dict(channel.SERVER_OPTIONS)
BIG_STEP = encode_server(
    Step(step_index=0, source=Source.CLOUD, latents=gaussian(shape=(2, 16, 208, 208))), codec=Codec.RAW
)


class Echo(rpc.CloudDenoiserServicer):
    """A real service in a few lines: who called, and one step larger than any single message may be."""

    def __init__(self):
        self.peers = set()

    async def Probe(self, request, context):
        self.peers.add(context.peer())
        return pb.ProbeResponse(t0=request.t0)

    async def Denoise(self, requests, context):
        async for message in requests:
            for part in fragments(BIG_STEP) if message.WhichOneof("message") == "close" else [BIG_STEP]:
                yield part


@contextlib.asynccontextmanager
async def serving():
    server = grpc.aio.server(options=channel.SERVER_OPTIONS)
    servicer = Echo()
    rpc.add_CloudDenoiserServicer_to_server(servicer, server)
    port = server.add_insecure_port("127.0.0.1:0")
    await server.start()
    try:
        yield f"127.0.0.1:{port}", servicer
    finally:
        await server.stop(None)


def connect(address):
    return grpc.aio.insecure_channel(address, options=channel.CHANNEL_OPTIONS)


def test_the_client_pings_no_more_often_than_the_server_bears():
    assert CLIENT["grpc.keepalive_time_ms"] > SERVER["grpc.http2.min_ping_interval_without_data_ms"]
    assert CLIENT["grpc.keepalive_permit_without_calls"] == SERVER["grpc.keepalive_permit_without_calls"] == 1


def test_a_fragment_fits_the_receive_limit():
    largest = pb.ServerMessage(fragment=pb.Fragment(total_bytes=2**64 - 1, data=bytes(channel.FRAGMENT_BYTES)))
    assert largest.ByteSize() < CLIENT["grpc.max_receive_message_length"] == channel.MAX_MESSAGE_BYTES


async def test_a_port_in_use_is_an_error():
    async with serving() as (address, _):
        other = grpc.aio.server(options=channel.SERVER_OPTIONS)
        with pytest.raises(RuntimeError, match="Failed to bind"):
            other.add_insecure_port(address)
        await other.stop(None)


async def test_each_channel_has_a_connection_of_its_own():
    async with serving() as (address, servicer), connect(address) as first, connect(address) as second:
        calls = [rpc.CloudDenoiserStub(each).Probe(pb.ProbeRequest(), timeout=5) for each in (first, second)]
        await asyncio.gather(*calls)
        assert len(servicer.peers) == 2


async def test_a_tensor_above_the_limit_travels_in_fragments():
    assert BIG_STEP.ByteSize() > channel.MAX_MESSAGE_BYTES
    async with serving() as (address, _), connect(address) as client:
        stream = rpc.CloudDenoiserStub(client).Denoise(timeout=20)
        await stream.write(pb.ClientMessage(close=pb.Close()))
        assembler = Assembler(pb.ServerMessage, 8 * 2**20)
        while (whole := assembler.push(await stream.read())) is None:
            pass
        assert whole == BIG_STEP
        await stream.done_writing()
        assert await stream.read() is grpc.aio.EOF


async def test_a_message_above_the_limit_ends_the_call():
    async with serving() as (address, _), connect(address) as client:
        stream = rpc.CloudDenoiserStub(client).Denoise(timeout=20)
        await stream.write(pb.ClientMessage(ping=pb.Ping()))
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await stream.read()
        assert caught.value.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
