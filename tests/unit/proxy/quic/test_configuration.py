# SPDX-License-Identifier: Apache-2.0
"""Certificates and keys that cannot be served, and what is said about them."""

from __future__ import annotations

from pathlib import Path

import pytest

from proxy.certificate import development_certificate
from proxy.quic.configuration import TlsError, server_configuration


def test_certificates_that_cannot_be_served_say_why(tmp_path: Path) -> None:
    certificate, key = development_certificate(tmp_path / "one")
    _, other_key = development_certificate(tmp_path / "two")
    with pytest.raises(TlsError, match="no such file"):
        server_configuration(tmp_path / "missing.pem", key, ["h3"])
    with pytest.raises(TlsError, match="the key does not belong"):
        server_configuration(certificate, other_key, ["h3"])
    rubbish = tmp_path / "rubbish.pem"
    rubbish.write_text("not a certificate")
    with pytest.raises(TlsError, match="not PEM"):
        server_configuration(rubbish, key, ["h3"])
