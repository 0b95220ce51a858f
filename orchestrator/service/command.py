"""`orchestrator serve` and `orchestrator status`: the command lines; nothing heavy is imported before they are good."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from models import PLANS_DIR
from orchestrator.service.config import LOGGER_NAME, OrchestratorConfig
from wire.options import with_options
from wire.serving.address import Address
from wire.serving.command_line import (
    PROCESS_OPTIONS,
    TLS_OPTIONS,
    TOKEN_OPTIONS,
    connection_options,
    listen_options,
    read_tokens,
    tls_files,
)
from wire.targets import parse_targets

if TYPE_CHECKING:
    from wire.credentials import Credentials

DEFAULT_LISTEN = "127.0.0.1:50061"
DEFAULT_METRICS_LISTEN = "127.0.0.1:9102"
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)
_FOLDER = click.Path(exists=True, file_okay=False, path_type=Path)

# \b keeps click from filling the paragraph that follows.
_SERVE_HELP = """Hand out plans and replicas, and learn from what edges report, until SIGTERM.

Edges use it with `edge-client generate --orchestrator HOST:PORT`: it tells them which cloud service to use and which
plan to run, and every generation's timings go to its metrics and make its next predictions better. No model runs
here, no prompt comes here. An edge that cannot reach it decides by itself.

One line on standard output says where it listens, a second one when it is ready:

\b
    orchestrator listening on 127.0.0.1:50061 metrics on 127.0.0.1:9102
    orchestrator serving 3 plan files, 2 of 2 replicas up

The log goes to standard error, one JSON object a line. Plan files that are added to, changed in or removed from
the folder are noticed; a broken one is a line in the log.

\b
    orchestrator serve --cloud 127.0.0.1:50051
    orchestrator serve --cloud gpu1:50051,gpu2:50051 --plans plans/ --state /var/lib/ecdiff
    orchestrator status

"""
_CLOUD_OPTIONS = (
    click.option(
        "--cloud",
        metavar="HOST:PORT[,HOST:PORT]",
        default="",
        help="The replicas: running cloud services. dns:///HOST:PORT stands for every address of a name, asked for "
        "again and again.",
    ),
    click.option("--cloud-auth-token-file", type=_FILE, help="File with the bearer token that they ask for."),
    click.option("--cloud-tls-ca", type=_FILE, help="Certificate authority of theirs; turns TLS towards them on."),
    click.option("--cloud-tls-cert", type=_FILE, help="Client certificate, where they ask for one."),
    click.option("--cloud-tls-key", type=_FILE, help="Key of the client certificate."),
)


@click.command(help=_SERVE_HELP)
@with_options(listen_options(DEFAULT_LISTEN, DEFAULT_METRICS_LISTEN))
@click.option("--plans", type=_FOLDER, help="Folder of plan files (orchestrator search).  [default: the bundled ones]")
@click.option(
    "--state",
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the estimates, made where it is missing; without it a restart forgets them.",
)
@with_options(_CLOUD_OPTIONS, connection_options(4096), TLS_OPTIONS, TOKEN_OPTIONS, PROCESS_OPTIONS)
def serve(
    plans: Path | None,
    cloud: str,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    auth_token_file: Path | None,
    log_level: str,
    **options: Any,
) -> int:
    """Run `orchestrator serve`; the options are explained in its help."""
    _quiet_grpc()
    tls, tokens = tls_files(tls_cert, tls_key, tls_client_ca), read_tokens(auth_token_file)
    client_options = {
        name: options.pop(f"cloud_{name}") for name in ("auth_token_file", "tls_ca", "tls_cert", "tls_key")
    }
    try:
        config = OrchestratorConfig(
            plans=plans or PLANS_DIR,
            replicas=parse_targets(cloud) if cloud else (),
            credentials=_credentials(client_options, allow_plaintext_token=options["allow_plaintext_token"]),
            tls=tls,
            tokens=tokens,
            **options,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return _serve(config, log_level)


def _serve(config: OrchestratorConfig, log_level: str) -> int:
    import asyncio

    from orchestrator.service.server import run
    from wire.serving.logs import configure_logging

    configure_logging(LOGGER_NAME, log_level)
    return asyncio.run(run(config))


@click.command()
@click.option(
    "--orchestrator",
    "address",
    metavar="HOST:PORT",
    default=DEFAULT_LISTEN,
    show_default=True,
    help="Where it listens.",
)
@click.option("--auth-token-file", type=_FILE, help="File with the bearer token that it asks for.")
@click.option("--allow-plaintext-token", is_flag=True, help="Send the token unencrypted to another host.")
@click.option("--tls-ca", type=_FILE, help="Certificate authority of the orchestrator; turns TLS on.")
@click.option("--tls-cert", type=_FILE, help="Client certificate, where it asks for one.")
@click.option("--tls-key", type=_FILE, help="Key of the client certificate.")
def status(address: str, allow_plaintext_token: bool, **options: Any) -> None:
    """Show what a running orchestrator knows: replicas, what it learned of them, and plan files.

    Exits 0 only when it answers.
    """
    _quiet_grpc()
    try:
        checked = str(Address.parse(address))
        credentials = _credentials(options, allow_plaintext_token=allow_plaintext_token)
        credentials.metadata(checked)
    except ValueError as error:
        raise click.UsageError(str(error)) from error

    import asyncio

    from orchestrator.service.show import show_status

    asyncio.run(show_status(checked, credentials))


def _credentials(options: dict[str, Any], *, allow_plaintext_token: bool) -> Credentials:
    from wire.credentials import Credentials

    return Credentials(
        token_file=options["auth_token_file"],
        tls_ca=options["tls_ca"],
        tls_cert=options["tls_cert"],
        tls_key=options["tls_key"],
        allow_plaintext_token=allow_plaintext_token,
    )


def _quiet_grpc() -> None:
    # Read when grpc is imported. Nothing forks here, and errors are told in our own words.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
