"""How a client talks to a service that is closed to strangers: bearer token, TLS, and the channel itself."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import grpc
import grpc.aio

from wire.channel import CHANNEL_OPTIONS
from wire.serving.address import Address
from wire.tokens import TokenFile


@dataclass(frozen=True, kw_only=True)
class Credentials:
    """How to talk to a service that is closed to strangers.

    Certificates are read when a channel is made, the token for every call: whoever runs for long takes a new one.

    Raises:
        ValueError: A client certificate without its key, or the reverse.
    """

    token_file: Path | None = None
    tls_ca: Path | None = None
    tls_cert: Path | None = None
    tls_key: Path | None = None
    allow_plaintext_token: bool = False

    def __post_init__(self) -> None:
        if (self.tls_cert is None) != (self.tls_key is None):
            raise ValueError("--tls-cert and --tls-key belong together: give both or neither")
        if self.tls_cert is not None and self.tls_ca is None:
            raise ValueError("--tls-cert needs --tls-ca, the certificate that the service's own is checked against")

    def metadata(self, address: str) -> tuple[tuple[str, str], ...]:
        """Return the call metadata for `address`.

        Raises:
            ValueError: The token would travel in the clear to another host, or the file has none.
            OSError: The token file cannot be read; not once it could.
        """
        if self._tokens is None:
            return ()
        if self.tls_ca is None and not is_loopback(address) and not self.allow_plaintext_token:
            raise ValueError(
                f"the token would travel unencrypted to {address}: use --tls-ca, or --allow-plaintext-token if you must"
            )
        return (("authorization", f"Bearer {self._tokens.sent()}"),)

    @cached_property
    def _tokens(self) -> TokenFile | None:
        return None if self.token_file is None else TokenFile(self.token_file)

    def channel(self, address: str, *, name: str = "") -> grpc.aio.Channel:
        """Open a channel on a connection of its own.

        Args:
            address: HOST:PORT.
            name: HOST:PORT to ask for there, whose host its certificate must be for; empty: the address.
        """
        # gRPC would send even loopback traffic to the machine's http_proxy.
        options: list[tuple[str, int | str]] = [
            *CHANNEL_OPTIONS,
            ("grpc.enable_http_proxy", int(not is_loopback(address))),
        ]
        if name:
            # What gRPC would take from a target that is a name: with TLS the certificate is checked against it.
            options.append(("grpc.default_authority", name))
        if self.tls_ca is None:
            return grpc.aio.insecure_channel(address, options=options)
        credentials = grpc.ssl_channel_credentials(
            self.tls_ca.read_bytes(),
            self.tls_key.read_bytes() if self.tls_key else None,
            self.tls_cert.read_bytes() if self.tls_cert else None,
        )
        return grpc.aio.secure_channel(address, credentials, options=options)


def is_loopback(address: str) -> bool:
    """Whether `HOST:PORT` never leaves this machine."""
    return Address.parse(address).loopback
