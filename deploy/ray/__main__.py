"""`python -m deploy.ray`: the cloud service on Ray Serve."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import click

from cloud_service.config import LOGGER_NAME, ServerConfig
from cloud_service.options import DEVICE_OPTIONS, MODEL_OPTION, bundled_model
from deploy.ray.config import RayConfig, prepare_environment
from wire.options import with_options
from wire.serving.address import Address
from wire.serving.command_line import (
    PROCESS_OPTIONS,
    TOKEN_OPTIONS,
    address_option,
    read_tokens,
    run_service,
)
from wire.serving.logs import configure_logging


@click.group(context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 120})
def cli() -> None:
    """The cloud service on Ray Serve: one address, many replicas."""


# \b keeps click from filling the paragraph that follows.
_SERVE_HELP = """Start the replicas and serve until SIGTERM.

Two lines on standard output say where clients connect and where Prometheus finds the series of all replicas:

\b
    cloud-service listening on 127.0.0.1:50051 metrics on 127.0.0.1:9101
    cloud-service serving cloud

Ray's proxy listens in plaintext on every address of each machine: keep its port closed to strangers and put TLS in
front. docs/ray.md says how, and what differs from `cloud-service serve`.

\b
    python -m deploy.ray serve --replicas 2
    python -m deploy.ray serve --model CompVis/stable-diffusion-v1-4 --device cuda --gpus-per-replica 1 --replicas 1:8
"""


def _counts(_context: click.Context, _parameter: click.Parameter, value: str) -> tuple[int, int]:
    least, colon, most = value.partition(":")
    if not least.isdecimal() or not (most.isdecimal() if colon else True):
        raise click.BadParameter(f"MIN:MAX, for example 1:4, not {value!r}")
    return int(least), int(most if colon else least)


@cli.command(help=_SERVE_HELP)
@with_options((MODEL_OPTION,))
@click.option("--port", type=click.IntRange(1, 65535), default=50051, show_default=True, help="Of gRPC.")
@with_options((address_option("--metrics-listen", "127.0.0.1:9101", "For Prometheus."),))
@click.option(
    "--replicas",
    metavar="MIN:MAX",
    callback=_counts,
    default="1:2",
    show_default=True,
    help="One number: always so many.",
)
@click.option(
    "--upscale-seconds",
    type=click.FloatRange(0.1),
    default=10.0,
    show_default=True,
    help="Too many sessions for so long: one replica more.",
)
@click.option(
    "--downscale-seconds",
    type=click.FloatRange(0.1),
    default=300.0,
    show_default=True,
    help="Too few for so long: one less.",
)
@click.option(
    "--cpus-per-replica",
    type=click.FloatRange(0),
    default=1.0,
    show_default=True,
    help="What Ray sets aside for each.",
)
@click.option(
    "--gpus-per-replica",
    type=click.FloatRange(0),
    default=0.0,
    show_default=True,
    help="The same; without, it sees none.",
)
@click.option("--cluster", metavar="HOST:PORT", help="Of a running Ray.  [default: one of its own, on this machine]")
@with_options(DEVICE_OPTIONS, TOKEN_OPTIONS, PROCESS_OPTIONS)
def serve(
    model: str | None,
    port: int,
    replicas: tuple[int, int],
    upscale_seconds: float,
    downscale_seconds: float,
    cpus_per_replica: float,
    gpus_per_replica: float,
    cluster: str | None,
    auth_token_file: Path | None,
    log_level: str,
    **options: Any,
) -> int:
    """Run `python -m deploy.ray serve`; the options are explained in its help."""
    tokens = read_tokens(auth_token_file)
    if tokens is not None and not options["allow_plaintext_token"]:
        raise click.UsageError(
            "the token would cross the network in the clear: put TLS in front of the port, close it to everybody else, "
            "and say --allow-plaintext-token"
        )
    if options["device"] == "cuda" and not gpus_per_replica:
        raise click.UsageError("a replica sees no GPU without --gpus-per-replica")
    try:
        server = ServerConfig(
            model=model if model is not None else bundled_model(),
            listen=Address(host="127.0.0.1", port=port),
            tokens=tokens,
            **options,
        )
        config = RayConfig(
            port=port,
            min_replicas=replicas[0],
            max_replicas=replicas[1],
            upscale_seconds=upscale_seconds,
            downscale_seconds=downscale_seconds,
            cpus_per_replica=cpus_per_replica,
            gpus_per_replica=gpus_per_replica,
            cluster=cluster,
        )
    except ValueError as error:
        raise click.UsageError(str(error)) from error
    return _serve(server, config, log_level)


def _serve(server: ServerConfig, config: RayConfig, log_level: str) -> int:
    prepare_environment()
    try:
        from deploy.ray.service import run
    except ModuleNotFoundError as error:
        if error.name != "ray":
            raise
        raise click.UsageError("Ray is not installed: pip install -c constraints.txt -e '.[ray]'") from error
    configure_logging(LOGGER_NAME, log_level)
    return run(server, config, log_level=log_level)


def main() -> None:
    """Run the command line; every error is one plain line on stderr."""
    run_service(cli, "python -m deploy.ray", logging.getLogger(LOGGER_NAME))


if __name__ == "__main__":
    main()
