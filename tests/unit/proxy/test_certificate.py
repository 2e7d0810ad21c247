# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address

import pytest
from cryptography import x509

from proxy.certificate import NEAR_EXPIRY, VALIDITY, CertificateError, development_certificate

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def read(path):
    return x509.load_pem_x509_certificate(path.read_bytes())


def test_it_is_for_this_machine_and_for_two_weeks(tmp_path):
    certificate, _ = development_certificate(tmp_path, now=NOW)

    found = read(certificate)
    names = found.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    assert names.get_values_for_type(x509.DNSName) == ["localhost"]
    assert names.get_values_for_type(x509.IPAddress) == [ip_address("127.0.0.1"), ip_address("::1")]
    assert found.not_valid_before_utc <= NOW
    assert found.not_valid_after_utc - found.not_valid_before_utc == VALIDITY == timedelta(days=14)


def test_a_client_that_trusts_it_shakes_hands_with_it(tmp_path):
    certificate, key = development_certificate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(certificate, key)
    client = ssl.create_default_context(cafile=str(certificate))

    for name in ("localhost", "127.0.0.1", "::1"):
        shake_hands(client, server, name)
    with pytest.raises(ssl.SSLCertVerificationError, match="mismatch"):
        shake_hands(client, server, "elsewhere.example")


def shake_hands(client, server, name):
    to_client, to_server = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = [
        client.wrap_bio(to_client, to_server, server_hostname=name),
        server.wrap_bio(to_server, to_client, server_side=True),
    ]
    for _ in range(4):
        for end in ends:
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    assert ends[0].getpeercert()


def test_only_its_owner_reads_the_key(tmp_path):
    certificate, key = development_certificate(tmp_path / "made" / "on the way")

    assert key.stat().st_mode & 0o777 == 0o600
    assert certificate.stat().st_mode & 0o777 == 0o644
    assert sorted(path.name for path in key.parent.iterdir()) == ["development.key", "development.pem"]


@pytest.mark.parametrize(
    ("later", "kept"),
    [
        (timedelta(0), True),
        (VALIDITY - NEAR_EXPIRY - timedelta(hours=2), True),
        (VALIDITY - NEAR_EXPIRY, False),
        (VALIDITY * 2, False),
        (-timedelta(days=1), False),
    ],
)
def test_it_is_kept_until_it_nears_its_end(tmp_path, later, kept):
    before = development_certificate(tmp_path, now=NOW)[0].read_bytes()

    after = development_certificate(tmp_path, now=NOW + later)[0]

    assert (after.read_bytes() == before) is kept
    assert read(after).not_valid_after_utc >= NOW + later + NEAR_EXPIRY


@pytest.mark.parametrize("damaged", ["development.pem", "development.key"])
@pytest.mark.parametrize("content", [None, b"", b"-----BEGIN CERTIFICATE-----\nxx\n-----END CERTIFICATE-----\n"])
def test_a_damaged_pair_is_made_anew(tmp_path, damaged, content):
    development_certificate(tmp_path)
    if content is None:
        (tmp_path / damaged).unlink()
    else:
        (tmp_path / damaged).write_bytes(content)

    certificate, key = development_certificate(tmp_path)

    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)


def test_a_key_of_another_certificate_is_noticed(tmp_path):
    certificate, key = development_certificate(tmp_path / "one")
    _, other = development_certificate(tmp_path / "two")
    key.write_bytes(other.read_bytes())

    certificate, key = development_certificate(tmp_path / "one")

    ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)


def test_a_place_that_cannot_be_written_is_named_with_the_remedy(tmp_path):
    occupied = tmp_path / "file"
    occupied.write_text("not a directory")

    with pytest.raises(CertificateError, match=r"file: .*--state-dir"):
        development_certificate(occupied)
