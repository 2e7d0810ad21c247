# SPDX-License-Identifier: Apache-2.0
"""What every QUIC connection of a listener shares: certificate, protocols, windows and times."""

from __future__ import annotations

import ssl
from pathlib import Path

from aioquic.quic.configuration import QuicConfiguration

from proxy.quic.connection_ids import CID_LENGTH

__all__ = [
    "ALPN_H3",
    "ALPN_NATIVE",
    "CID_LENGTH",
    "CONNECTION_WINDOW",
    "MAX_PACKET",
    "MOST_GAPS",
    "STREAM_WINDOW",
    "QuicConfiguration",
    "TlsError",
    "server_configuration",
]

ALPN_H3 = "h3"
ALPN_NATIVE = "inferlane/1"
MAX_PACKET = 1200
"""Every path carries it (RFC 9000 section 14), and a GSO train needs equal packets."""
STREAM_WINDOW = 256 * 1024
"""Unread bytes of one stream, and with 128 streams 32 MiB of one connection (nginx: 64 KiB a stream)."""
CONNECTION_WINDOW = 4 << 20
"""On its way to us at any time. What has come counts against its stream alone: were it counted here until it is read,
requests that wait for a place would keep out the bytes that those with a place wait for."""
IDLE_TIMEOUT_S = 60.0
MOST_GAPS = 256
"""Pieces of one stream that wait for what is missing between them (quic-go: 1,000). aioquic walks all of them for each
one more: a client that sends every second byte, eight bytes a frame, would take 11 s of CPU for 118 KB. A stream's
window of full packets, every second one lost, has 110."""


class TlsError(Exception):
    """A certificate or key that cannot be served: one line that names the file and the remedy."""


def server_configuration(certificate: Path, key: Path, alpn: list[str]) -> QuicConfiguration:
    """Load a certificate chain and its key. Raises TlsError for a missing, unreadable or unmatched pair."""
    for path in (certificate, key):
        if not path.is_file():
            raise TlsError(f"{path}: no such file; give a PEM file, or `tls: development` for loopback")
    try:
        # OpenSSL compares certificate and key, which aioquic does not.
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(certificate, key)
        configuration = QuicConfiguration(
            is_client=False,
            alpn_protocols=alpn,
            connection_id_length=CID_LENGTH,
            idle_timeout=IDLE_TIMEOUT_S,
            max_data=CONNECTION_WINDOW,
            max_stream_data=STREAM_WINDOW,
            max_datagram_size=MAX_PACKET,
        )
        configuration.load_cert_chain(certificate, key)
    except ssl.SSLError as error:
        reason = "the key does not belong to the certificate" if "MISMATCH" in str(error) else f"not PEM ({error})"
        raise TlsError(f"{certificate}, {key}: {reason}; make a pair with `inferlane cert`") from None
    except (ValueError, OSError) as error:
        raise TlsError(f"{certificate}, {key}: cannot be loaded: {error}") from None
    return configuration
