"""What `orchestrator serve` is told. Built once, in its command, and never half valid."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wire.serving.address import Address
from wire.serving.tls import TlsFiles
from wire.tokens import TokenFile

if TYPE_CHECKING:  # it brings grpc, which a command line that only checks its options has no use for
    from wire.credentials import Credentials

LOGGER_NAME = "orchestrator"


@dataclass(frozen=True, kw_only=True)
class Timings:
    """How often the service looks, and how long it waits. All in seconds.

    Attributes:
        poll_seconds: From one look at a replica to the next.
        poll_timeout_seconds: A replica that does not answer for so long is down.
        resolve_seconds: From one question for what a name stands for to the next.
        save_seconds: From one look at whether the estimates need saving to the next.

    Raises:
        ValueError: Unless every one is positive and finite.
    """

    poll_seconds: float = 2.0
    poll_timeout_seconds: float = 2.0
    resolve_seconds: float = 5.0
    save_seconds: float = 10.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not 0 < value < math.inf:
                raise ValueError(f"{name} must be positive and finite, not {value}")


@dataclass(frozen=True, kw_only=True)
class OrchestratorConfig:
    """Everything that `orchestrator serve` is told.

    Attributes:
        listen: Where gRPC listens.
        metrics_listen: Where Prometheus scrapes.
        plans: Folder of plan files.
        state: Folder of the estimates; None: they are forgotten.
        replicas: Targets of the cloud services, as `wire.targets.parse_targets` returns them.
        credentials: Token and certificates for them.
        max_connections: Most connections to `listen` at a time.
        tls: None for plaintext.
        tokens: None lets everyone in.
        allow_plaintext_token: Whether tokens may cross a network in the clear.
        grace_seconds: How long running calls may go on after SIGTERM.
        exit_with_stdin: Whether the end of standard input ends the service.
        timings: Not on the command line.

    Raises:
        ValueError: With the name and the value of whatever does not fit.
    """

    listen: Address
    metrics_listen: Address
    plans: Path
    state: Path | None
    replicas: tuple[str, ...]
    credentials: Credentials
    max_connections: int = 4096
    tls: TlsFiles | None = None
    tokens: TokenFile | None = None
    allow_plaintext_token: bool = False
    grace_seconds: float = 30.0
    exit_with_stdin: bool = False
    timings: Timings = Timings()

    def __post_init__(self) -> None:
        if len(set(self.replicas)) != len(self.replicas):
            raise ValueError(f"a replica is named twice: {', '.join(self.replicas)}")
        if self.grace_seconds < 0:
            raise ValueError(f"grace_seconds must not be negative, not {self.grace_seconds}")
        in_the_clear = self.tokens is not None and self.tls is None and not self.listen.loopback
        if in_the_clear and not self.allow_plaintext_token:
            raise ValueError(
                f"the token would cross the network in the clear on {self.listen}: "
                "give --tls-cert and --tls-key, or say --allow-plaintext-token"
            )
