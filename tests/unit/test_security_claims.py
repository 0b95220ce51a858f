"""docs/security.md: a test stands behind each claim, and those that are about no single part are here."""

from __future__ import annotations

import ast
import dataclasses
import re
from pathlib import Path

import click
import pytest

from cloud_service.__main__ import cli as cloud_service
from cloud_service.config import ServerConfig
from edge_client.cli import cli as edge_client
from orchestrator.__main__ import cli as orchestrator
from orchestrator.service.config import OrchestratorConfig
from wire.credentials import Credentials
from wire.fleet_messages import KnownCosts, PlanQuery, SessionReport
from wire.serving.address import Address
from wire.serving.tls import TlsFiles
from wire.tokens import TokenFile

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "security.md").read_text()
SHIPPED = ("wire", "diffusion", "orchestrator", "cloud_service", "edge_client", "models")
EVERYWHERE, LOOPBACK = Address(host="0.0.0.0", port=0), Address(host="127.0.0.1", port=0)


def known_tests() -> set[str]:
    return {
        f"{path.stem}::{node.name}"
        for path in (ROOT / "tests").rglob("test_*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
    }


def test_every_test_that_the_page_names_exists() -> None:
    named = re.findall(r"`(test_\w+::\w+)`", PAGE)
    assert len(named) > 50
    assert sorted(set(named) - known_tests()) == []


def test_every_claim_of_the_table_has_a_test() -> None:
    rows = [line for line in PAGE.partition("## What holds it")[2].splitlines() if line.startswith("| ")]
    assert [row for row in rows[2:] if "`test_" not in row] == []


@pytest.mark.parametrize("group", [cloud_service, edge_client, orchestrator], ids=lambda group: group.name)
def test_services_listen_on_loopback_by_default(group: click.Group) -> None:
    options = {option.name: option for option in group.commands["serve"].params}
    for name in ("listen", "metrics_listen"):
        assert Address.parse(str(options[name].default)).loopback


@pytest.fixture
def token(tmp_path: Path) -> Path:
    (tmp_path / "token").write_text("secret\n")
    return tmp_path / "token"


def test_a_service_takes_no_token_in_the_clear_from_elsewhere(token: Path) -> None:
    tokens, files = TokenFile(token), TlsFiles(cert=Path("c"), key=Path("k"))
    cloud = ServerConfig(model="m", listen=LOOPBACK, metrics_listen=LOOPBACK, tokens=tokens)
    fleet = OrchestratorConfig(
        listen=LOOPBACK,
        metrics_listen=LOOPBACK,
        plans=token.parent,
        state=None,
        replicas=(),
        credentials=Credentials(),
        tokens=tokens,
    )
    for config in (cloud, fleet):
        with pytest.raises(ValueError, match=r"in the clear on 0\.0\.0\.0:0"):
            dataclasses.replace(config, listen=EVERYWHERE)
        dataclasses.replace(config, listen=EVERYWHERE, tls=files)
        dataclasses.replace(config, listen=EVERYWHERE, allow_plaintext_token=True)


def test_a_client_sends_no_token_in_the_clear_elsewhere(token: Path) -> None:
    sent = (("authorization", "Bearer secret"),)
    for elsewhere in ("cloud.example:50051", "192.0.2.1:50051", "[2001:db8::1]:50051"):
        with pytest.raises(ValueError, match="would travel unencrypted to"):
            Credentials(token_file=token).metadata(elsewhere)
        assert Credentials(token_file=token, allow_plaintext_token=True).metadata(elsewhere) == sent
        assert Credentials(token_file=token, tls_ca=token).metadata(elsewhere) == sent
    for here in ("127.0.0.1:50051", "localhost:50051", "[::1]:50051"):
        assert Credentials(token_file=token).metadata(here) == sent


def test_nothing_is_unpickled() -> None:
    """`models/` trains too: its checkpoints are read with weights_only, which builds no objects."""
    for folder in SHIPPED:
        for path in (ROOT / folder).rglob("*.py"):
            text = path.read_text()
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.Import | ast.ImportFrom):
                    names = [alias.name for alias in node.names] + [getattr(node, "module", None) or ""]
                    assert not {"pickle", "cloudpickle", "dill", "joblib", "shelve", "marshal"} & set(names), path
            assert text.count("torch.load(") == text.count("weights_only=True"), path
            assert "allow_pickle=True" not in text, path


def test_an_orchestrator_is_told_no_prompt_and_no_request_id() -> None:
    told = {field.name for kind in (SessionReport, PlanQuery, KnownCosts) for field in dataclasses.fields(kind)}
    assert not {name for name in told if re.search(r"(?<!encode_)prompt|request|image|picture|text|seed|name", name)}
