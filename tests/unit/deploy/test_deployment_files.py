"""Compose, Kubernetes and systemd files: sound by their own rules, and naming only options that the programs have."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import kubernetes_validate
import pytest
import yaml

from cloud_service.__main__ import cli as cloud_service
from edge_client.cli import cli as edge_client
from orchestrator.__main__ import cli as orchestrator

DEPLOY = Path(__file__).resolve().parents[3] / "deploy"
KUBERNETES_VERSION = "1.31"
GROUPS = {"cloud-service": cloud_service, "edge-client": edge_client, "orchestrator": orchestrator}
PROGRAM_OF_SERVICE = {
    "cloud": "cloud-service",
    "cloud-gpu": "cloud-service",
    "orchestrator": "orchestrator",
    "edge": "edge-client",
}
OURS = set(PROGRAM_OF_SERVICE)


def compose(name: str) -> dict[str, Any]:
    """Return the services of a Compose file."""
    services: dict[str, Any] = yaml.safe_load((DEPLOY / name).read_text())["services"]
    return services


def manifests() -> list[dict[str, Any]]:
    files = sorted((DEPLOY / "kubernetes").glob("*.yaml"))
    return [document for file in files for document in yaml.safe_load_all(file.read_text())]


def command_lines() -> Iterator[tuple[str, str, list[str]]]:
    """Yield where a command line stands, its program, and its words from `serve` on."""
    for file in ("compose.yaml", "compose.tls.yaml"):
        for service, body in compose(file).items():
            if service in OURS:
                yield f"{file}: {service}", PROGRAM_OF_SERVICE[service], body["command"]
    for manifest in manifests():
        for container in manifest.get("spec", {}).get("template", {}).get("spec", {}).get("containers", ()):
            yield f"kubernetes: {container['name']}", PROGRAM_OF_SERVICE[container["name"]], container["args"]
    for unit in DEPLOY.glob("*.service"):
        text = unit.read_text().replace("\\\n", " ")
        words = shlex.split(re.findall(r"^ExecStart=(.+)$", text, re.MULTILINE)[0])
        yield unit.name, Path(words[0]).name, words[1:]
    recipe = (DEPLOY / "Dockerfile").read_text()
    for program, words in re.findall(r'ENTRYPOINT \["([a-z-]+)"\]\nCMD (\[.+\])', recipe):
        yield f"Dockerfile: {program}", program, yaml.safe_load(words)


@pytest.mark.parametrize(("place", "program", "words"), [pytest.param(*line, id=line[0]) for line in command_lines()])
def test_command_lines_use_the_programs_options(place: str, program: str, words: list[str]) -> None:
    command = GROUPS[program].commands[words[0]]
    taken = {name: option for option in command.params for name in option.opts}
    rest = iter(words[1:])
    for word in rest:
        assert word in taken, place
        option = taken[word]
        assert isinstance(option, click.Option)
        if not option.is_flag:
            assert not next(rest).startswith("--"), place


def test_compose_files_are_for_both_generations_of_compose() -> None:
    for name in ("compose.yaml", "compose.tls.yaml"):
        text = (DEPLOY / name).read_text()
        assert not {"name", "version"} & set(yaml.safe_load(text))
        assert "start_interval" not in text


def test_services_are_closed_and_stop_later_than_their_grace() -> None:
    grace = next(option for option in cloud_service.commands["serve"].params if option.name == "grace_seconds")
    for name, service in compose("compose.yaml").items():
        assert service["read_only"] is True
        assert service["init"] is True
        assert service["cap_drop"] == ["ALL"], name
        assert service["security_opt"] == ["no-new-privileges:true"]
        assert float(service["stop_grace_period"].removesuffix("s")) > grace.default


def test_only_what_a_person_looks_at_is_published_and_on_loopback_only() -> None:
    published = {name: service["ports"] for name, service in compose("compose.yaml").items() if "ports" in service}
    assert set(published) == {"prometheus", "grafana"}
    for ports in published.values():
        assert all(port.startswith("127.0.0.1:") for port in ports)


def test_images_from_elsewhere_are_pinned() -> None:
    for name, service in compose("compose.yaml").items():
        if name not in OURS:
            assert re.fullmatch(r"[a-z]+/[a-z]+:v?\d+\.\d+\.\d+", service["image"])


def test_only_the_cuda_cloud_asks_for_a_device_and_only_in_its_profile() -> None:
    with_devices = {name: service for name, service in compose("compose.yaml").items() if "deploy" in service}
    assert set(with_devices) == {"cloud-gpu"}
    assert with_devices["cloud-gpu"]["profiles"] == ["gpu"]
    assert {name for name, service in compose("compose.yaml").items() if "profiles" in service} == {"cloud-gpu"}


def test_with_tls_no_service_of_ours_is_left_in_the_clear() -> None:
    overlay = compose("compose.tls.yaml")
    assert set(overlay) == OURS
    for name in OURS - {"edge"}:
        assert "--tls-cert" in overlay[name]["command"]
        assert "--tls-ca" in overlay[name]["healthcheck"]["test"]
    plain, secure = compose("compose.yaml"), compose("compose.tls.yaml")
    for name in OURS:
        # The overlay says the whole command again: it must not forget what the other one says.
        assert set(plain[name]["command"]) <= set(secure[name]["command"])


@pytest.mark.parametrize("manifest", manifests(), ids=lambda each: f"{each['kind']}-{each['metadata']['name']}")
def test_kubernetes_manifests_fit_their_schema(manifest: dict[str, Any]) -> None:
    kubernetes_validate.validate(manifest, KUBERNETES_VERSION, strict=True)


def test_kubernetes_pods_are_closed_and_asked_for_their_health() -> None:
    pods = [each["spec"]["template"]["spec"] for each in manifests() if "template" in each.get("spec", {})]
    assert len(pods) == 3
    for pod in pods:
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["runAsUser"] == 10001
        (container,) = pod["containers"]
        assert container["securityContext"]["readOnlyRootFilesystem"] is True
        assert container["securityContext"]["capabilities"] == {"drop": ["ALL"]}
        for probe in ("startupProbe", "readinessProbe", "livenessProbe"):
            assert container[probe]["exec"]["command"][:3] == ["python", "-m", "wire.health"]
