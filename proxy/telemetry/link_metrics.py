# SPDX-License-Identifier: Apache-2.0
"""What Prometheus is told of traffic control: counts by class beside what was promised, as they were last read.

Labels are names from the confirmed policy. Rates are bytes per second, like the counts that they limit.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from proxy.telemetry.families import Family
from qos.tc.keep.messages import LinkReading

__all__ = ["LinksSeen", "link_families"]

_OF_LINK = ("netns", "interface")
_OF_CLASS = ("netns", "interface", "direction", "class")


@dataclass(frozen=True, slots=True, kw_only=True)
class LinksSeen:
    """What is known of the links."""

    attended: bool
    """Whether somebody watches and repairs."""
    repairs: int = 0
    links: Sequence[LinkReading] = ()


def link_families(seen: LinksSeen) -> Iterator[Family]:
    """All of them."""
    unattended = Family("inferlane_link_unattended", "1: nobody keeps traffic control, marks only.", (), across="max")
    unattended.samples.append(((), not seen.attended))
    repairs = Family("inferlane_link_repairs", "Changes of others to traffic control that were undone.", (), True)
    repairs.samples.append(((), seen.repairs))
    in_force = Family("inferlane_link_in_force", "1: traffic control is as confirmed.", _OF_LINK, across="min")
    for link in seen.links:
        in_force.samples.append(((link.netns or "", link.interface), seen.attended and link.in_force))
    yield from (unattended, repairs, in_force)
    yield from _of_classes(seen.links)


def _of_classes(links: Sequence[LinkReading]) -> Iterator[Family]:
    for name, text, counts, attribute in _TABLE:
        family = Family(f"inferlane_link_{name}", text, _OF_CLASS, counts, across="max")
        for link in links:
            for each in link.classes:
                value = getattr(each, attribute)
                if value is not None:
                    family.samples.append(((link.netns or "", link.interface, each.direction, each.name), value))
        yield family


_TABLE = (
    ("bytes", "Bytes that left the class's queue.", True, "bytes"),
    ("packets", "Packets that left the class's queue.", True, "packets"),
    ("drops", "Packets that the class's queue dropped.", True, "drops"),
    ("borrows", "Packets that left above the guaranteed rate.", True, "borrows"),
    ("backlog_bytes", "Bytes waiting in the class's queue.", False, "backlog_bytes"),
    ("rate_bytes_per_second", "Guaranteed rate.", False, "rate"),
    ("ceiling_bytes_per_second", "Rate with all that may be borrowed.", False, "ceiling"),
)
