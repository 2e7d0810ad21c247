# SPDX-License-Identifier: Apache-2.0
"""The development certificate: self-signed, for loopback, made when it is missing or about to expire."""

from __future__ import annotations

import fcntl
import ipaddress
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

__all__ = ["CertificateError", "development_certificate"]

VALIDITY = timedelta(days=14)
"""The longest that browsers accept by its hash alone (WebTransport, serverCertificateHashes)."""
NEAR_EXPIRY = timedelta(days=2)
"""A gateway started now should still have a valid certificate over a weekend."""
_CLOCK_SKEW = timedelta(hours=1)
_NAMES = x509.SubjectAlternativeName(
    [
        x509.DNSName("localhost"),
        x509.IPAddress(ipaddress.IPv4Address("127.0.0.1")),
        x509.IPAddress(ipaddress.IPv6Address("::1")),
    ]
)


class CertificateError(Exception):
    """The development certificate cannot be kept: one line that names the place and the remedy."""


def development_certificate(directory: Path, *, now: datetime | None = None) -> tuple[Path, Path]:
    """Paths of a certificate and its key for localhost, 127.0.0.1 and ::1, valid for two more days at least."""
    moment = datetime.now(UTC) if now is None else now
    certificate, key = directory / "development.pem", directory / "development.key"
    try:
        directory.mkdir(parents=True, exist_ok=True)
        with _alone_in(directory):
            if not _usable(certificate, key, moment):
                _make(certificate, key, moment)
    except OSError as error:
        raise CertificateError(
            f"{error.filename or directory}: {error.strerror}; give a directory that can be written (--state-dir)"
        ) from None
    return certificate, key


@contextmanager
def _alone_in(directory: Path) -> Iterator[None]:
    """Keep two gateways that start together from mixing one's key with the other's certificate."""
    descriptor = os.open(directory, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)  # held for the milliseconds that making a pair takes
        yield
    finally:
        os.close(descriptor)


def _usable(certificate: Path, key: Path, now: datetime) -> bool:
    """Whether the pair on disk is ours, whole, and valid for long enough."""
    try:
        found = x509.load_pem_x509_certificate(certificate.read_bytes())
        private = load_pem_private_key(key.read_bytes(), password=None)
        names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except (FileNotFoundError, ValueError, TypeError, UnsupportedAlgorithm, x509.ExtensionNotFound):
        return False  # missing or damaged: made anew
    in_time = found.not_valid_before_utc <= now and now + NEAR_EXPIRY <= found.not_valid_after_utc
    return in_time and names == _NAMES and private.public_key() == found.public_key()


def _make(certificate: Path, key: Path, now: datetime) -> None:
    private = ec.generate_private_key(ec.SECP256R1())
    made = _sign(private, now - _CLOCK_SKEW)
    # The key first: whoever finds the new certificate finds its key, too.
    _write(key, private.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()), mode=0o600)
    _write(certificate, made.public_bytes(Encoding.PEM), mode=0o644)


def _sign(private: ec.EllipticCurvePrivateKey, not_before: datetime) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "Inferlane development")])
    key_usage = x509.KeyUsage(
        digital_signature=True,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=False,
        crl_sign=False,
        encipher_only=False,
        decipher_only=False,
    )
    builder = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(private.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(not_before)
        .not_valid_after(not_before + VALIDITY)
        .add_extension(_NAMES, critical=False)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(key_usage, critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(private.public_key()), critical=False)
    )
    return builder.sign(private, hashes.SHA256())


def _write(path: Path, content: bytes, *, mode: int) -> None:
    """In one step, so that nobody ever reads half a file."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")  # mode 0600
    part = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        part.chmod(mode)
        part.replace(path)
    except OSError:
        part.unlink(missing_ok=True)
        raise
