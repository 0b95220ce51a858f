"""The PEM files that a service shows, and what is wrong with them."""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:  # a command line that only checks its options has no use for them
    import grpc
    from prometheus_client import CollectorRegistry

_log = logging.getLogger(__name__)


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
        self._seen = self._look()
        if complaint := tls_complaint(files):
            raise ValueError(complaint)
        self._read()

    def credentials(self) -> grpc.ServerCredentials:
        """Return what a secure port wants."""
        import grpc

        return grpc.dynamic_ssl_server_credentials(
            self._configuration,
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
        end.set_function(lambda: self._end_seconds)

    def _look(self) -> list[tuple[int, int, int]]:
        """Return what changes when a file is written, or a link to it is moved."""
        states = [path.stat() for path in (self._files.cert, self._files.key, self._files.client_ca) if path]
        return [(state.st_mtime_ns, state.st_ino, state.st_size) for state in states]

    def _read(self) -> None:
        import grpc
        from cryptography import x509

        files = self._files
        key, cert = files.key.read_bytes(), files.cert.read_bytes()
        client_ca = files.client_ca.read_bytes() if files.client_ca else None
        served = x509.load_pem_x509_certificates(cert)[0]
        self._configuration = grpc.ssl_server_certificate_configuration([(key, cert)], root_certificates=client_ca)
        self._end_seconds = served.not_valid_after_utc.timestamp()

    def _renewed(self) -> grpc.ServerCertificateConfiguration | None:
        """Return what gRPC shows from now on; None: what it did. Called by gRPC at each handshake, one at a time."""
        try:
            if (now := self._look()) == self._seen:
                return None
            if complaint := tls_complaint(self._files):
                raise ValueError(complaint)
            self._read()
        except (OSError, ValueError) as error:
            # Not remembered as seen: the next client's handshake looks again.
            _log.warning("the old certificate is served on", extra={"reason": str(error)})
            return None
        self._seen = now
        _log.info("a renewed certificate is served")
        return self._configuration
