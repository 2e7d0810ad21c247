# SPDX-License-Identifier: Apache-2.0
"""The SDK's one door to aioquic's transport: a client configuration, and the connection with its privates made safe.

sdk/pyproject.toml pins aioquic exactly; every private name of 1.7.2 that the SDK touches is in this file, and
tests/unit/inferlane/transports/test_quic.py holds them to their contract.
"""

from __future__ import annotations

import logging
import ssl
from dataclasses import dataclass
from pathlib import Path

from aioquic.quic.configuration import QuicConfiguration
from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import ConnectionTerminated
from aioquic.quic.packet import QuicErrorCode
from aioquic.tls import AlertDescription, load_pem_x509_certificates

from inferlane.target import Target

__all__ = ["ALPN_H3", "ALPN_NATIVE", "ClientConnection", "Trust", "client_configuration", "moved", "why_ended"]

ALPN_H3 = "h3"
ALPN_NATIVE = "inferlane/1"

IDLE_TIMEOUT_S = 60.0
_MOVED = 0x5
"""Of inferlane/1 (docs/wire.md): what is unanswered was not begun."""
_PACKET = 1200
"""Every path carries it (RFC 9000 section 14)."""
# Short header, the longest connection id, aioquic's packet number, AEAD tag; DATAGRAM type and 2-byte length.
_DATAGRAM_OVERHEAD = 1 + 20 + 2 + 16 + 3
_MAX_DATAGRAM_QUEUE = 1024
_CERTIFICATE_ALERTS = {
    AlertDescription.bad_certificate,
    AlertDescription.unsupported_certificate,
    AlertDescription.certificate_expired,
    AlertDescription.certificate_unknown,
    AlertDescription.unknown_ca,
}

# aioquic warns on stderr where no logging is set up; what it says reaches the application as ConnectionFailed.
logging.getLogger("quic").addHandler(logging.NullHandler())


@dataclass(frozen=True, slots=True, kw_only=True)
class Trust:
    """Whose certificates are accepted."""

    ca: bytes | None = None
    """PEM; None: the system-independent list of public authorities (certifi)."""
    insecure: bool = False
    """Accept any certificate: for tests."""
    server_name: str | None = None
    """The name to ask for and to verify, where it is not the URL's host."""

    @classmethod
    def load(cls, ca: str | Path | None, *, insecure: bool, server_name: str | None) -> Trust:
        """Read the file now: a wrong one should fail here and not in a handshake. OSError, or ValueError."""
        pem = None
        if ca is not None:
            pem = Path(ca).read_bytes()
            try:
                found = load_pem_x509_certificates(pem)
            except ValueError as error:
                raise ValueError(f"{ca}: not a certificate in PEM: {error}") from None
            if not found:
                raise ValueError(f"{ca}: holds no certificate in PEM")
        return cls(ca=pem, insecure=insecure, server_name=server_name)


def client_configuration(target: Target, trust: Trust, alpn: str) -> QuicConfiguration:
    """What one connection offers and believes."""
    return QuicConfiguration(
        is_client=True,
        alpn_protocols=[alpn],
        server_name=trust.server_name or target.host.partition("%")[0],
        cadata=trust.ca,
        verify_mode=ssl.CERT_NONE if trust.insecure else ssl.CERT_REQUIRED,
        idle_timeout=IDLE_TIMEOUT_S,
        max_datagram_size=_PACKET,
        # DATAGRAM has a meaning under inferlane/1 only (docs/wire.md).
        max_datagram_frame_size=65535 if alpn == ALPN_NATIVE else None,
    )


class ClientConnection(QuicConnection):
    """aioquic's client connection, plus what it knows and does not tell."""

    @property
    def ending(self) -> ConnectionTerminated | None:
        """Why the connection is over, as soon as it is. aioquic's own event follows three timeouts later."""
        return self._close_event

    @property
    def datagram_capacity(self) -> int:
        """Longest DATAGRAM payload that the peer and one packet take; 0: the peer takes none.

        Anything longer would block aioquic's queue of datagrams for ever.
        """
        return max(0, min((self._remote_max_datagram_frame_size or 0) - 3, _PACKET - _DATAGRAM_OVERHEAD))

    @property
    def round_trip_s(self) -> float | None:
        """Smoothed round-trip time (RFC 9002 section 5.3), None before the first sample."""
        return self._loss._rtt_smoothed if self._loss._rtt_initialized else None

    def send_datagram_frame(self, data: bytes) -> None:
        """Queue a datagram. The oldest leaves a full queue: its conversation repeats it if it still matters."""
        if len(self._datagrams_pending) >= _MAX_DATAGRAM_QUEUE:
            self._datagrams_pending.popleft()
        super().send_datagram_frame(data)

    def abandon(self, stream_id: int, error_code: int) -> None:
        """Tell the peer that nobody wants this stream any more: no more of ours comes, none of theirs is read."""
        stream = self._streams.get(stream_id)
        if stream is None:
            return  # both halves are over and forgotten
        self.reset_stream(stream_id, error_code)
        if not stream.receiver.is_finished:
            self.stop_stream(stream_id, error_code)


def moved(event: ConnectionTerminated) -> bool:
    """Whether the gateway closed the connection because others serve there now, and nothing was in flight. Pure."""
    return event.frame_type is None and event.error_code == _MOVED


def why_ended(event: ConnectionTerminated, alpn: str) -> str:
    """A connection's end in words that say what to do. Pure."""
    said = event.reason_phrase
    # The application's CONNECTION_CLOSE; in a handshake its code and reason are hidden (RFC 9000 section 10.2.3).
    if event.frame_type is None or event.error_code == QuicErrorCode.APPLICATION_ERROR:
        return f"the gateway closed the connection ({said or hex(event.error_code)})"
    if said == "Idle timeout":
        return "the gateway did not answer any more"
    alert = event.error_code - QuicErrorCode.CRYPTO_ERROR
    if alert in _CERTIFICATE_ALERTS:
        remedy = "give its authority as `ca` (--ca FILE), or `insecure` (--insecure) for a test"
        return f"the certificate is not accepted ({said}); {remedy}"
    if alert == AlertDescription.no_application_protocol:
        return f"the peer does not speak {alpn}"
    return f"the connection failed ({said or hex(event.error_code)})"
