# SPDX-License-Identifier: Apache-2.0
"""The door to nftables: our one table is asked for by netlink, and made or removed by nft(8) in one transaction.

To ask costs no process, so it is asked at every look, whatever anybody's books say; and nothing of it is read but what
tells whether it is ours, and whole: its chain, and the comment that numbers each rule.
"""

from __future__ import annotations

import errno
import shutil
import socket
import struct
import subprocess
from collections.abc import Iterator, Sequence

import msgspec

from qos.tc.errors import KernelError
from qos.tc.kernel.attributes import nested_attributes, read_text, text
from qos.tc.kernel.namespace import inside, open_socket
from qos.tc.state import FOREIGN_TABLE, OUR_CHAIN, OUR_TABLE
from qos.tc.tree import ALTERED

__all__ = ["Listed", "missing", "observe_table", "refusal", "set_table", "table_shown"]

_LONGEST_S = 20.0  # the kernel may load modules first; nft takes about 15 ms
_ANSWERED_S = 10.0
_DUMP_TRIES = 8
_LARGEST_DATAGRAM = 256 * 1024

_NETFILTER = 12  # NETLINK_NETFILTER
_REQUEST, _ACK, _DUMP, _INTERRUPTED = 0x1, 0x4, 0x300, 0x10
_ERROR, _DONE = 2, 3
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port
_FAMILY = struct.Struct(">BBH")  # struct nfgenmsg: family, version, resource
_INET = 1  # NFPROTO_INET
# linux/netfilter/nf_tables.h: NFNL_SUBSYS_NFTABLES in the upper byte, then NFT_MSG_*.
_GET_TABLE, _GET_CHAIN, _GET_RULE = 0x0A01, 0x0A04, 0x0A07
_TABLE_NAME, _TABLE_FLAGS, _TABLE_USE, _DORMANT = 1, 2, 3, 1
_OF_TABLE, _CHAIN_NAME, _RULE_CHAIN, _USERDATA = 1, 3, 2, 7
_COMMENT = 0  # NFTNL_UDATA_RULE_COMMENT
# What kernels without nftables answer, and those who ask without the right to: they could not have made it.
_NONE_HERE = (errno.EPERM, errno.EINVAL, errno.EOPNOTSUPP, errno.EPROTONOSUPPORT, errno.EAFNOSUPPORT)


class Listed(msgspec.Struct, frozen=True, kw_only=True):
    """The table of our name as the kernel lists it."""

    chains: tuple[str, ...]
    rules: tuple[tuple[str, str], ...]
    """The chain and the comment of each."""
    used: int
    """How many things are in it: chains, sets and more."""
    dormant: bool


def table_shown(listed: Listed | None) -> str:
    """What a state calls it: "", its chain if it is whole, that with ALTERED behind it, or FOREIGN_TABLE."""
    if listed is None:
        return ""
    mine = [each for each in listed.chains if each.startswith(OUR_CHAIN)]
    if not mine:  # one that somebody emptied is still taken for ours
        return FOREIGN_TABLE if listed.used else OUR_CHAIN + ALTERED
    count = len(listed.rules)
    wanted = tuple((mine[0], f"{number} of {count}") for number in range(1, count + 1))
    whole = len(listed.chains) == 1 and count and listed.rules == wanted and not listed.dormant
    return mine[0] if whole else mine[0] + ALTERED


def observe_table(netns: str | None) -> str:
    """What `table_shown` says of the table in this namespace. Like any question, it may load the kernel's module."""
    try:
        with open_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER) as opened:
            opened.settimeout(_ANSWERED_S)
            return table_shown(_listed(opened))
    except KernelError as error:
        if error.errno not in _NONE_HERE:
            raise
        return ""


def missing(netns: str | None) -> str:
    """Why no table can be made here at all; "": nothing is known to be in the way. Starts no process."""
    if shutil.which("nft") is None:
        return "the program nft is not installed: apt install nftables"
    try:
        with open_socket(netns, socket.AF_NETLINK, socket.SOCK_RAW | socket.SOCK_CLOEXEC, _NETFILTER) as opened:
            opened.settimeout(_ANSWERED_S)
            _listed(opened)
    except KernelError as error:
        return error.said
    return ""


def set_table(netns: str | None, transaction: str) -> None:
    """Have nft(8) do this, all or nothing. KernelError in its own words; a table that is not ours is not touched."""
    doing = f"nftables table {OUR_TABLE}" + ("" if netns is None else f" in {netns}")
    if observe_table(netns) == FOREIGN_TABLE:
        raise KernelError(
            errno.EEXIST, f"it is not ours, so it stays; rename it, or: nft delete table {OUR_TABLE}", doing
        )
    if said := _nft(netns, transaction, "-f", "-"):
        raise KernelError(errno.EINVAL, said, doing)


def refusal(netns: str | None, transaction: str) -> str:
    """What nft(8) and the kernel would say against this; "": it would be done. Changes nothing."""
    return _nft(netns, transaction, "--check", "-f", "-")


def _nft(netns: str | None, transaction: str, *arguments: str) -> str:
    """What it complained about; "": nothing."""
    program = shutil.which("nft")
    if program is None:
        return "the program nft is not installed: apt install nftables"

    def act() -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *arguments],
            input=transaction,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_LONGEST_S,
        )

    try:
        done = inside(netns, act, longest_s=_LONGEST_S + 1)
    except subprocess.TimeoutExpired:
        return f"nft has not ended in {_LONGEST_S:.0f} s"
    except OSError as error:
        return f"{program}: {error.strerror}"
    if done.returncode == 0:
        return ""
    # Each complaint is three lines: `/dev/stdin:4:9-13: Error: what`, the line that it is about, a row of ^.
    said = [line.partition("Error: ")[2] for line in done.stderr.splitlines() if "Error: " in line]
    return "; ".join(dict.fromkeys(said)) or done.stderr.strip() or f"nft ended with status {done.returncode}"


def _listed(opened: socket.socket) -> Listed | None:
    name = OUR_TABLE.partition(" ")[2]
    found = [nested_attributes(each) for each in _asked(opened, _GET_TABLE, _ACK, text(_TABLE_NAME, name))]
    if not found:
        return None
    # Not every kernel heeds the name in a dump.
    chains = [
        read_text(each.get(_CHAIN_NAME))
        for each in map(nested_attributes, _asked(opened, _GET_CHAIN, _DUMP, text(_OF_TABLE, name)))
        if read_text(each.get(_OF_TABLE)) == name
    ]
    rules = [
        (read_text(each.get(_RULE_CHAIN)), _comment(each.get(_USERDATA, b"")))
        for each in map(nested_attributes, _asked(opened, _GET_RULE, _DUMP, text(_OF_TABLE, name)))
        if read_text(each.get(_OF_TABLE)) == name
    ]
    table = found[0]
    return Listed(
        chains=tuple(chains),
        rules=tuple(rules),
        used=_big(table.get(_TABLE_USE)),
        dormant=bool(_big(table.get(_TABLE_FLAGS)) & _DORMANT),
    )


def _big(value: bytes | None) -> int:
    """nf_tables counts in network order."""
    return int.from_bytes(value or b"", "big")


def _comment(userdata: bytes) -> str:
    """What nft(8) keeps beside a rule: type, length, value, each of one byte but the last."""
    while len(userdata) >= 2:
        kind, length = userdata[0], userdata[1]
        if kind == _COMMENT:
            return read_text(userdata[2 : 2 + length])
        userdata = userdata[2 + length :]
    return ""


def _asked(opened: socket.socket, kind: int, flags: int, attributes: bytes) -> Sequence[bytes]:
    """The attributes of each object that the kernel answers with; none where there is none."""
    body = _FAMILY.pack(_INET, 0, 0) + attributes
    for number in range(1, _DUMP_TRIES + 1):
        message = _HEADER.pack(_HEADER.size + len(body), kind, _REQUEST | flags, number, 0) + body
        try:
            opened.sendto(message, (0, 0))
            found, whole = _answers(opened, number)
        except OSError as error:
            said = "no answer" if isinstance(error, TimeoutError) else str(error.strerror)
            raise KernelError(error.errno or errno.ETIMEDOUT, said, f"list {OUR_TABLE}") from None
        if whole:
            return found
    raise KernelError(errno.EINTR, "it changes faster than it can be listed; try again", f"list {OUR_TABLE}")


def _answers(opened: socket.socket, number: int) -> tuple[list[bytes], bool]:
    """Bodies, and whether nothing changed while they were listed."""
    found: list[bytes] = []
    whole = True
    while True:
        for kind, flags, sequence, body in _messages(opened.recv(_LARGEST_DATAGRAM)):
            if sequence != number:
                continue
            whole = whole and not flags & _INTERRUPTED
            if kind == _ERROR:
                code = -int(struct.unpack_from("=i", body)[0])
                if code not in (0, errno.ENOENT):
                    raise OSError(code, _text_of(code))
                return found, whole
            if kind == _DONE:
                return found, whole
            found.append(body[_FAMILY.size :])


def _text_of(code: int) -> str:
    if code == errno.EPERM:
        return "CAP_NET_ADMIN is needed: run as root"
    if code in _NONE_HERE:
        return "no nftables in this kernel; CONFIG_NF_TABLES=m and CONFIG_NF_TABLES_INET=y give it"
    return OSError(code, "").strerror or f"error {code}"


def _messages(data: bytes) -> Iterator[tuple[int, int, int, bytes]]:
    offset = 0
    while offset + _HEADER.size <= len(data):
        length, kind, flags, sequence, _ = _HEADER.unpack_from(data, offset)
        if not _HEADER.size <= length <= len(data) - offset:
            return
        yield kind, flags, sequence, data[offset + _HEADER.size : offset + length]
        offset += length + -length % 4
