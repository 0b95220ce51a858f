"""`cloud-service`: the command line. Nothing heavy is imported before the options are known to be good."""

from __future__ import annotations

import logging
from pathlib import Path

import click

from cloud_service.config import LOGGER_NAME, ServerConfig
from cloud_service.options import DEVICE_OPTIONS, MODEL_OPTION, bundled_model
from wire.options import with_options
from wire.serving.command_line import (
    PROCESS_OPTIONS,
    TLS_OPTIONS,
    TOKEN_OPTIONS,
    connection_options,
    listen_options,
    read_tokens,
    run_service,
    tls_files,
)
from wire.serving.logs import configure_logging


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
@with_options(
    (MODEL_OPTION,),
    listen_options("127.0.0.1:50051", "127.0.0.1:9101"),
    DEVICE_OPTIONS,
    connection_options(512),
    TLS_OPTIONS,
    TOKEN_OPTIONS,
    PROCESS_OPTIONS,
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
    tls, tokens = tls_files(tls_cert, tls_key, tls_client_ca), read_tokens(auth_token_file)
    try:
        config = ServerConfig(
            model=model if model is not None else bundled_model(),
            tls=tls,
            tokens=tokens,
            **options,  # type: ignore[arg-type]  # click made them of the right types
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return _serve(config, log_level)


def _serve(config: ServerConfig, log_level: str) -> int:
    import asyncio

    from cloud_service.server import run

    configure_logging(LOGGER_NAME, log_level)
    return asyncio.run(run(config))


def main() -> None:
    """Run the command line; every error is one plain line on stderr."""
    run_service(cli, "cloud-service", logging.getLogger(LOGGER_NAME))


if __name__ == "__main__":
    main()
