"""Who gets in, and the calls beside the stream: token, TLS, health, Describe, Probe."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path

import grpc
import pytest
from cloud_harness import DATA, Stream, always, open_channel, opening, running_cloud
from grpc_health.v1 import health_pb2, health_pb2_grpc

from cloud_service.config import LOGGER_NAME, Timings
from protos import ecdiff_v1_pb2 as pb
from protos import ecdiff_v1_pb2_grpc
from wire.channel import CHANNEL_OPTIONS
from wire.clock import stamp_seconds
from wire.convert import decode_description
from wire.errors import LimitExceeded, NotServing, Unauthenticated, from_status
from wire.messages import Codec, Finished, Limits
from wire.serving.address import Address
from wire.serving.tls import TlsFiles
from wire.tokens import TokenFile

TLS = DATA / "tls"
SERVING = health_pb2.HealthCheckResponse.SERVING
NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING


@pytest.fixture
def tokens(tmp_path: Path) -> TokenFile:
    (tmp_path / "token").write_text("secret\n")
    return TokenFile(tmp_path / "token")


async def failure(call: object) -> Exception:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    error = caught.value
    return from_status(error.code(), error.details(), error.trailing_metadata())


async def test_every_call_but_health_wants_the_token(tokens: TokenFile) -> None:
    async with running_cloud(tokens=tokens) as cloud, open_channel(cloud.address) as stub:
        for metadata in ((), (("authorization", "Bearer wrong"),), (("authorization", "secret"),)):
            stream = Stream(stub, metadata)
            assert isinstance(await stream.error(), Unauthenticated)
            assert isinstance(await failure(stub.Describe(pb.DescribeRequest(), metadata=metadata)), Unauthenticated)
            assert isinstance(await failure(stub.Probe(pb.ProbeRequest(), metadata=metadata)), Unauthenticated)
        assert cloud.sample("ecdiff_sessions_rejected_total", reason="token") == 9
        good = (("authorization", "Bearer secret"),)
        await stub.Describe(pb.DescribeRequest(), metadata=good)
        stream = Stream(stub, good)
        await stream.send(opening(always(2)))
        await stream.receive_until(Finished)
        async with grpc.aio.insecure_channel(str(cloud.address)) as channel:
            answer = await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest())
            assert answer.status == SERVING


async def test_a_method_that_does_not_exist_is_unimplemented_with_the_right_token(tokens: TokenFile) -> None:
    async with running_cloud(tokens=tokens) as cloud, grpc.aio.insecure_channel(str(cloud.address)) as channel:
        call = channel.unary_unary("/ecdiff.v9.CloudDenoiser/Denoise")
        with pytest.raises(grpc.aio.AioRpcError) as caught:
            await call(b"", metadata=(("authorization", "Bearer secret"),))
        assert caught.value.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.grpc_only("Ray's proxy speaks plaintext; TLS is in front of it")
async def test_tls_with_client_certificates() -> None:
    ca, key, cert = ((TLS / name).read_bytes() for name in ("ca.pem", "client.key", "client.pem"))
    files = TlsFiles(cert=TLS / "server.pem", key=TLS / "server.key", client_ca=TLS / "ca.pem")
    async with running_cloud(tls=files) as cloud:
        known = grpc.ssl_channel_credentials(ca, key, cert)
        async with grpc.aio.secure_channel(str(cloud.address), known, options=CHANNEL_OPTIONS) as channel:
            await ecdiff_v1_pb2_grpc.CloudDenoiserStub(channel).Describe(pb.DescribeRequest())
        stranger = grpc.ssl_channel_credentials(ca)
        async with grpc.aio.secure_channel(str(cloud.address), stranger) as channel:
            call = ecdiff_v1_pb2_grpc.CloudDenoiserStub(channel).Describe(pb.DescribeRequest())
            with pytest.raises(grpc.aio.AioRpcError):
                await call


@pytest.mark.parametrize("version", ["v1", "v1alpha"])
async def test_nobody_is_told_the_schema(version: str) -> None:
    async with running_cloud() as cloud, grpc.aio.insecure_channel(str(cloud.address)) as channel:
        call = channel.stream_stream(f"/grpc.reflection.{version}.ServerReflection/ServerReflectionInfo")(iter([b""]))
        assert await call.code() is grpc.StatusCode.UNIMPLEMENTED


@pytest.mark.grpc_only("Ray's proxy does not count connections")
async def test_one_connection_too_many_is_closed_and_the_others_are_served_on() -> None:
    async with running_cloud(max_connections=2) as cloud, open_channel(cloud.address) as first:
        await first.Describe(pb.DescribeRequest())
        # Not a byte is sent on it: connections count before any handshake.
        _, silent = await asyncio.open_connection(cloud.address.host, cloud.address.port)
        async with open_channel(cloud.address) as too_many:
            assert isinstance(await failure(too_many.Describe(pb.DescribeRequest(), timeout=5)), NotServing)
        await first.Describe(pb.DescribeRequest())
        silent.close()
        await silent.wait_closed()
        async with asyncio.timeout(30):
            while True:
                async with open_channel(cloud.address) as second:
                    try:
                        await second.Describe(pb.DescribeRequest(), timeout=5)
                        break
                    except grpc.aio.AioRpcError:
                        await asyncio.sleep(0.05)


async def test_describe_tells_model_limits_and_load() -> None:
    async with running_cloud(max_sessions=5) as cloud, open_channel(cloud.address) as stub:
        idle = decode_description(await stub.Describe(pb.DescribeRequest()))
        assert idle.model.name == "cloud"
        assert idle.limits == Limits(max_sessions=5)
        assert (idle.load.sessions, idle.load.queue) == (0, 0)
        assert idle.load.step_seconds > 0  # from the warm-up
        assert "ddim" in idle.schedulers
        assert {"reuse", "ecdiff", "linear"} <= set(idle.predictors)
        assert set(idle.codecs) == set(Codec)
        stream = Stream(stub)
        cloud.model.pace()
        await stream.send(opening(always(3), model=idle.model.fingerprint))
        cloud.model.permit()
        await cloud.model.begun(2)
        busy = decode_description(await stub.Describe(pb.DescribeRequest()))
        assert (busy.load.sessions, busy.load.queue) == (1, 0)
        assert busy.load.step_seconds != idle.load.step_seconds


async def test_a_probe_is_stamped_and_padded_within_its_cap() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        before = stamp_seconds()
        answer = await stub.Probe(pb.ProbeRequest(t0=before, padding=bytes(1000), response_padding=2000))
        assert before == answer.t0 <= answer.t1 <= answer.t2 <= stamp_seconds()
        assert len(answer.padding) == 2000
        assert isinstance(await failure(stub.Probe(pb.ProbeRequest(response_padding=2**20 + 1))), LimitExceeded)
        assert isinstance(await failure(stub.Probe(pb.ProbeRequest(padding=bytes(2**20 + 1)))), LimitExceeded)


async def health_becomes(address: Address, status: int) -> None:
    async with grpc.aio.insecure_channel(str(address)) as channel, asyncio.timeout(30):
        stub = health_pb2_grpc.HealthStub(channel)
        while (await stub.Check(health_pb2.HealthCheckRequest())).status != status:
            await asyncio.sleep(0.02)


@pytest.mark.grpc_only("Ray replaces a replica that hangs")
async def test_a_device_that_hangs_ends_its_sessions_and_lets_nobody_in_until_it_is_back(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, LOGGER_NAME)
    timings = Timings(watch_seconds=0.02, stuck_seconds=2.0, stuck_steps=1)
    async with running_cloud(timings=timings) as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream, newcomer, later = Stream(stub), Stream(stub), Stream(stub)
        await stream.send(opening(always(2)))
        await cloud.model.begun(1)
        await health_becomes(cloud.address, NOT_SERVING)
        assert isinstance(await stream.error(), NotServing)
        await newcomer.send(opening(always(2)))
        assert isinstance(await newcomer.error(), NotServing)
        cloud.model.run_freely()
        await health_becomes(cloud.address, SERVING)
        await later.send(opening(always(2)))
        _, steps, _ = await later.receive_steps()
        assert len(steps) == 2  # and nothing that the device was late with
        words = [record.getMessage() for record in caplog.records if record.name == LOGGER_NAME]
        assert [each for each in words if "the device" in each] == ["the device hangs", "the device is back"]
        assert not cloud.server.backend.died.is_set()


async def test_a_device_that_hangs_does_not_keep_the_service_from_ending() -> None:
    async with running_cloud(timings=Timings(last_words_seconds=0.1)) as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(always(2)))
        await cloud.model.begun(1)
        async with asyncio.timeout(10):
            await cloud.drain()
        assert isinstance(await stream.error(), NotServing)


@pytest.mark.grpc_only("looks into the service's process")
async def test_a_device_that_is_lost_ends_its_sessions_and_says_so() -> None:
    async with running_cloud() as cloud, open_channel(cloud.address) as stub:
        cloud.model.pace()
        stream = Stream(stub)
        await stream.send(opening(always(5)))
        await cloud.model.begun(1)
        cloud.model.lose_device()
        cloud.model.permit()
        assert "device thread" in str(await stream.error())
        async with asyncio.timeout(10):
            await cloud.server.backend.died.wait()
