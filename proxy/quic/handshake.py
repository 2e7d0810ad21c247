# SPDX-License-Identifier: Apache-2.0
"""The beginning of a server's connection: aioquic's _initialize for servers, without what is made and never used.

Keys of the version that the client does not speak are derived when asked for, the certificate is encoded once a
process, and what only a handshake needs goes when it is over: of an idle connection's memory that was more than half.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic.connection import (
    MAX_EARLY_DATA,
    QuicConnection,
    QuicConnectionError,
    QuicConnectionId,
    QuicReceiveContext,
)
from aioquic.quic.crypto import CryptoPair
from aioquic.quic.packet import STATELESS_RESET_TOKEN_SIZE, QuicErrorCode
from aioquic.quic.recovery import QuicPacketSpace
from aioquic.quic.stream import QuicStream
from aioquic.tls import CipherSuite, Epoch
from cryptography.hazmat.primitives.serialization import Encoding
from cryptography.x509 import Certificate

from proxy.quic import shortcuts
from proxy.quic.configuration import MOST_GAPS

__all__ = ["MOST_OF_TLS", "EncodedCertificate", "InitialKeys", "Opening", "shortcuts"]

MOST_OF_TLS = 64 * 1024
"""Of a handshake message that is not all there. A ClientHello has up to 2 KiB, and TLS would allow 16 MiB."""

_HANDSHAKE_BYTES = 16384  # aioquic's; the certificate chain is in it
_CIPHER_SUITES = [CipherSuite.AES_128_GCM_SHA256, CipherSuite.AES_256_GCM_SHA384, CipherSuite.CHACHA20_POLY1305_SHA256]
"""What the client offers of these, the cheapest first, as BoringSSL's and OpenSSL's servers have it."""
_HELLO_BYTES = 1024  # a ServerHello with the longest key share, or a session ticket


class InitialKeys(dict[int, CryptoPair]):
    """Keys of Initial packets by QUIC version, derived when a version turns up. discarded: none opens any more."""

    def __init__(self, cid: bytes) -> None:
        super().__init__()
        self._cid = cid
        self.discarded = False

    def __missing__(self, version: int) -> CryptoPair:
        pair = self[version] = CryptoPair()
        if not self.discarded:
            pair.setup_initial(cid=self._cid, is_client=False, version=version)
        return pair


class EncodedCertificate:
    """A certificate as TLS sends it."""

    def __init__(self, der: bytes) -> None:
        self._der = der

    def public_bytes(self, encoding: Encoding) -> bytes:
        """As x509.Certificate has it."""
        assert encoding is Encoding.DER
        return self._der


@lru_cache(maxsize=64)
def _encoded(certificate: Certificate) -> EncodedCertificate:
    return EncodedCertificate(certificate.public_bytes(Encoding.DER))


class Opening(QuicConnection):
    """A server's connection that is cheap to open."""

    _retried_from: Any = None
    """The address that has shown the token of our Retry, and so is proved (RFC 9000 section 8.1.2); None: there was no
    Retry. A client may begin with this address and go on from a forged one: that one is not proved."""

    def _initialize(self, peer_cid: bytes) -> None:
        path = self._network_paths[0]
        path.is_validated = path.is_validated or path.addr == self._retried_from
        configuration = self._configuration
        context = self.tls = tls.Context(
            alpn_protocols=configuration.alpn_protocols,
            cipher_suites=configuration.cipher_suites or _CIPHER_SUITES,
            is_client=False,
            max_early_data=MAX_EARLY_DATA,
            verify_mode=configuration.verify_mode,
        )
        assert configuration.certificate is not None  # without one there is no server's configuration
        context.certificate = cast("Certificate", _encoded(configuration.certificate))
        context.certificate_chain = [cast("Certificate", _encoded(each)) for each in configuration.certificate_chain]
        context.certificate_private_key = configuration.private_key
        context.handshake_extensions = [
            (tls.ExtensionType.QUIC_TRANSPORT_PARAMETERS, self._serialize_transport_parameters())
        ]
        context.alpn_cb = self._alpn_handler
        if self._session_ticket_fetcher is not None:
            context.get_session_ticket_cb = self._session_ticket_fetcher
        if self._session_ticket_handler is not None:
            context.new_session_ticket_cb = self._handle_session_ticket
        context.update_traffic_key_cb = self._update_traffic_key
        self._open_spaces(peer_cid)

    def _open_spaces(self, peer_cid: bytes) -> None:
        initial = self._cryptos_initial = self._initial_keys = InitialKeys(peer_cid)
        assert self._version is not None
        self._cryptos = {
            Epoch.INITIAL: initial[self._version],
            Epoch.ZERO_RTT: CryptoPair(),
            Epoch.HANDSHAKE: CryptoPair(),
            Epoch.ONE_RTT: CryptoPair(),
        }
        self._crypto_buffers = {
            Epoch.INITIAL: Buffer(capacity=_HELLO_BYTES),
            Epoch.HANDSHAKE: Buffer(capacity=_HANDSHAKE_BYTES),
            Epoch.ONE_RTT: Buffer(capacity=_HELLO_BYTES),
        }
        self._crypto_streams = {epoch: QuicStream() for epoch in self._crypto_buffers}
        self._spaces = {
            Epoch.INITIAL: QuicPacketSpace(),
            Epoch.HANDSHAKE: QuicPacketSpace(),
            Epoch.ONE_RTT: QuicPacketSpace(is_application_data=True),
        }
        self._loss.spaces = list(self._spaces.values())

    def _parse_transport_parameters(self, data: bytes, from_session_ticket: bool = False) -> None:
        super()._parse_transport_parameters(data, from_session_ticket)
        if self._remote_max_idle_timeout == 0:  # no timeout (RFC 9000 section 10.1); for aioquic, no time
            self._remote_max_idle_timeout = None

    def _handle_crypto_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """aioquic's, which keeps what comes of a message however long it is, and copies it each time that more comes:
        all before the client's address is proved."""
        super()._handle_crypto_frame(context, frame_type, buf)
        gaps = len(self._crypto_streams[context.epoch].receiver._ranges)
        if len(self.tls._receive_buffer) > MOST_OF_TLS or gaps > MOST_GAPS:
            raise QuicConnectionError(
                error_code=QuicErrorCode.CRYPTO_BUFFER_EXCEEDED,
                frame_type=frame_type,
                reason_phrase="a handshake message that is too long, or in too many pieces",
            )

    def _handle_new_connection_id_frame(self, context: QuicReceiveContext, frame_type: int, buf: Buffer) -> None:
        """The plain case, of which a handshake brings seven: one more id, and none to retire."""
        start = buf.tell()
        number, retire_prior_to = buf.pull_uint_var(), buf.pull_uint_var()
        size = buf.pull_uint8()
        if (
            retire_prior_to
            or self._peer_retire_prior_to
            or not 0 < size <= 20
            or number in self._peer_cid_sequence_numbers
            or len(self._network_paths) > 1
            or len(self._peer_cid_available) + 2 > self._local_active_connection_id_limit
        ):
            buf.seek(start)
            super()._handle_new_connection_id_frame(context, frame_type, buf)
            return
        cid = buf.pull_bytes(size)
        self._peer_cid_available.append(QuicConnectionId(cid, number, buf.pull_bytes(STATELESS_RESET_TOKEN_SIZE)))
        self._peer_cid_sequence_numbers.add(number)

    def _discard_epoch(self, epoch: Epoch) -> None:
        super()._discard_epoch(epoch)
        if epoch is Epoch.INITIAL:
            self._initial_keys.discarded = True

    def _confirm_handshake(self) -> None:
        super()._confirm_handshake()
        self._forget_handshake()

    def _forget_handshake(self) -> None:
        """No Initial or Handshake packet is written or opened any more, and TLS refuses whatever still comes."""
        self._crypto_buffers = {}
        for epoch in (Epoch.INITIAL, Epoch.HANDSHAKE):
            self._crypto_streams[epoch].sender._buffer = bytearray()
        context = self.tls
        context.key_schedule = None
        context.received_extensions = None
        context.handshake_extensions = []
        context._ec_private_keys = []
        context._x25519_private_key = context._x448_private_key = None
