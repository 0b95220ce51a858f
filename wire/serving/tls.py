"""The PEM files that a service shows, and what is wrong with them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a command line that only checks its options has no use for them
    import grpc
    from prometheus_client import CollectorRegistry


@dataclass(frozen=True, kw_only=True)
class TlsFiles:
    """PEM files of the server; with `client_ca` clients must show a certificate that it signed."""

    cert: Path
    key: Path
    client_ca: Path | None = None


def tls_complaint(tls: TlsFiles) -> str:
    """Return what is wrong with the files, empty where nothing is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    complaint = f"{tls.cert} and {tls.key} are no PEM certificate and its unencrypted key"
    try:
        # An empty password: nobody is asked for one on the terminal.
        context.load_cert_chain(tls.cert, tls.key, password="")
        if tls.client_ca is not None:
            complaint = f"{tls.client_ca} holds no PEM certificate"
            context.load_verify_locations(tls.client_ca)
    except ssl.SSLError:
        return complaint
    return ""


def server_credentials(tls: TlsFiles) -> grpc.ServerCredentials:
    """Return what a secure port wants; the files are read now.

    Raises:
        OSError: One of them cannot be read.
    """
    import grpc

    client_ca = tls.client_ca.read_bytes() if tls.client_ca else None
    return grpc.ssl_server_credentials(
        [(tls.key.read_bytes(), tls.cert.read_bytes())],
        root_certificates=client_ca,
        require_client_auth=client_ca is not None,
    )


def publish_certificate_end(tls: TlsFiles, registry: CollectorRegistry) -> None:
    """Add the series that says when the served certificate ends: the first of the file, as gRPC serves it.

    Set once: the certificate that is served is the one that was read at the start, whatever the file holds later.

    Raises:
        OSError: The file cannot be read.
        ValueError: It holds no PEM certificate.
    """
    from cryptography import x509
    from prometheus_client import Gauge

    end = Gauge(
        "ecdiff_tls_certificate_expiry_timestamp_seconds",
        "When the served certificate ends, Unix time.",
        registry=registry,
    )
    served = x509.load_pem_x509_certificates(tls.cert.read_bytes())[0]
    end.set(served.not_valid_after_utc.timestamp())
