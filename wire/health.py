"""`python -m wire.health HOST:PORT`: exits 0 only when the service there says SERVING.

For the health checks of containers and units: it needs no torch and is done in a few tenths of a second.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path

import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from wire.calls import call_unary
from wire.credentials import Credentials
from wire.errors import ProtocolError

_TIMEOUT_SECONDS = 3.0


async def status(address: str, *, service: str, credentials: Credentials, timeout_seconds: float) -> str:
    """Ask `grpc.health.v1.Health/Check` once.

    Args:
        address: HOST:PORT.
        service: Full name of a gRPC service; empty for the process as a whole.
        credentials: TLS files, where the service wants them; no token is sent.
        timeout_seconds: For connection and answer together.

    Returns:
        The name of the answered status, `SERVING` among them.

    Raises:
        grpc.aio.AioRpcError: Nobody answers there, or with an error.
        ProtocolError: The answer is no message of the health service.
        OSError: A file of the credentials cannot be read.
    """
    async with credentials.channel(address) as channel:
        check = health_pb2_grpc.HealthStub(channel).Check
        request = health_pb2.HealthCheckRequest(service=service)
        answer = await call_unary(check, request, timeout_seconds=timeout_seconds)
    return str(health_pb2.HealthCheckResponse.ServingStatus.Name(answer.status))


def main(arguments: list[str] | None = None) -> int:
    """Run the command line.

    Returns:
        0 when the service says SERVING, else 1, with one plain line on standard error.
    """
    options = _parser().parse_args(arguments)
    asked = f"{options.service or 'the service'} at {options.address}"
    try:
        credentials = Credentials(tls_ca=options.tls_ca, tls_cert=options.tls_cert, tls_key=options.tls_key)
        question = status(
            options.address, service=options.service, credentials=credentials, timeout_seconds=_TIMEOUT_SECONDS
        )
        answer = asyncio.run(question)
    except grpc.aio.AioRpcError as error:
        return _failed(f"{asked} does not answer: {error.code().name}, {error.details()}")
    except ProtocolError as error:
        return _failed(f"{asked} speaks something else: {error}")
    except (OSError, ValueError) as error:
        return _failed(str(error))
    return 0 if answer == "SERVING" else _failed(f"{asked} is {answer}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m wire.health", description="Exits 0 only when it says SERVING.")
    parser.add_argument("address", metavar="HOST:PORT")
    parser.add_argument("--service", default="", metavar="NAME", help="full name of one gRPC service of the process")
    parser.add_argument("--tls-ca", type=Path, metavar="F", help="PEM; turns TLS on")
    parser.add_argument(
        "--tls-cert", type=Path, metavar="F", help="PEM; the client certificate, where one is asked for"
    )
    parser.add_argument("--tls-key", type=Path, metavar="F", help="PEM; the key of --tls-cert")
    return parser


def _failed(message: str) -> int:
    first_line = message.partition("\n")[0]
    print(f"error: {first_line}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    # Read by grpc at its first channel: its own complaints would be a second line.
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")
    sys.exit(main())
