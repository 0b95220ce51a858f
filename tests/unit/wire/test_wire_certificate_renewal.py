"""A port whose certificate is renewed while it serves."""

from __future__ import annotations

import datetime
import shutil
from pathlib import Path

import grpc
import grpc.aio
import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from grpc_health.v1 import health_pb2, health_pb2_grpc
from prometheus_client import CollectorRegistry

from wire.serving.address import Address
from wire.serving.ports import Ports
from wire.serving.tls import ServedCertificate, TlsFiles

SERIES = "ecdiff_tls_certificate_expiry_timestamp_seconds"
LOOPBACK = Address(host="127.0.0.1", port=0)
BEGIN = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)


def write_pair(folder: Path, *, years: int) -> x509.Certificate:
    """Write `key.pem` and a self-signed `cert.pem` for localhost."""
    folder.mkdir(exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(years).not_valid_before(BEGIN).not_valid_after(BEGIN.replace(year=2026 + years))
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
    signed = builder.sign(key, hashes.SHA256())
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    (folder / "cert.pem").write_bytes(signed.public_bytes(pem))
    (folder / "key.pem").write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return signed


async def answers(address: Address, trusted: Path) -> bool:
    """Whether a new connection that trusts one certificate gets through."""
    credentials = grpc.ssl_channel_credentials(trusted.read_bytes())
    options = (("grpc.use_local_subchannel_pool", 1),)
    async with grpc.aio.secure_channel(f"localhost:{address.port}", credentials, options=options) as channel:
        try:
            await health_pb2_grpc.HealthStub(channel).Check(health_pb2.HealthCheckRequest(), timeout=10)
        except grpc.aio.AioRpcError:
            return False
        return True


async def test_new_connections_get_the_renewed_certificate_and_half_a_renewal_changes_nothing(tmp_path: Path) -> None:
    served, old, new = tmp_path / "served", tmp_path / "old", tmp_path / "new"
    first, second = write_pair(old, years=1), write_pair(new, years=2)
    shutil.copytree(old, served)
    registry = CollectorRegistry()
    files = TlsFiles(cert=served / "cert.pem", key=served / "key.pem")
    ports = Ports("a.Service", listen=LOOPBACK, metrics_listen=LOOPBACK, registry=registry, tls=files)
    address, _ = await ports.open(lambda server: None)
    try:
        assert await answers(address, old / "cert.pem")
        assert registry.get_sample_value(SERIES) == first.not_valid_after_utc.timestamp()
        # A certificate without its key yet.
        shutil.copy(new / "cert.pem", served / "cert.pem")
        assert await answers(address, old / "cert.pem")
        assert not await answers(address, new / "cert.pem")
        assert registry.get_sample_value(SERIES) == first.not_valid_after_utc.timestamp()
        shutil.copy(new / "key.pem", served / "key.pem")
        assert await answers(address, new / "cert.pem")
        assert not await answers(address, old / "cert.pem")
        assert registry.get_sample_value(SERIES) == second.not_valid_after_utc.timestamp()
        # A volume that is gone for a moment.
        (served / "key.pem").unlink()
        assert await answers(address, new / "cert.pem")
    finally:
        await ports.close(0)


def test_files_that_do_not_fit_together_are_refused_at_the_start(tmp_path: Path) -> None:
    write_pair(tmp_path / "one", years=1)
    write_pair(tmp_path / "other", years=1)
    files = TlsFiles(cert=tmp_path / "one" / "cert.pem", key=tmp_path / "other" / "key.pem")
    with pytest.raises(ValueError, match="no PEM certificate and its unencrypted key"):
        ServedCertificate(files)
