"""What a service is told at its start. Built once, in `__main__`, and never half valid."""

from __future__ import annotations

import ipaddress
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, kw_only=True)
class Address:
    """A host and a port; port 0 lets the system choose one."""

    host: str
    port: int

    def __post_init__(self) -> None:
        if not 0 <= self.port <= 65535:
            raise ValueError(f"a port lies in 0..65535, not {self.port}")

    @classmethod
    def parse(cls, text: str) -> Address:
        """Return the address in `HOST:PORT` or `[IPV6]:PORT`.

        Raises:
            ValueError: It is neither.
        """
        host, colon, port = text.rpartition(":")
        host = host.removeprefix("[").removesuffix("]") if host.startswith("[") else host
        if not colon or not host or not port.isdecimal():
            raise ValueError(f"an address is HOST:PORT, for example 127.0.0.1:50051, not {text!r}")
        return cls(host=host, port=int(port))

    @property
    def loopback(self) -> bool:
        """Whether only this machine can reach it."""
        if self.host == "localhost":
            return True
        try:
            return ipaddress.ip_address(self.host).is_loopback
        except ValueError:
            return False

    def __str__(self) -> str:
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files of the server; with `client_ca` clients must show a certificate that it signed."""

    cert: Path
    key: Path
    client_ca: Path | None = None


@dataclass(frozen=True, kw_only=True)
class ServerConfig:
    """Everything that `cloud-service serve` is told.

    Attributes:
        model: Folder or hub id.
        listen: Where gRPC listens.
        metrics_listen: Where Prometheus scrapes.
        device: auto, cpu or cuda.
        dtype: auto, float32, float16 or bfloat16.
        max_batch: Most sessions in one forward pass.
        max_sessions: Most sessions that run at a time.
        tls: None for plaintext.
        auth_token: None lets everyone in.
        allow_plaintext_token: Whether the token may cross a network in the clear.
        grace_seconds: How long running sessions may go on after SIGTERM.
        exit_with_stdin: Whether the end of standard input ends the service.
    """

    model: str
    listen: Address
    metrics_listen: Address
    device: str = "auto"
    dtype: str = "auto"
    max_batch: int = 4
    max_sessions: int = 16
    tls: TlsFiles | None = None
    auth_token: str | None = None
    allow_plaintext_token: bool = False
    grace_seconds: float = 30.0
    exit_with_stdin: bool = False

    def __post_init__(self) -> None:
        if self.max_batch < 1 or self.max_sessions < 1:
            raise ValueError(f"max_batch ({self.max_batch}) and max_sessions ({self.max_sessions}) must be at least 1")
        if self.grace_seconds < 0:
            raise ValueError(f"grace_seconds must not be negative, not {self.grace_seconds}")
        in_the_clear = self.auth_token is not None and self.tls is None and not self.listen.loopback
        if in_the_clear and not self.allow_plaintext_token:
            raise ValueError(
                f"the token would cross the network in the clear on {self.listen}: "
                "give --tls-cert and --tls-key, or say --allow-plaintext-token"
            )
