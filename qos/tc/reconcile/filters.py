# SPDX-License-Identifier: Apache-2.0
"""Which filter takes which one's place, and which must go before others can come."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Collection, Sequence

import msgspec

from qos.tc.state import U32, Filter, FilterOptions, Flower, Redirect
from qos.tc.tree import at_hook, kind_of

__all__ = ["conflicting", "pairs", "removals"]


def pairs(have: Sequence[Filter], want: Sequence[Filter]) -> tuple[list[tuple[Filter | None, Filter]], list[Filter]]:
    """Each wanted filter with the one in its place, if any, and those that nobody wants.

    A wanted filter without a handle is content with any that says the same at its preference and protocol.
    """
    places: dict[tuple[int, int, int, int], Filter] = {_place(each): each for each in have}
    found: dict[int, Filter | None] = {}
    for index, each in enumerate(want):
        old = places.get(_place(each)) if _placed(each) else None
        if old is not None and kind_of(old.options) == kind_of(each.options):
            found[index] = places.pop(_place(each))
    alike: defaultdict[tuple[int, int, int, FilterOptions], list[Filter]] = defaultdict(list)
    for each in reversed(places.values()):
        alike[(*_place(each)[:3], each.options)].append(each)
    for index, each in enumerate(want):
        same = alike[(*_place(each)[:3], each.options)] if not _placed(each) else []
        if same:
            old = found[index] = same.pop()
            del places[_place(old)]
    return [(found.get(index), each) for index, each in enumerate(want)], list(places.values())


def conflicting(have: Sequence[Filter], want: Sequence[Filter], moved: Collection[int]) -> list[Filter]:
    """Filters that must go first: at a preference wanted for another kind or protocol, or bound to a moved class.

    One preference holds filters of one protocol and one kind (EINVAL), and a class that a filter is bound to cannot be
    deleted (EBUSY).
    """
    taken = {(each.parent, each.pref): (each.protocol, kind_of(each.options)) for each in want}

    def in_the_way(each: Filter) -> bool:
        mine = each.protocol, kind_of(each.options)
        return taken.get((each.parent, each.pref), mine) != mine or (not at_hook(each) and _bound(each) in moved)

    return [each for each in have if in_the_way(each)]


def _placed(each: Filter) -> bool:
    return bool(each.handle) or isinstance(each.options, Redirect)


def _place(each: Filter) -> tuple[int, int, int, int]:
    # A preference holds one redirection of all, whatever its number.
    handle = 0 if isinstance(each.options, Redirect) else each.handle
    return each.parent, each.pref, each.protocol, handle


def removals(have: Sequence[Filter], gone: Sequence[Filter]) -> tuple[list[Filter], list[Filter]]:
    """How to remove these: preferences as a whole (a filter without a handle stands for all), and single filters.

    u32 keeps an empty preference, where no other kind or protocol can come, while there are other ones of its kind on
    the qdisc (u32_delete() in net/sched/cls_u32.c); removed as a whole it is gone.
    """
    going, there = Counter(map(_preference, gone)), Counter(map(_preference, have))
    whole = {_preference(each): each for each in reversed(gone) if going[_preference(each)] == there[_preference(each)]}
    return (
        [msgspec.structs.replace(each, handle=0) for each in whole.values()],
        [each for each in gone if _preference(each) not in whole],
    )


def _preference(each: Filter) -> tuple[int, int, int]:
    return each.parent, each.pref, each.protocol


def _bound(each: Filter) -> int | None:
    return each.options.classid if isinstance(each.options, U32 | Flower) else None
