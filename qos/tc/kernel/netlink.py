# SPDX-License-Identifier: Apache-2.0
"""The only door to the kernel's traffic control: one network namespace, asked and changed by rtnetlink.

Here pyroute2 carries messages and matches answers to questions; their bytes are our codecs' own, because its own put a
kind that it does not know at the root, whatever parent was given, and read u32's keys four bytes off.
"""

from __future__ import annotations

import asyncio
import errno
import socket
import struct
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from enum import IntEnum
from typing import Any

import msgspec
from pyroute2 import IPRoute
from pyroute2.netlink import nlmsg
from pyroute2.netlink.exceptions import NetlinkError

from qos.tc.capabilities import LinkFacts
from qos.tc.errors import KernelError
from qos.tc.kernel import links, nftables
from qos.tc.kernel.filter_codec import Outside
from qos.tc.kernel.namespace import open_socket
from qos.tc.kernel.observe import TC_MESSAGE, Listed, filter_parents, link_state, parse_tc
from qos.tc.kernel.requests import Subject, described, place_of, request_for
from qos.tc.kernel.statistics import Counters, parse_counters
from qos.tc.state import (
    CLSACT,
    ROOT,
    Bpf,
    Filter,
    LinkState,
    NetworkState,
    Qdisc,
    Redirect,
    TcClass,
    handle_text,
)

__all__ = ["Kernel", "KernelError", "Subject"]

_ANSWERED_S = 30.0  # the kernel answers at once; what it does first, loading a module, may take its time
_DUMP_TRIES = 8  # a dump during which something changed is asked for again
_REQUEST, _ACK, _REPLACE, _EXCLUSIVE, _CREATE, _DUMP = 0x1, 0x4, 0x100, 0x200, 0x400, 0x300
_INTERRUPTED = 0x10  # NLM_F_DUMP_INTR
_HEADER = struct.Struct("=IHHII")  # struct nlmsghdr: length, type, flags, sequence number, port

_NEEDS_ADMIN = "CAP_NET_ADMIN is needed: run as root, or grant it (AmbientCapabilities=CAP_NET_ADMIN in a systemd unit)"


class _Type(IntEnum):
    """RTM_* in linux/rtnetlink.h. Of each four, the first makes, the second removes and the third asks."""

    LINK = 16
    QDISC = 36
    CLASS = 40
    FILTER = 44


_REMOVES, _ASKS = 1, 2
_TYPES: dict[type[msgspec.Struct], _Type] = {Qdisc: _Type.QDISC, TcClass: _Type.CLASS, Filter: _Type.FILTER}


class _Message(nlmsg):  # type: ignore[misc]  # pyroute2 has no types
    """A message whose body pyroute2 leaves as it is."""

    def encode(self) -> None:
        header, body = self["header"], self["body"]
        head = _HEADER.pack(
            _HEADER.size + len(body), header["type"], header["flags"], header["sequence_number"], header["pid"]
        )
        self.data = bytearray(head + body)

    def decode(self) -> None:
        length, kind, flags, number, port = _HEADER.unpack_from(self.data, self.offset)
        self["header"] = {"length": length, "type": kind, "flags": flags, "sequence_number": number, "pid": port}
        self["body"] = bytes(self.data[self.offset + _HEADER.size : self.offset + length])
        self.decoded = True


class Kernel:
    """Traffic control in one namespace. Belongs to the thread that made it, and to no running event loop."""

    def __init__(self, netns: str | None) -> None:
        """Raises KernelError where there is no such namespace."""
        self.netns = netns
        self._cls_matchall: bool | None = None
        self._control = open_socket(netns, socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC)
        try:
            self._ip = _open_rtnetlink(netns)
        except BaseException:
            self._control.close()
            raise

    def __enter__(self) -> Kernel:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the door."""
        self._ip.close()
        self._control.close()

    @property
    def port(self) -> int:
        """Our netlink port: the kernel tells all who watch that a change came from it."""
        return int(self._ip.asyncore.socket.getsockname()[0])

    def facts(self) -> dict[str, LinkFacts]:
        """All devices, by name."""
        return {each.name: self._completed(each) for each in self._links()}

    def observe(self, names: Collection[str]) -> NetworkState:
        """What traffic control does on these devices, as far as they exist, and on their IFBs; and our nftables table.

        Also on IFBs of ours whose device is gone. Those of other devices are for whoever shapes these: without its IFB
        a device receives nothing.
        """
        every = self._links()
        # What is redirected to a device that is down is dropped, as if there were none.
        by_index = {each.index: each.name for each in every if each.up or links.shaped_by_ifb(each) is None}
        apart = {None, *(each.name for each in every if each.name not in names)}
        chosen = [each for each in every if each.name in names or links.shaped_by_ifb(each) not in apart]
        qdiscs = self._list(_Type.QDISC, 0, "list qdiscs") if chosen else []
        states = [self._state(each, by_index, qdiscs) for each in chosen]
        states += self._renamed([each for each in every if each not in chosen], states, by_index, qdiscs)
        return NetworkState(netns=self.netns, links=tuple(states), table=nftables.observe_table(self.netns))

    def _state(self, facts: LinkFacts, names: Mapping[int, str], qdiscs: Sequence[Listed]) -> LinkState:
        mine = [one for one in qdiscs if one.index == facts.index]
        made = [one for one in mine if one.handle]
        where = f"{self._where(facts.name)}: list"
        classes = self._list(_Type.CLASS, facts.index, f"{where} classes") if made else []
        filters = {
            parent: self._list(_Type.FILTER, facts.index, f"{where} filters", parent) for parent in filter_parents(made)
        }
        return link_state(facts, names, qdiscs=mine, classes=classes, filters=filters)

    def _renamed(
        self,
        others: Sequence[LinkFacts],
        known: Sequence[LinkState],
        names: Mapping[int, str],
        qdiscs: Sequence[Listed],
    ) -> list[LinkState]:
        """Devices that send what they receive to an IFB of ours: without it they would receive nothing."""
        ifbs = {each.name for each in known if each.ifb_for is not None and each.ifb_for not in names.values()}
        hooked = {each.index for each in qdiscs if each.parent == CLSACT} if ifbs else set()
        states = [self._state(each, names, qdiscs) for each in others if each.index in hooked]
        return [
            state
            for state in states
            if any(isinstance(each.options, Redirect) and each.options.to in ifbs for each in state.filters)
        ]

    def add(self, device: str, subject: Subject, *, fd: int | None = None) -> None:
        """Make what is not there yet. fd: the loaded program of a Bpf filter."""
        if isinstance(subject, Filter) and isinstance(subject.options, Redirect):
            self._add_redirect(device, subject, subject.options)
        else:
            self._make(device, subject, _CREATE | _EXCLUSIVE, "add", Outside(fd=-1 if fd is None else fd))

    def change(self, device: str, subject: Subject, *, fd: int | None = None) -> None:
        """Give other options to what is there."""
        if isinstance(subject, Filter):
            self.replace(device, subject, fd=fd)
        else:
            self._make(device, subject, 0, "change", Outside())

    def replace(self, device: str, subject: Subject, *, fd: int | None = None) -> None:
        """Make it, in place of what is at its parent, or of what has its handle. At once, but for a Redirect."""
        if isinstance(subject, Filter) and isinstance(subject.options, Redirect):
            # cls_matchall takes no change (EEXIST in mall_change()).
            self._delete_redirect(device, subject)
            self._add_redirect(device, subject, subject.options)
            return
        flags = _CREATE | (_REPLACE if isinstance(subject, Qdisc) else 0)
        self._make(device, subject, flags, "replace", Outside(fd=-1 if fd is None else fd))

    def delete(self, device: str, subject: Subject) -> None:
        """Remove it, with what hangs below it."""
        if isinstance(subject, Filter) and isinstance(subject.options, Redirect):
            self._remove(device, msgspec.structs.replace(subject, handle=0))  # all at its preference: there is one
        else:
            self._remove(device, subject)

    def add_ifb(self, name: str, ifb_for: str) -> None:
        """Make an IFB for what comes in at `ifb_for`, marked as ours, and set it up."""
        doing = f"{self._where(name)}: make an IFB for {ifb_for}"
        try:
            self._send(_Type.LINK, _CREATE | _EXCLUSIVE, links.creation_message(name, "ifb"), doing)
        except KernelError as error:
            # One that we made and died before we could mark it.
            old = self.facts().get(name)
            if error.errno != errno.EEXIST or old is None or old.kind != "ifb" or old.alias or old.up:
                raise
        try:
            self._send(_Type.LINK, 0, links.marking_message(name, ifb_for), doing)
        except KernelError:
            self._send(_Type.LINK + _REMOVES, 0, links.removal_message(name), doing)
            raise

    def delete_link(self, name: str) -> None:
        """Remove an IFB that we made; any other device is refused."""
        doing = f"{self._where(name)}: remove the IFB"
        found = self.facts().get(name)
        if found is None:
            raise KernelError(errno.ENODEV, "no such device", doing)
        if links.shaped_by_ifb(found) is None:
            raise KernelError(errno.EPERM, f"it is not ours (its alias is {found.alias!r}), so it stays", doing)
        self._send(_Type.LINK + _REMOVES, 0, links.removal_message(name), doing)

    @contextmanager
    def scratch(self) -> Iterator[tuple[str, str]]:
        """A device to try things on, never up, gone at the end; and what the kernel said if it could be no IFB."""
        name = links.scratch_name()
        doing = f"{self._where(name)}: make a device to try things on"
        said = ""
        for each in filter(links.left_behind, self._links()):
            with suppress(KernelError):  # somebody else was quicker
                self._send(_Type.LINK + _REMOVES, 0, links.removal_message(each.name), doing)
        try:
            self._send(_Type.LINK, _CREATE | _EXCLUSIVE, links.creation_message(name, "ifb"), doing)
        except KernelError as error:
            if error.errno == errno.EPERM:
                raise
            said = error.said
            self._send(_Type.LINK, _CREATE | _EXCLUSIVE, links.creation_message(name, "dummy"), doing)
        try:
            yield name, said
        finally:
            self._send(_Type.LINK + _REMOVES, 0, links.removal_message(name), doing)

    def set_gso_max_size(self, name: str, size: int) -> None:
        """Limit the trains of segments that a device is handed, in bytes."""
        doing = f"{self._where(name)}: set gso_max_size {size}"
        self._send(_Type.LINK, 0, links.gso_message(self._index(name, doing), size), doing)

    def set_table(self, transaction: str) -> None:
        """Have nft(8) replace or remove our nftables table, all at once."""
        nftables.set_table(self.netns, transaction)

    def table_refusal(self, transaction: str) -> str:
        """What nft(8) and the kernel have against this; "": nothing. Changes nothing."""
        return nftables.refusal(self.netns, transaction)

    def backlog(self, device: str, handle: int) -> tuple[int, int]:
        """Packets and bytes that wait in a class or qdisc; handle 0 is the root qdisc that the kernel made."""
        doing = f"{self._where(device)}: read the backlog of {handle_text(handle)}"
        kind = _Type.CLASS if handle & 0xFFFF else _Type.QDISC
        for each in self._listed_on(device, kind, doing):
            if each.handle == handle and (handle or each.parent == ROOT):
                found = parse_counters(each.kind, each.statistics, of_class=kind is _Type.CLASS)
                return found.backlog_packets, found.backlog_bytes
        raise KernelError(errno.ENOENT, "there is none of this handle", doing)

    def counters(self, device: str) -> dict[int, Counters]:
        """What each qdisc and each class counted, by handle; those that the kernel made have none."""
        doing = f"{self._where(device)}: read counters"
        return {
            each.handle: parse_counters(each.kind, each.statistics, of_class=kind is _Type.CLASS)
            for kind in (_Type.QDISC, _Type.CLASS)
            for each in self._listed_on(device, kind, doing)
            if each.handle
        }

    def _where(self, device: str) -> str:
        return device if self.netns is None else f"{device} in {self.netns}"

    def _index(self, device: str, doing: str) -> int:
        try:
            return links.link_index(self._control, device)
        except OSError as error:
            raise KernelError(error.errno or errno.ENODEV, "no such device; `ip link` prints them", doing) from None

    def _links(self) -> list[LinkFacts]:
        message = struct.pack("=16x")
        return [links.parse_link(each) for each in self._dump(_Type.LINK, message, "list devices")]

    def _completed(self, facts: LinkFacts) -> LinkFacts:
        return msgspec.structs.replace(
            facts,
            tx_queues=links.transmit_queues(self._control, facts.name) or facts.tx_queues,
            # veth claims 10 Gbit/s: only hardware knows.
            speed=None if facts.kind else links.link_speed(self._control, facts.name),
            managed_by=links.managed_by(facts.index) if self.netns is None else "",
        )

    def _listed_on(self, device: str, kind: _Type, doing: str) -> list[Listed]:
        index = self._index(device, doing)
        return [each for each in self._list(kind, index, doing) if each.index == index]

    def _list(self, kind: _Type, index: int, doing: str, parent: int = 0) -> list[Listed]:
        message = TC_MESSAGE.pack(0, 0, 0, index, 0, parent, 0)
        return [parse_tc(each) for each in self._dump(kind, message, doing)]

    def _make(self, device: str, subject: Subject, flags: int, verb: str, outside: Outside) -> None:
        doing = f"{self._where(device)}: {verb} {described(subject)}"
        if isinstance(subject, Filter) and isinstance(subject.options, Bpf) and outside.fd < 0:
            raise KernelError(errno.EBADF, "the program was not given", doing)
        request = request_for(subject, self._index(device, doing), outside)
        self._send(_TYPES[type(subject)], flags, request, doing)

    def _remove(self, device: str, subject: Subject) -> None:
        doing = f"{self._where(device)}: delete {described(subject)}"
        place = place_of(subject, self._index(device, doing))
        self._send(_TYPES[type(subject)] + _REMOVES, 0, place, doing)

    def _add_redirect(self, device: str, subject: Filter, options: Redirect) -> None:
        doing = f"{self._where(device)}: redirect to {options.to}"
        target = self._index(options.to, doing)
        if any(each.index == target and links.shaped_by_ifb(each) is not None for each in self._links()):
            self._send(_Type.LINK, 0, links.up_message(target), doing)
        flags = _CREATE | _EXCLUSIVE
        if self._cls_matchall is not False:
            try:
                self._make(device, subject, flags, "add", Outside(ifindex=target))
            except KernelError as error:
                if error.errno != errno.ENOENT or "classifier not found" not in error.said:
                    raise
                self._cls_matchall = False
            else:
                self._cls_matchall = True
                return
        numbered = msgspec.structs.replace(subject, handle=subject.handle or 1)
        self._make(device, numbered, flags, "add", Outside(ifindex=target, matchall=False))

    def _delete_redirect(self, device: str, subject: Filter) -> None:
        try:
            self.delete(device, subject)
        except KernelError as error:
            if error.errno != errno.ENOENT:
                raise

    def _send(self, kind: int, flags: int, body: bytes, doing: str) -> None:
        self._exchange(kind, _REQUEST | _ACK | flags, body, doing)

    def _dump(self, kind: _Type, body: bytes, doing: str) -> list[bytes]:
        for _ in range(_DUMP_TRIES):
            answers = self._exchange(kind + _ASKS, _REQUEST | _DUMP, body, doing)
            if not any(each["header"]["flags"] & _INTERRUPTED for each in answers):
                return [each["body"] for each in answers]
        raise KernelError(errno.EINTR, "it changes faster than it can be listed; try again", doing)

    def _exchange(self, kind: int, flags: int, body: bytes, doing: str) -> list[Any]:
        message = _Message()
        message["header"] = {"type": int(kind), "flags": flags}
        message["body"] = body
        try:
            return list(self._ip.asyncore.event_loop.run_until_complete(_answers(self._ip, message)))
        except NetlinkError as error:
            said = _NEEDS_ADMIN if error.code == errno.EPERM else str(error.args[1])
            raise KernelError(error.code, said, doing) from None
        except TimeoutError:
            raise KernelError(errno.ETIMEDOUT, f"the kernel has not answered in {_ANSWERED_S:.0f} s", doing) from None
        except OSError as error:
            raise KernelError(error.errno or errno.EIO, str(error.strerror or error), doing) from error


async def _answers(ip: IPRoute, message: _Message) -> list[_Message]:
    async with asyncio.timeout(_ANSWERED_S):
        return [each async for each in ip.asyncore.nlm_request_batch([message])]


def _open_rtnetlink(netns: str | None) -> IPRoute:
    opened = open_socket(netns, socket.AF_NETLINK, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC, socket.NETLINK_ROUTE)
    try:
        opened.bind((0, 0))
    except BaseException:
        opened.close()
        raise
    # From here on the descriptor is pyroute2's, which closes it at once and goes on with a duplicate.
    # groups: by default it subscribes to what nobody reads. ext_ack: without it the kernel gives no reasons.
    ip = IPRoute(fileno=opened.detach(), ext_ack=True, groups=0)
    ip.marshal.msg_map = {**ip.marshal.msg_map, **dict.fromkeys(map(int, _Type), _Message)}
    return ip
