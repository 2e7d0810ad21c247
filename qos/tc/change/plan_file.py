# SPDX-License-Identifier: Apache-2.0
"""A plan kept in a file, to be applied as it was read or not at all."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import TypeVar

import msgspec

from qos.tc.policy import LinkPolicy
from qos.tc.state import (
    Filter,
    LinkState,
    NetworkState,
    Qdisc,
    TcClass,
    Unread,
    UnreadClass,
    UnreadFilter,
)

__all__ = ["PlanFileError", "Planned", "Seen", "planned_of", "seen"]

FORMAT = 1
_KIND = "inferlane qos plan"


class PlanFileError(Exception):
    """The file is not a plan, or no longer true: one line with the remedy."""


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One namespace when the plan was made."""

    netns: str | None
    digest: str
    """Of what was there and what shall be."""


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """A plan."""

    kind: str = _KIND
    format: int = FORMAT
    conf: str
    """Absolute path of the config that it was made from."""
    policy: LinkPolicy
    confirmed: str | None
    """Id of the policy that stood."""
    seen: tuple[Seen, ...]
    steps: tuple[str, ...]
    """For people who look into the file."""

    def check(self, *, confirmed: str | None, seen: Sequence[Seen]) -> None:
        """PlanFileError where something moved since."""
        if confirmed != self.confirmed:
            raise PlanFileError(
                f"another policy was confirmed since this plan was made ({self.confirmed or 'none'} then, "
                f"{confirmed or 'none'} now); look at a new one: {self.remedy}"
            )
        then = {each.netns: each.digest for each in self.seen}
        now = {each.netns: each.digest for each in seen}
        moved = [netns or "this namespace" for netns in then | now if then.get(netns) != now.get(netns)]
        if moved:
            raise PlanFileError(
                f"the kernel's state moved since this plan was made, in {', '.join(moved)}; "
                f"look at a new one: {self.remedy}"
            )

    def encoded(self) -> bytes:
        """As the file holds it."""
        return msgspec.json.format(msgspec.json.encode(self)) + b"\n"

    @property
    def remedy(self) -> str:
        """The command that makes a new one."""
        return f"inferlane qos plan {self.conf} --out FILE"


class _Head(msgspec.Struct, frozen=True):
    kind: str
    format: int


def planned_of(content: bytes, file: str) -> Planned | None:
    """The plan in a file; None where it is something else, such as a config."""
    try:
        head = msgspec.json.decode(content, type=_Head)
    except msgspec.DecodeError:
        return None
    if head.kind != _KIND:
        return None
    try:
        if head.format != FORMAT:
            raise PlanFileError(
                f"{file}: a plan of format {head.format}, this inferlane reads {FORMAT}; make a new one"
            )
        return msgspec.json.decode(content, type=Planned)
    except msgspec.DecodeError as error:
        raise PlanFileError(f"{file}: a damaged plan ({error}); make a new one") from None


def seen(observed: NetworkState, desired: NetworkState) -> Seen:
    """What a plan stands on in one namespace."""
    there = msgspec.structs.replace(observed, links=tuple(map(_lasting, observed.links)))
    content = msgspec.json.encode((there, desired), order="deterministic")
    return Seen(netns=observed.netns, digest=hashlib.sha256(content).hexdigest()[:16])


def _lasting(link: LinkState) -> LinkState:
    """Without what we do not read: others' options hold counters, which move with each packet."""
    return msgspec.structs.replace(
        link,
        qdiscs=tuple(map(_unread, link.qdiscs)),
        classes=tuple(map(_unread, link.classes)),
        filters=tuple(map(_unread, link.filters)),
    )


_Object = TypeVar("_Object", Qdisc, TcClass, Filter)


def _unread(each: _Object) -> _Object:
    if not isinstance(each.options, Unread | UnreadClass | UnreadFilter):
        return each
    return msgspec.structs.replace(each, options=msgspec.structs.replace(each.options, data=None))
