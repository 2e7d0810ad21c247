# SPDX-License-Identifier: Apache-2.0
"""From a URL to a connection: every kind of transport, and every address of the name in turn."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from time import monotonic
from typing import Protocol

from inferlane.errors import ConnectionFailed
from inferlane.messages import EncodedReply, EncodedRequest
from inferlane.target import Scheme, Target
from inferlane.transports.http3 import Http3
from inferlane.transports.quic import ALPN_H3, ALPN_NATIVE, Trust, client_configuration
from inferlane.transports.quic_datagram import QuicDatagram
from inferlane.transports.sockets import Address, resolve
from inferlane.transports.stream import Stream
from inferlane.transports.udp import Udp

__all__ = ["Transport", "connect", "transport_for"]


class Transport(Protocol):
    """One connection to one gateway."""

    @property
    def alive(self) -> bool:
        """Whether a new request has a chance here."""
        ...

    async def connect(self) -> None:
        """Find out that somebody is there. Raises ConnectionFailed."""
        ...

    async def exchange(self, request: EncodedRequest) -> EncodedReply:
        """One request, one reply. Raises Refused or ConnectionFailed; cancelled, it tells the gateway."""
        ...

    def close(self) -> None:
        """End the connection; what is in flight fails."""
        ...


async def connect(target: Target, make: Callable[[Address], Transport], *, timeout: float) -> Transport:
    """A transport to the first address that answers. Raises ConnectionFailed, which tells what each one said."""
    deadline = monotonic() + timeout
    try:
        async with asyncio.timeout(timeout):
            addresses = await resolve(target.host, target.port)
    except TimeoutError:
        raise ConnectionFailed(f"{target.host}: the name was not resolved within {timeout:g} s") from None
    failures = []
    for tried, address in enumerate(addresses):
        share = (deadline - monotonic()) / (len(addresses) - tried)
        try:
            async with asyncio.timeout(share):
                return await _open(make, address)
        except TimeoutError:
            failures.append(f"{address}: no answer within {share:.1f} s")
        except ConnectionFailed as error:
            failures.append(str(error))
        except OSError as error:
            failures.append(f"{address}: {error.strerror}")
    raise ConnectionFailed("; ".join(failures))


async def _open(make: Callable[[Address], Transport], address: Address) -> Transport:
    transport = make(address)
    try:
        await transport.connect()
    except BaseException:
        transport.close()
        raise
    return transport


def transport_for(target: Target, trust: Trust, *, dscp: int, max_reply: int) -> Callable[[Address], Transport]:
    """The table of schemes: how a transport to one address is made."""

    def http3(address: Address) -> Transport:
        configuration = client_configuration(target, trust, ALPN_H3)
        return Http3(address, configuration, dscp=dscp, authority=target.authority, max_reply=max_reply)

    def stream(address: Address) -> Transport:
        return Stream(address, client_configuration(target, trust, ALPN_NATIVE), dscp=dscp, max_reply=max_reply)

    def quic_datagram(address: Address) -> Transport:
        return QuicDatagram(address, client_configuration(target, trust, ALPN_NATIVE), dscp=dscp)

    def udp(address: Address) -> Transport:
        return Udp(address, dscp=dscp)

    return {
        Scheme.HTTP3: http3,
        Scheme.STREAM: stream,
        Scheme.DATAGRAM: quic_datagram,
        Scheme.UDP: udp,
    }[target.scheme]
