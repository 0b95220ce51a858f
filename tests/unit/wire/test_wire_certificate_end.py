"""The series that says when the served certificate ends."""

from __future__ import annotations

import datetime
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from prometheus_client import CollectorRegistry

from harness.scrape import Scrape, check_with_promtool
from wire.serving.address import Address
from wire.serving.ports import Ports
from wire.serving.tls import ServedCertificate, TlsFiles

SERIES = "ecdiff_tls_certificate_expiry_timestamp_seconds"
DATA = Path(__file__).resolve().parents[2] / "data" / "tls"
LOOPBACK = Address(host="127.0.0.1", port=0)
NEXT_WEEK = datetime.datetime(2027, 1, 8, tzinfo=datetime.UTC)
NEXT_YEAR = datetime.datetime(2028, 1, 1, tzinfo=datetime.UTC)


def certificate(end: datetime.datetime, key: ec.EllipticCurvePrivateKey) -> bytes:
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "localhost")])
    begin = datetime.datetime(2026, 1, 1, tzinfo=datetime.UTC)
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(1).not_valid_before(begin).not_valid_after(end)
    return builder.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)


def key_file(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    pem, pkcs8 = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8
    path.write_bytes(key.private_bytes(pem, pkcs8, serialization.NoEncryption()))
    return path


def test_of_a_chain_the_first_certificate_counts(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    chain = tmp_path / "chain.pem"
    chain.write_bytes(certificate(NEXT_WEEK, key) + certificate(NEXT_YEAR, key))
    registry = CollectorRegistry()
    ServedCertificate(TlsFiles(cert=chain, key=key_file(tmp_path / "key.pem", key))).publish(registry)
    assert registry.get_sample_value(SERIES) == NEXT_WEEK.timestamp()


async def test_a_port_with_tls_says_when_its_certificate_ends_and_one_without_has_no_such_series() -> None:
    files = TlsFiles(cert=DATA / "server.pem", key=DATA / "server.key")
    for tls in (files, None):
        ports = Ports(
            "a.Service", listen=LOOPBACK, metrics_listen=LOOPBACK, registry=(registry := CollectorRegistry()), tls=tls
        )
        _, metrics_address = await ports.open(lambda server: None)
        scrape = Scrape.of(str(metrics_address))
        await ports.close(0)
        if tls is None:
            assert scrape.names() == set()
        else:
            expected = x509.load_pem_x509_certificate(files.cert.read_bytes()).not_valid_after_utc.timestamp()
            assert scrape.value(SERIES) == registry.get_sample_value(SERIES) == expected
            check_with_promtool(scrape.text)
