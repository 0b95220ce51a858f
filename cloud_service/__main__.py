"""`cloud-service`: the command line. Nothing heavy is imported before the options are known to be good."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path

import click

from cloud_service.config import Address, ServerConfig, TlsFiles
from cloud_service.logs import LOGGER_NAME, configure_logging

_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)


def _address(_context: click.Context, _parameter: click.Parameter, value: str) -> Address:
    try:
        return Address.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
@click.version_option(package_name="ecdiff")
def cli() -> None:
    """The large model behind gRPC: it plans a picture that a small model on an edge device finishes."""


# \b keeps click from filling the paragraph that follows.
_SERVE_HELP = """Load a model and serve it until SIGTERM.

One line on standard output says where it listens, a second one when the model is ready:

\b
    cloud-service listening on 127.0.0.1:50051 metrics on 127.0.0.1:9101
    cloud-service serving cloud

The log goes to standard error, one JSON object a line. SIGTERM lets running sessions finish; a second signal
ends the process at once.

\b
    cloud-service serve
    cloud-service serve --model CompVis/stable-diffusion-v1-4 --device cuda
    cloud-service serve --listen 0.0.0.0:50051 --tls-cert server.pem --tls-key server.key --auth-token-file token

Ask it from elsewhere with `edge-client probe --cloud HOST:PORT`.
"""


@cli.command(help=_SERVE_HELP)
@click.option("--model", metavar="PATH_OR_ID", help="Diffusers folder or hub id.  [default: the bundled cloud model]")
@click.option(
    "--listen",
    metavar="HOST:PORT",
    callback=_address,
    default="127.0.0.1:50051",
    show_default=True,
    help="Port 0: any free one.",
)
@click.option(
    "--metrics-listen",
    metavar="HOST:PORT",
    callback=_address,
    default="127.0.0.1:9101",
    show_default=True,
    help="For Prometheus.",
)
@click.option("--device", type=click.Choice(["auto", "cpu", "cuda"]), default="auto", show_default=True)
@click.option(
    "--dtype",
    type=click.Choice(["auto", "float32", "float16", "bfloat16"]),
    default="auto",
    show_default=True,
    help="auto: float16 on cuda, float32 on a cpu.",
)
@click.option("--max-batch", type=click.IntRange(1), default=4, show_default=True, help="Sessions in one forward pass.")
@click.option(
    "--max-sessions", type=click.IntRange(1), default=16, show_default=True, help="Sessions that run at once."
)
@click.option("--tls-cert", type=_FILE, help="PEM; with --tls-key.")
@click.option("--tls-key", type=_FILE, help="PEM.")
@click.option("--tls-client-ca", type=_FILE, help="PEM; clients must show a certificate that it signed.")
@click.option("--auth-token-file", type=_FILE, help="Clients must send this token.")
@click.option("--allow-plaintext-token", is_flag=True, help="Let the token cross a network without TLS.")
@click.option(
    "--grace-seconds",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    help="How long running sessions may go on after SIGTERM.",
)
@click.option("--exit-with-stdin", is_flag=True, help="Drain and exit when standard input ends.")
@click.option(
    "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
)
def serve(
    model: str | None,
    tls_cert: Path | None,
    tls_key: Path | None,
    tls_client_ca: Path | None,
    auth_token_file: Path | None,
    log_level: str,
    **options: object,
) -> int:
    """Run `cloud-service serve`; the options are explained in its help."""
    tls, token = _tls(tls_cert, tls_key, tls_client_ca), _token(auth_token_file)
    try:
        config = ServerConfig(
            model=model if model is not None else _bundled_model(),
            tls=tls,
            auth_token=token,
            **options,  # type: ignore[arg-type]  # click made them of the right types
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return _serve(config, log_level)


def _bundled_model() -> str:
    from models import bundled_pair

    return str(bundled_pair().cloud)


def _tls(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    if cert is not None and key is not None:
        return TlsFiles(cert=cert, key=key, client_ca=client_ca)
    if cert or key or client_ca:
        raise click.UsageError("TLS needs both --tls-cert and --tls-key")
    return None


def _token(file: Path | None) -> str | None:
    if file is None:
        return None
    token = file.read_text().strip()
    if not token:
        raise click.UsageError(f"the token file {file} is empty")
    return token


def _serve(config: ServerConfig, log_level: str) -> int:
    import asyncio

    from cloud_service.server import run

    configure_logging(log_level)
    return asyncio.run(run(config))


def main() -> None:
    """Run the command line; every error is one plain line on stderr."""
    # Read when grpc and torch are imported. Nothing forks here, and errors are told in our own words. OpenMP's idle
    # threads would spin for their next task: beside any other busy process a step then takes up to 30 times as long.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        exit_code = cli.main(prog_name="cloud-service", standalone_mode=False)
    except click.exceptions.NoArgsIsHelpError as error:
        error.show()
        exit_code = 2
    except click.ClickException as error:
        exit_code = _failed(error.format_message(), 2)
    except (OSError, ValueError, MemoryError) as error:
        exit_code = _failed(str(error), 1)
    except KeyboardInterrupt:
        exit_code = 130
    except Exception as error:
        logging.getLogger(LOGGER_NAME).exception("the service failed")
        exit_code = _failed(f"unexpected {type(error).__name__}: {error}", 1)
    sys.stdout.flush()
    sys.stderr.flush()
    # A model that is still loading on its thread would hold up the interpreter's orderly end.
    os._exit(exit_code)


def _failed(message: str, exit_code: int) -> int:
    first_line = message.partition("\n")[0]
    print(f"error: {first_line}", file=sys.stderr)
    return exit_code


if __name__ == "__main__":
    main()
