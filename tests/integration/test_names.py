"""--cloud dns:///HOST:PORT: every address of a name is a replica, for the edge and for the orchestrator."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import socket
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from diffusion.loading import load_model
from edge_client import EdgeClient
from edge_client.cloud_link import CloudLink
from edge_client.orchestrator_link import OrchestratorLink
from edge_client.recorder import Snapshot
from edge_client.request import GenerationRequest
from harness.cloud import Cloud, RunEdge, StartCloud
from harness.names import Names
from harness.reference import CLOUD_MODEL, EDGE_MODEL
from harness.waiting import eventually, running
from orchestrator.client import OrchestratorClient
from orchestrator.plan import PlanOptions
from orchestrator.service.config import OrchestratorConfig, Timings
from orchestrator.service.server import OrchestratorServer
from wire.credentials import Credentials
from wire.errors import NotServing
from wire.fleet_messages import Replica
from wire.serving.address import Address
from wire.targets import Endpoint

pytestmark = pytest.mark.asyncio(loop_scope="session")

TLS = Path(__file__).parents[1] / "data" / "tls"
WITH_TLS = ("--tls-cert", str(TLS / "server.pem"), "--tls-key", str(TLS / "server.key"))
STEPS, HANDOFF = 10, 8
LOOPBACK = Address(host="127.0.0.1", port=0)


def a_request() -> GenerationRequest:
    plan = PlanOptions(num_inference_steps=STEPS, handoff_step=HANDOFF)
    return GenerationRequest(prompt="a cat", mode="split", plan_options=plan, guidance_scale=7.5, seed=5)


def start_at(start_cloud: StartCloud, *hosts: str, arguments: tuple[str, ...] = ()) -> tuple[str, list[Cloud]]:
    """Start a cloud on each loopback address, all on one port; return that with them."""
    clouds = [start_cloud("--listen", f"{hosts[0]}:0", *arguments)]
    port = clouds[0].address.rpartition(":")[2]
    clouds += [start_cloud("--listen", f"{host}:{port}", *arguments) for host in hosts[1:]]
    return port, clouds


async def test_a_generation_moves_to_another_address_of_the_name_and_finds_one_that_is_new(
    start_cloud: StartCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, clouds = start_at(start_cloud, "127.0.0.2", "127.0.0.3", "127.0.0.4")
    known = {cloud.address: cloud for cloud in clouds}
    names = Names(monkeypatch, clouds_test=["127.0.0.2", "127.0.0.3"])
    for cloud in clouds:
        cloud.unet.hold_after(3)
    count = 0

    def on_progress(snapshot: Snapshot) -> None:
        nonlocal count
        count = len(snapshot.step_sources)

    async with EdgeClient(cloud=f"dns:///clouds.test:{port}", edge_model=str(EDGE_MODEL)) as client:
        async with running(client.run(a_request(), on_progress)) as generating:
            await eventually(lambda: count == 3, "the first steps")
            assert client.link is not None
            first = client.link.address
            assert first in (f"127.0.0.2:{port}", f"127.0.0.3:{port}")
            known[first].program.signal(signal.SIGKILL)
            await eventually(lambda: count == 6, "the steps at the second address")
            second = client.link.address
            # As a cluster does it: who is gone leaves the name, who was started joins it.
            names.addresses["clouds.test"] = ["127.0.0.4"]
            known[second].program.signal(signal.SIGKILL)
            known[f"127.0.0.4:{port}"].unet.open()
            report = (await generating).report
        assert report["clouds"] == [first, second, f"127.0.0.4:{port}"]
        assert {first, second} == {f"127.0.0.2:{port}", f"127.0.0.3:{port}"}
        assert report["step_sources"] == "C" * HANDOFF + "e" * (STEPS - HANDOFF)
        assert [line.partition(" (")[0] for line in report["fallbacks"]] == [
            f"left the cloud at {first}",
            f"left the cloud at {second}",
        ]


async def test_a_first_contact_passes_an_address_over_where_nobody_serves(
    start_cloud: StartCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, _ = start_at(start_cloud, "127.0.0.2")
    Names(monkeypatch, clouds_test=["127.0.0.3", "127.0.0.2"], nowhere_test=[])
    for _ in range(4):  # in either order
        link = await CloudLink.connect((f"dns:///clouds.test:{port}",), Credentials(), wait_seconds=30)
        await link.close()
        assert link.address == f"127.0.0.2:{port}"
    targets = f"dns:///nowhere.test:{port},127.0.0.2:{port}"
    async with EdgeClient(cloud=targets, edge_model=str(EDGE_MODEL)) as client:
        report = (await client.run(a_request())).report
    assert report["clouds"] == [f"127.0.0.2:{port}"]
    assert any("nowhere.test" in line and "has no address" in line for line in report["warnings"])


async def test_a_certificate_is_checked_against_the_name_and_not_against_the_address(
    start_cloud: StartCloud, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is for localhost and 127.0.0.1."""
    port, _ = start_at(start_cloud, "127.0.0.1", "127.0.0.2", arguments=WITH_TLS)
    Names(monkeypatch, localhost=["127.0.0.2"], clouds_test=["127.0.0.1"])
    credentials = Credentials(tls_ca=TLS / "ca.pem")
    link = await CloudLink.connect((f"dns:///localhost:{port}",), credentials, wait_seconds=30)
    await link.close()
    assert link.address == f"127.0.0.2:{port}"
    with pytest.raises(NotServing, match=r"with TLS .* as clouds\.test"):
        await CloudLink.connect((f"dns:///clouds.test:{port}",), credentials, wait_seconds=0)
    with pytest.raises(NotServing, match=r"127\.0\.0\.2"):
        await CloudLink.connect((f"127.0.0.2:{port}",), credentials, wait_seconds=0)


async def test_a_token_goes_to_no_address_of_a_name_that_is_elsewhere_in_the_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "token").write_text("secret")
    Names(monkeypatch, localhost=["192.0.2.1"])
    credentials = Credentials(token_file=tmp_path / "token")
    with pytest.raises(NotServing, match=r"the token would travel unencrypted to 192\.0\.2\.1"):
        await CloudLink.connect(("dns:///localhost:50051",), credentials, wait_seconds=0)


def has_ipv6() -> bool:
    with contextlib.suppress(OSError), socket.socket(socket.AF_INET6) as trial:
        trial.bind(("::1", 0))
        return True
    return False


@pytest.mark.skipif(not has_ipv6(), reason="this machine has no ::1")
async def test_ipv6_is_used_like_ipv4(start_cloud: StartCloud, run_edge: RunEdge) -> None:
    cloud = start_cloud("--listen", "[::1]:0")
    assert cloud.address.startswith("[::1]:")
    port = cloud.address.rpartition(":")[2]
    for target in (cloud.address, f"dns:///[::1]:{port}"):
        probed = run_edge("probe", "--cloud", target)
        assert f"[::1]:{port}, SERVING" in probed.stdout, probed.stderr


async def test_commands_take_a_name(start_cloud: StartCloud, run_edge: RunEdge, tmp_path: Path) -> None:
    port, _ = start_at(start_cloud, "127.0.0.1")
    target = f"dns:///localhost:{port}"
    assert f"127.0.0.1:{port}, SERVING" in run_edge("probe", "--cloud", target).stdout
    words = ("--cloud", target, "--edge-model", EDGE_MODEL, "--num-inference-steps", "4", "--no-agent", "-o", "x.png")
    for command in ("generate", "compare"):
        done = run_edge(command, "a cat", *words)
        assert done.returncode == 0, done.stderr
    refused = run_edge("probe", "--cloud", "dns:///nowhere.invalid:1")
    assert refused.returncode == 1
    assert refused.stderr.startswith("error: dns:///nowhere.invalid:1 has no address")


# ------------------------------------------------------------------------------ the orchestrator


@contextlib.asynccontextmanager
async def an_orchestrator(
    tmp_path: Path, *targets: str, credentials: Credentials | None = None
) -> AsyncIterator[tuple[OrchestratorServer, str]]:
    """Run one that looks often; yield it with its address."""
    server = OrchestratorServer(
        OrchestratorConfig(
            listen=LOOPBACK,
            metrics_listen=LOOPBACK,
            plans=tmp_path,
            state=None,
            replicas=targets,
            credentials=credentials or Credentials(),
            grace_seconds=0.0,
            timings=Timings(poll_seconds=0.05, resolve_seconds=0.05),
        )
    )
    address, _ = await server.listen()
    await server.start()
    try:
        yield server, str(address)
    finally:
        await server.drain()


async def listed(address: str) -> dict[str, Replica]:
    client = OrchestratorClient(address, Credentials())
    try:
        return {each.address: each for each in await client.list_replicas("")}
    finally:
        await client.close()


async def up_become(address: str, wanted: set[str]) -> dict[str, Replica]:
    """Wait until the replicas that serve are these, and no other is known."""
    async with asyncio.timeout(60):
        while True:
            found = await listed(address)
            if found.keys() == wanted and all(each.is_up for each in found.values()):
                return found
            await asyncio.sleep(0.05)


async def test_an_orchestrators_replicas_follow_a_name(
    start_cloud: StartCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, _ = start_at(start_cloud, "127.0.0.2", "127.0.0.3", "127.0.0.4")
    first, second, third = (f"127.0.0.{last}:{port}" for last in (2, 3, 4))
    names = Names(monkeypatch, clouds_test=["127.0.0.2", "127.0.0.3"])
    async with an_orchestrator(tmp_path, f"dns:///clouds.test:{port}") as (server, address):
        found = await up_become(address, {first, second})
        assert {each.name for each in found.values()} == {f"clouds.test:{port}"}

        def shown() -> set[str]:
            samples = [each for metric in server._metrics.registry.collect() for each in metric.samples]
            return {each.labels["replica"] for each in samples if "replica" in each.labels}

        assert shown() == {first, second}
        names.addresses["clouds.test"] = ["127.0.0.3", "127.0.0.4"]
        await up_become(address, {second, third})
        assert shown() == {second, third}
        # No answer is no news.
        names.addresses["clouds.test"] = []
        asked = names.num_asked
        await eventually(lambda: names.num_asked > asked + 2, "two questions without an answer")
        await up_become(address, {second, third})


async def test_an_edge_checks_the_certificate_of_a_replica_against_the_name_that_the_orchestrator_has(
    start_cloud: StartCloud, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    port, _ = start_at(start_cloud, "127.0.0.2", arguments=WITH_TLS)
    Names(monkeypatch, localhost=["127.0.0.2"])
    credentials = Credentials(tls_ca=TLS / "ca.pem")
    async with an_orchestrator(tmp_path, f"dns:///localhost:{port}", credentials=credentials) as (_, address):
        await up_become(address, {f"127.0.0.2:{port}"})
        orchestrator = OrchestratorLink(address, Credentials())
        endpoints = await orchestrator.replicas(load_model(CLOUD_MODEL, device="cpu").info, lambda line: None)
        await orchestrator.close()
    assert endpoints == (Endpoint(address=f"127.0.0.2:{port}", name=f"localhost:{port}"),)
    link = await CloudLink.connect_to(endpoints, credentials, wait_seconds=30)
    await link.close()
