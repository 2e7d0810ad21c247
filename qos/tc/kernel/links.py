# SPDX-License-Identifier: Apache-2.0
"""Devices: what rtnetlink tells of them, and what ethtool and their managers add."""

from __future__ import annotations

import ctypes
import fcntl
import os
import re
import secrets
import socket
import struct
from pathlib import Path

from qos.tc.capabilities import LinkFacts
from qos.tc.kernel.attributes import nested, nested_attributes, read_text, read_u32, text, u32

__all__ = [
    "alias_of_ifb",
    "creation_message",
    "gso_message",
    "left_behind",
    "link_index",
    "link_speed",
    "managed_by",
    "marking_message",
    "parse_link",
    "removal_message",
    "scratch_name",
    "shaped_by_ifb",
    "transmit_queues",
    "up_message",
]

_IFINFO = struct.Struct("=BBHiII")  # struct ifinfomsg: family, pad, type, index, flags, change
_UP = 1  # IFF_UP
_IFNAME, _MTU, _TXQLEN, _LINKINFO, _IFALIAS, _NUM_TX_QUEUES, _GSO_MAX_SIZE = 3, 4, 13, 18, 20, 31, 41
_KIND = 1  # IFLA_INFO_KIND
_IFB_QUEUE = 1000
_ALIAS = "inferlane ingress of "

_SIOCGIFINDEX, _SIOCETHTOOL = 0x8933, 0x8946
_ETHTOOL_GSET, _ETHTOOL_GCHANNELS = 0x01, 0x3C
_ETHTOOL_COMMAND = struct.Struct("=IIIH14xH14x")  # struct ethtool_cmd: command, ..., speed, ..., speed_hi, ...
_ETHTOOL_CHANNELS = struct.Struct("=9I")  # struct ethtool_channels: command, 4 maxima, rx, tx, other, combined
_SPEEDS_UNKNOWN = (0, 0xFFFF, 0xFFFFFFFF)

_MANAGERS = Path("/run")


def parse_link(message: bytes) -> LinkFacts:
    """The body of an RTM_NEWLINK message."""
    _, _, _, index, flags, _ = _IFINFO.unpack_from(message)
    found = nested_attributes(message[_IFINFO.size :])
    return LinkFacts(
        name=read_text(found.get(_IFNAME)),
        index=index,
        up=bool(flags & _UP),
        mtu=read_u32(found.get(_MTU)),
        tx_queues=read_u32(found.get(_NUM_TX_QUEUES), 1),
        gso_max_size=read_u32(found.get(_GSO_MAX_SIZE)),
        alias=read_text(found.get(_IFALIAS)),
        kind=read_text(nested_attributes(found.get(_LINKINFO)).get(_KIND)),
    )


def creation_message(name: str, kind: str) -> bytes:
    """Body of the RTM_NEWLINK that makes a device, down. It takes no alias."""
    made = _IFINFO.pack(0, 0, 0, 0, 0, 0) + text(_IFNAME, name) + u32(_TXQLEN, _IFB_QUEUE)
    return made + nested(_LINKINFO, text(_KIND, kind))


def marking_message(name: str, shaped: str) -> bytes:
    """Body of the RTM_NEWLINK that says on an IFB whose packets it is for, and sets it up."""
    return _IFINFO.pack(0, 0, 0, 0, _UP, _UP) + text(_IFNAME, name) + text(_IFALIAS, alias_of_ifb(shaped))


def up_message(index: int) -> bytes:
    """Body of the RTM_NEWLINK that sets a device up."""
    return _IFINFO.pack(0, 0, 0, index, _UP, _UP)


def gso_message(index: int, size: int) -> bytes:
    """Body of the RTM_NEWLINK that limits the trains of a device."""
    return _IFINFO.pack(0, 0, 0, index, 0, 0) + u32(_GSO_MAX_SIZE, size)


def removal_message(name: str) -> bytes:
    """Body of the RTM_DELLINK of a device."""
    return _IFINFO.pack(0, 0, 0, 0, 0, 0) + text(_IFNAME, name)


def alias_of_ifb(shaped: str) -> str:
    """What we write on an IFB that queues what this interface receives."""
    return _ALIAS + shaped


def shaped_by_ifb(facts: LinkFacts) -> str | None:
    """The interface whose incoming packets this IFB of ours queues; None on any other device."""
    return facts.alias.removeprefix(_ALIAS) if facts.kind == "ifb" and facts.alias.startswith(_ALIAS) else None


def link_index(control: socket.socket, name: str) -> int:
    """The index of a device, asked each time: names move. OSError ENODEV where there is none."""
    request = fcntl.ioctl(control, _SIOCGIFINDEX, struct.pack("16si20x", name.encode(), 0))
    return int(struct.unpack("16si20x", request)[1])


def link_speed(control: socket.socket, name: str) -> int | None:
    """Bits per second that the link negotiated, if its driver says so."""
    said = _ethtool(control, name, _ETHTOOL_COMMAND.pack(_ETHTOOL_GSET, 0, 0, 0, 0))
    if said is None:
        return None
    *_, low, high = _ETHTOOL_COMMAND.unpack(said)
    megabits = low | high << 16
    return None if megabits in _SPEEDS_UNKNOWN else megabits * 10**6


def transmit_queues(control: socket.socket, name: str) -> int | None:
    """How many of its queues a device uses, if its driver says so; rtnetlink tells how many it could."""
    said = _ethtool(control, name, _ETHTOOL_CHANNELS.pack(_ETHTOOL_GCHANNELS, *[0] * 8))
    if said is None:
        return None
    *_, sending, _, both = _ETHTOOL_CHANNELS.unpack(said)
    return (int(sending) + int(both)) or None


def scratch_name() -> str:
    """A name for a device that lives as long as a probe; whose it is stands in it."""
    return f"ilp{os.getpid():x}-{secrets.token_hex(2)}"


def left_behind(facts: LinkFacts) -> bool:
    """Whether it was made by a probe whose process was killed."""
    found = re.fullmatch(r"ilp([0-9a-f]{1,6})-[0-9a-f]{4}", facts.name)
    if found is None or facts.up or facts.kind not in ("ifb", "dummy"):
        return False
    try:
        os.kill(int(found[1], 16), 0)  # asks, and does nothing (kill(2)); /proc may hide others' processes
    except OSError as error:  # EPERM: it runs, as somebody else
        return isinstance(error, ProcessLookupError)
    return False


def _ethtool(control: socket.socket, name: str, command: bytes) -> bytes | None:
    answer = ctypes.create_string_buffer(command, len(command))
    try:
        fcntl.ioctl(control, _SIOCETHTOOL, struct.pack("16sP16x", name.encode(), ctypes.addressof(answer)))
    except OSError:  # EOPNOTSUPP: most virtual devices say nothing
        return None
    return answer.raw


def managed_by(index: int, folder: Path = _MANAGERS) -> str:
    """Which of the usual managers has this device, by what they note of each; empty: none, or not here."""
    if "managed=true" in _noted(folder / "NetworkManager/devices" / str(index)):
        return "NetworkManager"
    networkd = _noted(folder / "systemd/netif/links" / str(index))
    return "systemd-networkd" if networkd and "ADMIN_STATE=unmanaged" not in networkd else ""


def _noted(file: Path) -> list[str]:
    try:
        return file.read_text(encoding="utf-8", errors="replace").split()
    except OSError:
        return []
