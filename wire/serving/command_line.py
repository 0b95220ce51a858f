"""The options that every `serve` command has, what they mean, and how such a process ends."""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from wire.serving.address import Address
from wire.serving.tls import TlsFiles
from wire.tokens import TokenFile

_Command = TypeVar("_Command", bound=Callable[..., Any])
_FILE = click.Path(exists=True, dir_okay=False, readable=True, path_type=Path)

TLS_OPTIONS = (
    click.option("--tls-cert", type=_FILE, help="PEM; with --tls-key. Read again when it changes."),
    click.option("--tls-key", type=_FILE, help="PEM."),
    click.option("--tls-client-ca", type=_FILE, help="PEM; clients must show a certificate that it signed."),
)
TOKEN_OPTIONS = (
    click.option(
        "--auth-token-file",
        type=_FILE,
        help="Clients must send a token of this file: one a line, all of them good. Read again when it changes.",
    ),
    click.option("--allow-plaintext-token", is_flag=True, help="Let the token cross a network without TLS."),
)
PROCESS_OPTIONS = (
    click.option(
        "--grace-seconds",
        type=click.FloatRange(0),
        default=30.0,
        show_default=True,
        help="After SIGTERM running work is finished, or let go, within this.",
    ),
    click.option("--exit-with-stdin", is_flag=True, help="Drain and exit when standard input ends."),
    click.option(
        "--log-level", type=click.Choice(["debug", "info", "warning", "error"]), default="info", show_default=True
    ),
)


def connection_options(max_connections: int) -> tuple[Callable[[_Command], _Command], ...]:
    """Return `--max-connections` with this default."""
    return (
        click.option(
            "--max-connections",
            type=click.IntRange(1),
            default=max_connections,
            show_default=True,
            help="Most connections to --listen at a time; what comes on top is closed. An edge holds up to two.",
        ),
    )


def address_option(name: str, default: str, explanation: str) -> Callable[[_Command], _Command]:
    """Return an option whose value is an `Address`."""
    return click.option(
        name, metavar="HOST:PORT", callback=_address, default=default, show_default=True, help=explanation
    )


def listen_options(listen: str, metrics_listen: str) -> tuple[Callable[[_Command], _Command], ...]:
    """Return `--listen` and `--metrics-listen` with these defaults."""
    return (
        address_option("--listen", listen, "Port 0: any free one."),
        address_option("--metrics-listen", metrics_listen, "For Prometheus."),
    )


def _address(_context: click.Context, _parameter: click.Parameter, value: str) -> Address:
    try:
        return Address.parse(value)
    except ValueError as error:
        raise click.BadParameter(str(error)) from error


def tls_files(cert: Path | None, key: Path | None, client_ca: Path | None) -> TlsFiles | None:
    """Return what `TLS_OPTIONS` say; None for plaintext.

    Raises:
        click.UsageError: They are not whole.
    """
    if cert is not None and key is not None:
        return TlsFiles(cert=cert, key=key, client_ca=client_ca)
    if cert or key or client_ca:
        raise click.UsageError("TLS needs both --tls-cert and --tls-key")
    return None


def read_tokens(file: Path | None) -> TokenFile | None:
    """Return the tokens in a file; None lets everyone in.

    Raises:
        click.UsageError: It is empty, or holds no tokens.
        OSError: It cannot be read.
    """
    try:
        return None if file is None else TokenFile(file)
    except ValueError as error:
        raise click.UsageError(str(error)) from error


def run_service(cli: click.Group, name: str, log: logging.Logger) -> None:
    """Run the command line and end the process; every error is one plain line on stderr.

    Args:
        cli: Its commands return their exit code.
        name: Of the program.
        log: Gets the traceback of a mistake of ours.
    """
    # Read when grpc and torch are imported. Nothing forks here, and errors are told in our own words. OpenMP's idle
    # threads would spin for their next task: beside any other busy process a step then takes up to 30 times as long.
    os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    try:
        exit_code = cli.main(prog_name=name, standalone_mode=False)
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
        log.exception("the service failed")
        exit_code = _failed(f"unexpected {type(error).__name__}: {error}", 1)
    sys.stdout.flush()
    sys.stderr.flush()
    # A model that is still loading on its thread would hold up the interpreter's orderly end.
    os._exit(exit_code)


def _failed(message: str, exit_code: int) -> int:
    first_line = message.partition("\n")[0]
    print(f"error: {first_line}", file=sys.stderr)
    return exit_code
