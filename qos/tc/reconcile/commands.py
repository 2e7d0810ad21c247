# SPDX-License-Identifier: Apache-2.0
"""A step as people read it: one line, and the tc(8), ip(8) and nft(8) commands that would do the same."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

from qos.tc.design.nft import replacing
from qos.tc.reconcile.options_text import difference, summary, tc_words
from qos.tc.reconcile.steps import Device, Gso, Step, Subject, Table, Verb, takes_two
from qos.tc.state import (
    EGRESS_HOOK,
    INGRESS_HOOK,
    OUR_TABLE,
    ROOT,
    U32,
    Bpf,
    Clsact,
    Filter,
    Htb,
    Qdisc,
    TcClass,
    UnreadClass,
    UnreadFilter,
    handle_text,
)
from qos.tc.tree import kind_of

__all__ = ["describe", "symbol", "tc_commands"]

_NONE: Mapping[str, bytes] = MappingProxyType({})
_HOOKS = {INGRESS_HOOK: "ingress", EGRESS_HOOK: "egress"}
_PROTOCOLS = {0x0003: "all", 0x0800: "ip", 0x86DD: "ipv6", 0x8100: "802.1Q", 0x88A8: "802.1ad"}
_VERBS = {Verb.ADD: "add", Verb.CHANGE: "change", Verb.REPLACE: "replace", Verb.DELETE: "del"}


def symbol(step: Step) -> str:
    """`+` comes, `~` changes in place, `-` goes, `!` a queue is replaced with all that waits in it."""
    if step.verb is Verb.REPLACE:
        return "!" if isinstance(step.subject, Qdisc) else "~"
    return {Verb.ADD: "+", Verb.CHANGE: "~"}.get(step.verb, "-")


def describe(step: Step, labels: Mapping[tuple[str, int], str]) -> str:
    """One line: the symbol, the device, what it is and what becomes of it. labels: traffic classes by handle."""
    return " ".join(filter(None, (symbol(step), step.device, _subject(step, labels))))


def tc_commands(step: Step, netns: str | None, programs: Mapping[str, bytes] = _NONE) -> list[str]:
    """The commands, in order; what no command can do is a comment. programs: the tables' texts, by their chains."""
    where = f" -n {netns}" if netns is not None else ""
    match step.subject:
        case Device() | Gso():
            return [f"ip{where} link {each}" for each in _link_commands(step, step.subject)]
        case Table():
            return [_nft_command(step, step.subject, netns, programs)]
    if step.verb is Verb.DRAIN:
        return [
            f"# wait until {_place(step.subject)} of {step.device} is empty: tc{where} -s class show dev {step.device}"
        ]
    if takes_two(step) and isinstance(step.before, Qdisc | Filter):
        gone = Step(verb=Verb.DELETE, device=step.device, subject=step.before)
        come = Step(verb=Verb.ADD, device=step.device, subject=step.subject)
        return [*tc_commands(gone, netns), *tc_commands(come, netns)]
    return [f"tc{where} {_tc_command(step, step.subject)}"]


def _link_commands(step: Step, subject: Device | Gso) -> list[str]:
    if isinstance(subject, Gso):
        return [f"set dev {step.device} gso_max_size {subject.max_size}"]
    if step.verb is Verb.DELETE:
        return [f"delete dev {subject.name}"]
    return [
        f"add name {subject.name} type ifb",
        f"set dev {subject.name} alias 'inferlane ingress of {subject.ifb_for}' up",
    ]


def _nft_command(step: Step, subject: Table, netns: str | None, programs: Mapping[str, bytes]) -> str:
    inside = "" if netns is None else f"ip netns exec {netns} "
    if step.verb is Verb.DELETE:
        return f"{inside}nft delete table {OUR_TABLE}"
    if subject.chain not in programs:
        return f"# {inside}nft -f -  # with the rules of {subject.chain}"
    return f"{inside}nft -f - <<'EOF'\n{replacing(programs[subject.chain].decode())}EOF"


def _tc_command(step: Step, subject: Qdisc | TcClass | Filter) -> str:
    verb, device = _VERBS[step.verb], step.device
    if isinstance(subject, Qdisc):
        place = "clsact" if isinstance(subject.options, Clsact) else _parent(subject.parent)
        head = f"qdisc {verb} dev {device} {place}"
        if isinstance(subject.options, Clsact):
            return head
        head += f" handle {handle_text(subject.handle)}"
        return head if step.verb is Verb.DELETE else f"{head} {_options(subject)}"
    if isinstance(subject, TcClass):
        place = f"parent {handle_text(subject.parent)} classid {handle_text(subject.handle)}"
        head = f"class {verb} dev {device} {place}"
        return head if step.verb is Verb.DELETE else f"{head} {_options(subject)}"
    hook = _HOOKS.get(subject.parent, f"parent {handle_text(subject.parent)}")
    protocol = _PROTOCOLS.get(subject.protocol, f"{subject.protocol:#06x}")
    head = f"filter {verb} dev {device} {hook} pref {subject.pref} protocol {protocol}"
    handle = f" handle {_filter_handle(subject)}" if subject.handle else ""
    if step.verb is Verb.DELETE:
        return f"{head}{handle} {_filter_kind(subject)}" if handle else head
    return f"{head}{handle} {_options(subject)}"


def _parent(parent: int) -> str:
    return "root" if parent == ROOT else f"parent {handle_text(parent)}"


def _filter_handle(subject: Filter) -> str:
    handle = subject.handle
    if kind_of(subject.options) == "u32":
        # TC_U32_USERHTID, TC_U32_HASH and TC_U32_NODE of linux/pkt_cls.h.
        table, bucket, node = handle >> 20, handle >> 12 & 0xFF, handle & 0xFFF
        return f"{table:x}:{bucket:x}:{node:x}" if table else f"::{node:x}"
    return f"{handle:#x}"


def _filter_kind(subject: Filter) -> str:
    return "matchall" if kind_of(subject.options) == "redirect" else kind_of(subject.options)


def _options(subject: Qdisc | TcClass | Filter) -> str:
    options = subject.options
    if isinstance(options, Bpf):
        return f"bpf direct-action object-pinned /sys/fs/bpf/{options.name}  # which we load, nobody pins it"
    kind = _filter_kind(subject) if isinstance(subject, Filter) else kind_of(options)
    if isinstance(options, UnreadClass | UnreadFilter) or (words := tc_words(options)) == "":
        return f"{kind}  # with the options that it had"
    return f"{kind} {words}"


def _place(subject: Subject) -> str:
    match subject:
        case Qdisc(options=Clsact()):
            return "clsact"
        case Qdisc():
            return f"{'root' if subject.parent == ROOT else 'queue'} {handle_text(subject.handle)}"
        case TcClass():
            return f"class {handle_text(subject.handle)}"
        case Filter():
            return f"filter at {_HOOKS.get(subject.parent, handle_text(subject.parent))} pref {subject.pref}"
        case Device():
            return f"IFB for what comes in by {subject.ifb_for}"
        case Table():
            return f"nftables table {OUR_TABLE}"
    return "longest train"


def _subject(step: Step, labels: Mapping[tuple[str, int], str]) -> str:
    subject, before = step.subject, step.before
    place = _place(subject)
    if isinstance(subject, Qdisc | TcClass) and (label := labels.get((step.device, subject.handle))):
        place = f"{place} {label}"
    if step.verb is Verb.DRAIN:
        return f"{place}: wait until it is empty"
    if isinstance(subject, Device):
        return place
    if isinstance(subject, Table):
        was = f"{before.chain} -> " if isinstance(before, Table) else ""
        return place if step.verb is Verb.DELETE else f"{place}: {was}{subject.chain}"
    if isinstance(subject, Gso):
        was = f"{before.max_size} -> " if isinstance(before, Gso) else ""
        return f"{place}: {was}{subject.max_size} bytes"
    if step.verb is Verb.DELETE or isinstance(subject.options, Clsact):
        return place
    if isinstance(before, Qdisc | TcClass | Filter):
        return f"{_colon(place)} {_moved(subject, before)}{difference(before.options, subject.options)}"
    return f"{_colon(place)} {_summary(subject)}"


def _colon(place: str) -> str:
    return place if place.endswith(":") else f"{place}:"


def _moved(subject: Qdisc | TcClass | Filter, before: Qdisc | TcClass | Filter) -> str:
    return f"instead of {handle_text(before.handle)}, " if subject.handle != before.handle else ""


def _summary(subject: Qdisc | TcClass | Filter) -> str:
    if isinstance(subject.options, Htb):
        return f"htb, default class {subject.options.default:x}"
    if isinstance(subject.options, U32):
        return f"u32, {tc_words(subject.options)}"
    return summary(subject.options)
