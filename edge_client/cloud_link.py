"""The way to one cloud service: its channels, the first contact, and what is known of the link."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from typing import Any

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from orchestrator.link import LinkEstimate, ProbeSample
from protos import ecdiff_v1_pb2 as pb
from protos.ecdiff_v1_pb2_grpc import CloudDenoiserStub
from wire.calls import call_unary
from wire.clock import stamp_seconds
from wire.convert import checks, decode_description
from wire.credentials import Credentials
from wire.errors import EcdiffError, NotServing, ProtocolError, Unauthenticated, VersionMismatch, from_status
from wire.messages import PROTOCOL_VERSION, Description
from wire.resolver import Targets
from wire.targets import Endpoint

_log = logging.getLogger("edge_client")
SERVING = health_pb2.HealthCheckResponse.SERVING
CALL_SECONDS = 5.0
GONE = (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED, grpc.StatusCode.CANCELLED)
BURST_PROBES = 4
PROBE_SECONDS = 1.0
BANDWIDTH_BYTES = 256 * 1024


class CloudLink:
    """A cloud service that was seen SERVING. Make one with `await CloudLink.connect(...)`."""

    def __init__(self, endpoint: Endpoint, credentials: Credentials) -> None:
        self.address = address = endpoint.address
        self._name = endpoint.name
        self._credentials = credentials
        credentials.metadata(address)  # what is wrong with it is known at once
        self.estimate = LinkEstimate()
        self._channel = credentials.channel(address, name=endpoint.name)
        self._probe_channel = credentials.channel(address, name=endpoint.name)
        self.stub: Any = CloudDenoiserStub(self._channel)
        self._probe_stub: Any = CloudDenoiserStub(self._probe_channel)
        self._prober: asyncio.Task[None] | None = None
        self._closing: set[asyncio.Task[None]] = set()
        self.description: Description

    @classmethod
    async def connect(
        cls, targets: tuple[str, ...], credentials: Credentials, *, wait_seconds: float, keep_trying: bool = False
    ) -> CloudLink:
        """As `connect_to`, for HOST:PORT or dns:///HOST:PORT in order of preference."""
        endpoints = await Targets(targets).endpoints()
        return await cls.connect_to(endpoints, credentials, wait_seconds=wait_seconds, keep_trying=keep_trying)

    @classmethod
    async def connect_to(
        cls,
        endpoints: tuple[Endpoint, ...],
        credentials: Credentials,
        *,
        wait_seconds: float,
        keep_trying: bool = False,
    ) -> CloudLink:
        """Return a link to the first of `endpoints` that is SERVING.

        Args:
            endpoints: In order of preference.
            credentials: Token and certificates.
            wait_seconds: How long a service may still be loading.
            keep_trying: Wait as long for one that does not answer: it is known to be there.

        Raises:
            EcdiffError: The last one's reason, if none serves.
        """
        last: EcdiffError = NotServing("no cloud address was given")
        for endpoint in endpoints:
            try:
                link = cls(endpoint, credentials)
            except (ValueError, OSError) as error:
                last = NotServing(f"the cloud at {endpoint.address} cannot be asked: {error}")
                continue
            try:
                await link._first_contact(wait_seconds, keep_trying=keep_trying)
            except EcdiffError as error:
                last = error
                await link.close()
            except BaseException:
                await link.close()
                raise
            else:
                return link
        raise last

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What is sent with a call that begins now: a token that was renewed is the new one."""
        return self._credentials.metadata(self.address)

    async def _first_contact(self, wait_seconds: float, *, keep_trying: bool) -> None:
        deadline = time.monotonic() + wait_seconds
        health = health_pb2_grpc.HealthStub(self._channel)
        while True:
            try:
                request = health_pb2.HealthCheckRequest()
                if await self._unary(health.Check, request, "no cloud service answers") == SERVING:
                    break
            except NotServing:
                if not keep_trying or time.monotonic() > deadline:
                    raise
            if time.monotonic() > deadline:
                raise NotServing(f"the cloud at {self.address} is loading or draining: try again later")
            await asyncio.sleep(0.1)
        await self.describe()

    async def describe(self) -> Description:
        """Ask what is served, and remember it.

        Raises:
            VersionMismatch: The cloud speaks another protocol version.
            EcdiffError: What the cloud answered instead.
        """
        answer = await self._unary(self.stub.Describe, pb.DescribeRequest(), "the cloud is gone", self.metadata)
        if answer.protocol_version != PROTOCOL_VERSION:
            raise VersionMismatch(
                f"the cloud at {self.address} speaks protocol version {answer.protocol_version}, this edge-client "
                f"version {PROTOCOL_VERSION}: upgrade the older of the two"
            )
        self.description = decode_description(answer)
        return self.description

    async def _unary(
        self, method: Any, request: Any, otherwise: str, metadata: tuple[tuple[str, str], ...] = ()
    ) -> Any:
        try:
            answer = await call_unary(method, request, timeout_seconds=CALL_SECONDS, metadata=metadata)
        except grpc.aio.AioRpcError as error:
            raise self._contact_error(error, otherwise) from None
        except ProtocolError:
            raise self._speaks_otherwise() from None
        return answer.status if isinstance(answer, health_pb2.HealthCheckResponse) else answer

    def _contact_error(self, error: grpc.aio.AioRpcError, otherwise: str) -> EcdiffError:
        if error.code() is grpc.StatusCode.UNIMPLEMENTED:
            return self._speaks_otherwise()
        told = from_status(error.code(), error.details(), error.trailing_metadata())
        if isinstance(told, Unauthenticated):
            if not self.metadata:
                return Unauthenticated(f"the cloud at {self.address} wants a token: give --auth-token-file")
            return Unauthenticated(f"the cloud at {self.address} refused the token: check --auth-token-file ({told})")
        if error.code() in GONE:
            tls = "without TLS (--tls-ca turns it on)"
            if self._credentials.tls_ca is not None:
                tls = "with TLS (--tls-ca)" + (f" as {self._name}" if self._name else "")
            return NotServing(
                f"{otherwise} at {self.address}, asked {tls}: check the address, or start one with cloud-service serve"
            )
        return told

    def _speaks_otherwise(self) -> VersionMismatch:
        return VersionMismatch(f"the service at {self.address} does not speak ecdiff.v1: check the address")

    def start_probing(self) -> None:
        """Measure the round trip from now on, in the background, on a connection of its own."""
        if self._prober is None:
            self._prober = asyncio.create_task(self._probe_forever())

    async def stop_probing(self) -> None:
        """Stop the measurement."""
        if self._prober is not None:
            self._prober.cancel()
            await asyncio.gather(self._prober, return_exceptions=True)
            self._prober = None

    async def probe(self, *, padding_bytes: int = 0) -> ProbeSample:
        """Send one probe and take it into the estimate; with `padding_bytes` it measures bandwidth instead.

        Raises:
            EcdiffError: The cloud did not answer, or with what is no time.
        """
        t0 = stamp_seconds()
        request = pb.ProbeRequest(t0=t0, response_padding=padding_bytes)
        answer = await self._unary(self._probe_stub.Probe, request, "the cloud is gone", self.metadata)
        t3 = stamp_seconds()
        for stamp in (answer.t1, answer.t2):
            if not 0.0 <= stamp <= checks.MAX_STAMP_SECONDS:  # NaN is neither
                raise ProtocolError(f"the cloud at {self.address} stamps a probe with {stamp}, which is no time")
        sample = ProbeSample(t0=t0, t1=answer.t1, t2=answer.t2, t3=t3)
        if padding_bytes:
            beyond_rtt = sample.rtt_seconds - self.estimate.rtt_quantile_seconds(0.0)
            self.estimate.add_transfer(padding_bytes, max(beyond_rtt, 1e-6))
        else:
            self.estimate.add_probe(sample)
        return sample

    async def measure(self, *, num_probes: int, num_transfers: int = 0, transfer_bytes: int = 0) -> None:
        """Probe `num_probes` times, then time `num_transfers` answers of `transfer_bytes`.

        Raises:
            EcdiffError: The cloud did not answer.
        """
        # The first call on a fresh connection also pays for the handshake: not a round trip.
        await self._unary(self._probe_stub.Probe, pb.ProbeRequest(), "the cloud is gone", self.metadata)
        for _ in range(num_probes):
            await self.probe()
        for _ in range(num_transfers):
            await self.probe(padding_bytes=transfer_bytes)

    async def _probe_forever(self) -> None:
        try:
            with contextlib.suppress(EcdiffError):  # a cloud that is gone is the stream's to report
                await self.measure(num_probes=BURST_PROBES)
                while True:
                    await asyncio.sleep(PROBE_SECONDS)
                    await self.probe()
        except Exception:  # whatever it is: nobody waits for this task, and the estimate grows old
            _log.exception("probing the cloud failed")

    def let_go(self, closing: asyncio.Task[None]) -> None:
        """Let a session be closed meanwhile: no picture waits for the round trip of a goodbye."""
        self._closing.add(closing)
        closing.add_done_callback(self._closing.discard)

    async def close(self) -> None:
        """Close both channels, after the sessions that are still being closed."""
        await self.stop_probing()
        await asyncio.gather(*self._closing)
        await self._channel.close()
        await self._probe_channel.close()
