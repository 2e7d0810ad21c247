# SPDX-License-Identifier: Apache-2.0
"""Addresses of peers; on a socket that is bound to all local addresses, each knows which of ours it wrote to.

A reply that leaves from another address than the request went to is dropped by every NAT, firewall and connected
socket on its way. So our address travels with the peer's, through everything that keeps the latter to answer later. It
is of the packet that was first kept: a forged one later cannot turn a conversation to another address of ours.
"""

from __future__ import annotations

from qos.marking import Ancillary

__all__ = ["Address", "ReachedAddress"]

Address = tuple[str, int] | tuple[str, int, int, int]
"""As the kernel gives it: IP and port, for IPv6 also flow label and scope id."""


class ReachedAddress(tuple[str, int]):
    """A peer's address, equal to the plain one, and what makes a datagram to it leave from where it wrote to."""

    source: Ancillary
