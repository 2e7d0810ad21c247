# SPDX-License-Identifier: Apache-2.0
"""Traffic control in memory, with the door's interface and the kernel's rules, losses and refusals.

What it does is what was seen on Linux 6.18 or stands in net/sched: an HTB root takes no change, a handle keeps its
kind, a class in use is not deleted, one whose parent is missing silently hangs at the root, a first child destroys its
parent's leaf, and whatever is destroyed takes its packets along.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from typing import Any

from msgspec.structs import replace

from qos.tc.capabilities import LinkFacts
from qos.tc.design.nft import chain_name
from qos.tc.errors import KernelError
from qos.tc.kernel.statistics import Counters
from qos.tc.state import (
    EGRESS_HOOK,
    FOREIGN_TABLE,
    INGRESS_HOOK,
    ROOT,
    U32,
    Bpf,
    Clsact,
    Filter,
    Flower,
    FqCodel,
    Htb,
    HtbClass,
    LinkState,
    NetworkState,
    Qdisc,
    Redirect,
    TcClass,
    Unread,
    UnreadClass,
    UnreadFilter,
)

HOOKS = (INGRESS_HOOK, EGRESS_HOOK)


def kind(options: Any) -> str:
    if isinstance(options, Unread | UnreadClass | UnreadFilter):
        return options.kind
    return {Redirect: "matchall"}.get(type(options), type(options).__name__.lower())


def refuse(code: int, said: str) -> KernelError:
    return KernelError(code, said, "fake kernel")


@dataclass
class FakeDevice:
    """One device. `waiting` is by the class (or ROOT, or 0 for the kernel's own qdisc) whose queue holds packets."""

    name: str
    ifb_for: str | None = None
    gso_max_size: int | None = 65536
    mtu: int = 1500
    qdiscs: dict[int, Qdisc] = field(default_factory=dict)
    classes: dict[int, TcClass] = field(default_factory=dict)
    filters: list[Filter] = field(default_factory=list)
    clsact: Qdisc | None = None
    waiting: dict[int, int] = field(default_factory=dict)

    def at(self, parent: int) -> Qdisc | None:
        return next((each for each in self.qdiscs.values() if each.parent == parent), None)

    def inner(self, handle: int) -> bool:
        return any(each.parent == handle for each in self.classes.values())

    def destroy_class(self, handle: int) -> int:
        lost = sum(self.destroy_class(each.handle) for each in list(self.classes.values()) if each.parent == handle)
        del self.classes[handle]
        self.filters = [each for each in self.filters if each.parent != handle]
        leaf = self.at(handle)
        return lost + (self.destroy_qdisc(leaf) if leaf is not None else 0) + self.waiting.pop(handle, 0)

    def destroy_qdisc(self, qdisc: Qdisc) -> int:
        del self.qdiscs[qdisc.handle]
        self.filters = [each for each in self.filters if each.parent != qdisc.handle]
        lost = self.waiting.pop(qdisc.parent, 0)
        major = qdisc.handle >> 16
        for each in list(self.classes.values()):
            if each.handle in self.classes and each.handle >> 16 == major:
                lost += self.destroy_class(each.handle)
        for each in list(self.qdiscs.values()):
            if each.handle in self.qdiscs and each.parent >> 16 == major:
                lost += self.destroy_qdisc(each)
        return lost

    def state(self) -> LinkState:
        qdiscs = [*self.qdiscs.values(), *([self.clsact] if self.clsact else [])]
        return LinkState(
            name=self.name,
            ifb_for=self.ifb_for,
            qdiscs=tuple(qdiscs),
            classes=tuple(map(self._shown, self.classes.values())),
            filters=tuple(self.filters),
            gso_max_size=self.gso_max_size,
        )

    def _shown(self, each: TcClass) -> TcClass:
        if isinstance(each.options, HtbClass) and self.inner(each.handle):
            return replace(each, options=replace(each.options, prio=0, quantum=0))
        return each


class FakeKernel:
    """One namespace."""

    def __init__(self, *devices: FakeDevice, netns: str | None = None) -> None:
        self.netns = netns
        self.devices = {each.name: each for each in devices}
        self.table = ""
        self.nft_says = ""
        """Against any transaction."""
        self.calls = 0
        self.lost = 0
        self.fails: Callable[[int], bool] = lambda _: False
        self.misapplies: Callable[[int], bool] = lambda _: False
        """Says yes and does nothing."""
        self.sent_per_s = 0.0
        """Packets that leave each queue in a second that passes."""
        self.now = 0.0

    @classmethod
    def of(cls, state: NetworkState) -> FakeKernel:
        """As if somebody had made this state."""
        kernel = cls(netns=state.netns)
        kernel.table = state.table
        for link in state.links:
            device = FakeDevice(link.name, link.ifb_for, link.gso_max_size)
            device.qdiscs = {each.handle: each for each in link.qdiscs if not isinstance(each.options, Clsact)}
            device.clsact = next((each for each in link.qdiscs if isinstance(each.options, Clsact)), None)
            device.classes = {each.handle: each for each in link.classes}
            kernel.devices[link.name] = device
        for link in state.links:
            for each in link.filters:
                kernel._put_filter(kernel.devices[link.name], each)
        return kernel

    def clock(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        for device in self.devices.values():
            device.waiting = {
                place: max(0, waits - round(seconds * self.sent_per_s)) for place, waits in device.waiting.items()
            }

    # What the door offers.

    def facts(self) -> dict[str, LinkFacts]:
        return {
            name: LinkFacts(
                name=name,
                index=2 + index,
                up=True,
                mtu=each.mtu,
                tx_queues=1,
                gso_max_size=each.gso_max_size or 65536,
                kind="ifb" if each.ifb_for else "veth",
            )
            for index, (name, each) in enumerate(self.devices.items())
        }

    def observe(self, names: Collection[str]) -> NetworkState:
        apart = {None, *(each for each in self.devices if each not in names)}
        seen = [each.state() for each in self.devices.values() if each.name in names or each.ifb_for not in apart]
        return NetworkState(netns=self.netns, links=tuple(seen), table=self.table)

    def counters(self, device: str) -> dict[int, Counters]:
        return {handle: Counters(backlog_packets=packets) for handle, packets in self.backlogs(device).items()}

    def backlog(self, device: str, handle: int) -> tuple[int, int]:
        packets = self.backlogs(device).get(handle, 0)
        return packets, packets * 1000

    def backlogs(self, name: str) -> dict[int, int]:
        device = self._device(name)
        found = {0: device.waiting.get(0, 0)}
        found |= {handle: device.waiting.get(handle, 0) for handle in device.classes}
        for each in device.qdiscs.values():
            found[each.handle] = (
                sum(device.waiting.values()) if each.parent == ROOT else device.waiting.get(each.parent, 0)
            )
        return found

    def add_ifb(self, name: str, ifb_for: str) -> None:
        if self._takes_effect():
            if name in self.devices:
                raise refuse(errno.EEXIST, "File exists")
            self.devices[name] = FakeDevice(name, ifb_for)

    def delete_link(self, name: str) -> None:
        if self._takes_effect():
            self.lost += sum(self._device(name).waiting.values())
            del self.devices[name]

    def set_gso_max_size(self, name: str, size: int) -> None:
        if self._takes_effect():
            self._device(name).gso_max_size = size

    def set_table(self, transaction: str) -> None:
        if self.table == FOREIGN_TABLE:
            raise refuse(errno.EEXIST, "it is not ours")
        if self._takes_effect():
            self.table = chain_name(transaction)

    def table_refusal(self, transaction: str) -> str:
        del transaction
        return self.nft_says

    def add(self, device: str, subject: Any, *, fd: int | None = None) -> None:
        self._do("add", device, subject, fd)

    def change(self, device: str, subject: Any, *, fd: int | None = None) -> None:
        self._do("change", device, subject, fd)

    def replace(self, device: str, subject: Any, *, fd: int | None = None) -> None:
        self._do("replace", device, subject, fd)

    def delete(self, device: str, subject: Any) -> None:
        self._do("delete", device, subject, None)

    # What the kernel does with it.

    def _device(self, name: str) -> FakeDevice:
        if name not in self.devices:
            raise refuse(errno.ENODEV, "No such device")
        return self.devices[name]

    def _takes_effect(self) -> bool:
        self.calls += 1
        if self.fails(self.calls):
            raise refuse(errno.ENOBUFS, "injected")
        return not self.misapplies(self.calls)

    def _do(self, verb: str, name: str, subject: Any, fd: int | None) -> None:
        if not self._takes_effect():
            return
        device = self._device(name)
        assert (fd is not None) == (
            verb != "delete" and isinstance(subject, Filter) and isinstance(subject.options, Bpf)
        ), "only a program comes with a descriptor"
        what = {Qdisc: "qdisc", TcClass: "class", Filter: "filter"}[type(subject)]
        if isinstance(subject, Qdisc) and isinstance(subject.options, Clsact):
            what = "clsact"
        getattr(self, f"_{verb}_{what}")(device, subject)

    def _add_clsact(self, device: FakeDevice, subject: Qdisc) -> None:
        if device.clsact is not None:
            raise refuse(errno.EEXIST, "Exclusivity flag on, cannot modify")
        device.clsact = subject

    def _delete_clsact(self, device: FakeDevice, _: Qdisc) -> None:
        if device.clsact is None:
            raise refuse(errno.ENOENT, "Cannot find specified qdisc on specified device")
        device.clsact = None
        device.filters = [each for each in device.filters if each.parent not in HOOKS]

    def _add_qdisc(self, device: FakeDevice, new: Qdisc) -> None:
        if device.at(new.parent) is not None or new.handle in device.qdiscs:
            raise refuse(errno.EEXIST, "NLM_F_REPLACE needed to override")
        self._graft(device, new)

    def _graft(self, device: FakeDevice, new: Qdisc) -> None:
        if new.parent != ROOT:
            above = device.qdiscs.get(new.parent & 0xFFFF0000)
            if above is None:
                raise refuse(errno.ENOENT, "Failed to find qdisc with specified classid")
            if kind(above.options) in ("htb", "hfsc") and new.parent not in device.classes:
                raise refuse(errno.ENOENT, "Specified class not found")
            if device.inner(new.parent):
                raise refuse(errno.EINVAL, "Invalid argument")
        self.lost += device.waiting.pop(0 if new.parent == ROOT else new.parent, 0)
        device.qdiscs[new.handle] = new

    def _replace_qdisc(self, device: FakeDevice, new: Qdisc) -> None:
        old = device.at(new.parent)
        if new.handle in device.qdiscs:
            self._change_qdisc(device, new)
            return
        if old is not None:
            self.lost += device.destroy_qdisc(old)
        self._graft(device, new)

    def _change_qdisc(self, device: FakeDevice, new: Qdisc) -> None:
        old = device.qdiscs.get(new.handle)
        if old is None:
            raise refuse(errno.ENOENT, "Specified qdisc not found")
        if old.parent != new.parent:
            raise refuse(errno.ELOOP, "Too many levels of symbolic links")
        if kind(old.options) != kind(new.options):
            raise refuse(errno.EINVAL, "Invalid qdisc name: must match existing qdisc")
        if isinstance(new.options, Htb):
            raise refuse(errno.EINVAL, "Change operation not supported by specified qdisc")
        if isinstance(new.options, FqCodel):
            waits = device.waiting.get(new.parent, 0)
            device.waiting[new.parent] = min(waits, new.options.limit)
            self.lost += waits - device.waiting[new.parent]
        device.qdiscs[new.handle] = new

    def _delete_qdisc(self, device: FakeDevice, gone: Qdisc) -> None:
        if device.at(gone.parent) is None or gone.handle not in device.qdiscs:
            raise refuse(errno.ENOENT, "Cannot find specified qdisc on specified device")
        self.lost += device.destroy_qdisc(gone)

    def _add_class(self, device: FakeDevice, new: TcClass) -> None:
        if new.handle & 0xFFFF0000 not in device.qdiscs:
            raise refuse(errno.ENOENT, "No such file or directory")
        if new.handle in device.classes:
            raise refuse(errno.EEXIST, "File exists")
        root = new.handle & 0xFFFF0000
        known = new.parent == root or new.parent in device.classes
        if known and new.parent != root and not device.inner(new.parent):
            leaf = device.at(new.parent)
            self.lost += device.destroy_qdisc(leaf) if leaf is not None else device.waiting.pop(new.parent, 0)
        device.classes[new.handle] = new if known else replace(new, parent=root)

    def _change_class(self, device: FakeDevice, new: TcClass) -> None:
        old = device.classes.get(new.handle)
        if old is None:
            raise refuse(errno.ENOENT, "No such file or directory")
        options = new.options
        if device.inner(new.handle) and isinstance(options, HtbClass) and isinstance(old.options, HtbClass):
            options = replace(options, prio=old.options.prio, quantum=old.options.quantum)
        device.classes[new.handle] = replace(old, options=options)

    def _delete_class(self, device: FakeDevice, gone: TcClass) -> None:
        if gone.handle not in device.classes:
            raise refuse(errno.ENOENT, "No such file or directory")
        bound = [
            each
            for each in device.filters
            if isinstance(each.options, U32 | Flower)
            and each.parent not in HOOKS
            and each.options.classid == gone.handle
        ]
        if bound or device.inner(gone.handle):
            raise refuse(errno.EBUSY, "HTB class in use")
        self.lost += device.destroy_class(gone.handle)

    def _add_filter(self, device: FakeDevice, new: Filter) -> None:
        if any(_place(each) == _place(new) for each in device.filters):
            raise refuse(errno.EEXIST, "Filter already exists")
        self._put_filter(device, new)

    def _replace_filter(self, device: FakeDevice, new: Filter) -> None:
        old = next((each for each in device.filters if _place(each) == _place(new)), None)
        if old is None:
            self._put_filter(device, new)
            return
        if isinstance(old.options, U32) and isinstance(new.options, U32):
            new = replace(new, options=replace(new.options, keys=old.options.keys))
        device.filters.remove(old)
        self._put_filter(device, new)

    def _put_filter(self, device: FakeDevice, new: Filter) -> None:
        there = device.clsact is not None if new.parent in HOOKS else new.parent in {*device.qdiscs, *device.classes}
        if not there:
            raise refuse(errno.EINVAL, "Parent Qdisc doesn't exists")
        beside = [each for each in device.filters if (each.parent, each.pref) == (new.parent, new.pref)]
        if any((each.protocol, kind(each.options)) != (new.protocol, kind(new.options)) for each in beside):
            raise refuse(errno.EINVAL, "Specified filter kind does not match existing one")
        if isinstance(new.options, Redirect) and new.options.to not in self.devices:
            raise refuse(errno.ENODEV, "Redirect target device not found")
        first = 0x80000800 if isinstance(new.options, U32) else 1
        taken = {each.handle for each in beside}
        free = next(handle for handle in range(first, first + 0x800) if handle not in taken)
        device.filters.append(replace(new, handle=new.handle or free))

    def _delete_filter(self, device: FakeDevice, gone: Filter) -> None:
        left = [
            each
            for each in device.filters
            if _place(each)[:3] != _place(gone)[:3] or (gone.handle and each.handle != gone.handle)
        ]
        if len(left) == len(device.filters):
            raise refuse(errno.ENOENT, "Specified filter handle not found")
        device.filters = left


def _place(each: Filter) -> tuple[int, int, int, int]:
    return each.parent, each.pref, each.protocol, 1 if isinstance(each.options, Redirect) else each.handle
