"""The PEM files that a service shows, and what is wrong with them."""

from __future__ import annotations

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from wire.watched import Watched

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


@dataclass(frozen=True, kw_only=True)
class _Shown:
    """What the files hold: for gRPC, and when the first certificate ends, Unix time."""

    configuration: grpc.ServerCertificateConfiguration
    end_seconds: float


class ServedCertificate:
    """What a port shows, read again whenever the files change: a renewed certificate needs no restart.

    The files are looked at when a client connects. While they do not fit together (one of them is written already, the
    other is not) the port goes on with what it had. Connections that stand keep the certificate they began with.

    Args:
        files: Where they are.

    Raises:
        OSError: One of them cannot be read.
        ValueError: They do not fit together; the text says what is wrong.
    """

    def __init__(self, files: TlsFiles) -> None:
        self._files = files
        paths = [path for path in (files.cert, files.key, files.client_ca) if path]
        self._watched = Watched("certificate", paths, self._read)

    def credentials(self) -> grpc.ServerCredentials:
        """Return what a secure port wants."""
        import grpc

        return grpc.dynamic_ssl_server_credentials(
            self._watched.latest.configuration,
            self._renewed,  # type: ignore[arg-type]  # the stubs do not know that None means no change
            require_client_authentication=self._files.client_ca is not None,
        )

    def publish(self, registry: CollectorRegistry) -> None:
        """Add the series that says when the served certificate ends: the first of the file, as gRPC serves it."""
        from prometheus_client import Gauge

        end = Gauge(
            "ecdiff_tls_certificate_expiry_timestamp_seconds",
            "When the served certificate ends, Unix time.",
            registry=registry,
        )
        end.set_function(lambda: self._watched.latest.end_seconds)

    def _read(self) -> _Shown:
        import grpc
        from cryptography import x509

        files = self._files
        if complaint := tls_complaint(files):
            raise ValueError(complaint)
        key, cert = files.key.read_bytes(), files.cert.read_bytes()
        client_ca = files.client_ca.read_bytes() if files.client_ca else None
        served = x509.load_pem_x509_certificates(cert)[0]
        configuration = grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)
        return _Shown(configuration=configuration, end_seconds=served.not_valid_after_utc.timestamp())

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what gRPC shows from now on; None: what it did. Called by gRPC at each handshake, one at a time."""
        before = self._watched.latest
        now = self._watched.now()
        return None if now is before else now.configuration
