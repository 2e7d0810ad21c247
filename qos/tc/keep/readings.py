# SPDX-License-Identifier: Apache-2.0
"""Counters by class, summed over all that was made anew meanwhile: the kernel begins at 0 with each new object."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Literal

import msgspec

from qos.tc.keep.messages import ClassReading
from qos.tc.kernel.statistics import Counters, grown
from qos.tc.state import HtbClass, LinkState, NetworkState

__all__ = ["Readings"]

Labels = Mapping[tuple[str, int], str]
"""Traffic class by device and handle, of its tc class and of the queue in it."""
_MINOR = 0xFFFF


class Readings:
    """What was counted on the links of one namespace since the keeper began, and before on what it found there."""

    def __init__(self) -> None:
        self._last: dict[tuple[str, int], Counters] = {}
        # By class name, too: in another policy a handle may be another class's, which did not send what this one sent.
        self._sums: dict[tuple[str, int, str], Counters] = {}

    def read(self, device: str, counters: Mapping[int, Counters], labels: Labels) -> None:
        """The counters of a device, by handle, as they are now."""
        for labelled, name in labels.items():
            now = counters.get(labelled[1])
            if labelled[0] == device and now is not None:
                more = grown(self._last.get(labelled), now)
                counted = *labelled, name
                self._sums[counted] = _together([self._sums.get(counted, Counters()), more], waiting=more)
                self._last[labelled] = now

    def of_interface(self, interface: str, state: NetworkState, labels: Labels) -> list[ClassReading]:
        """By class, both ways. state: what the policy asks of the kernel, with the configured rates."""
        readings: list[ClassReading] = []
        for link in state.links:
            if link.name == interface:
                readings += self._of_device(link, "egress", labels)
            elif link.ifb_for == interface:
                readings += self._of_device(link, "ingress", labels)
        return readings

    def _of_device(
        self, link: LinkState, direction: Literal["egress", "ingress"], labels: Labels
    ) -> Iterable[ClassReading]:
        rates = {each.handle: each.options for each in link.classes if isinstance(each.options, HtbClass)}
        handles: dict[str, list[int]] = {}
        for (device, handle), name in labels.items():
            if device == link.name:
                handles.setdefault(name, []).append(handle)
        for name, its in handles.items():
            sums = {each: self._sums.get((link.name, each, name), Counters()) for each in its}
            # What passed is told by the tc class, what was dropped by the queue in it, which drops by itself, too.
            classes = [each for handle, each in sums.items() if handle & _MINOR]
            queues = [each for handle, each in sums.items() if not handle & _MINOR]
            passed, dropped = _together(classes or queues), _together(queues or classes)
            promised = [rates[each] for each in its if each in rates]
            yield ClassReading(
                name=name,
                direction=direction,
                bytes=passed.bytes,
                packets=passed.packets,
                drops=dropped.drops,
                borrows=passed.borrows,
                backlog_bytes=passed.backlog_bytes,
                rate=sum(each.rate for each in promised) if promised else None,
                ceiling=sum(each.ceil for each in promised) if promised else None,
            )


def _together(all_of_them: Iterable[Counters], *, waiting: Counters | None = None) -> Counters:
    """Their sums; what waits is that of one reading, if one is named."""
    each = list(all_of_them)
    total = Counters(**{name: sum(getattr(one, name) for one in each) for name in Counters.__struct_fields__})
    if waiting is None:
        return total
    return msgspec.structs.replace(total, backlog_bytes=waiting.backlog_bytes, backlog_packets=waiting.backlog_packets)
