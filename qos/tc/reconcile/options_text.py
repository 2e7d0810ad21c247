# SPDX-License-Identifier: Apache-2.0
"""Options as tc(8) takes them, and as people compare them."""

from __future__ import annotations

import msgspec

from qos.tc.state import (
    TICK_NS,
    U32,
    Bfifo,
    Bpf,
    Cake,
    ClassOptions,
    Clsact,
    Ets,
    FilterOptions,
    Flower,
    Fq,
    FqCodel,
    Htb,
    HtbClass,
    QdiscOptions,
    Redirect,
    Tbf,
    Unread,
    UnreadClass,
    UnreadFilter,
    handle_text,
)
from qos.tc.tree import kind_of
from qos.units import format_rate

__all__ = ["difference", "summary", "tc_words"]

_DIFFSERV = ("diffserv3", "diffserv4", "diffserv8", "besteffort", "precedence")
_PROTOCOLS = {6: "tcp", 17: "udp"}
_FOLLOWING = {"burst", "cburst"}
_RATES = {"rate", "ceil", "bandwidth"}

Options = QdiscOptions | ClassOptions | FilterOptions


def tc_words(options: Options) -> str:
    """What follows the kind in a tc command; not for Bpf and what is Unread, which no command line can say."""
    match options:
        case Clsact() | Bpf() | Unread() | UnreadClass() | UnreadFilter():
            return ""
        case U32() | Flower():
            return _classifier(options)
        case Redirect():
            return f"action mirred egress redirect dev {options.to}"
        case HtbClass():
            return _htb_class(options)
    return _qdisc(options)


def _qdisc(options: QdiscOptions) -> str:
    match options:
        case Htb():
            return f"default {options.default:#x}"
        case Bfifo():
            return f"limit {options.limit}"
        case Tbf():
            burst = _bytes(options.burst, options.rate)
            return f"rate {options.rate * 8}bit burst {burst} limit {options.limit}"
        case FqCodel():
            return (
                f"limit {options.limit} target {options.target}us interval {options.interval}us "
                f"quantum {options.quantum} memory_limit {options.memory_limit} {'ecn' if options.ecn else 'noecn'}"
            )
        case Cake():
            bandwidth = f"bandwidth {options.bandwidth * 8}bit" if options.bandwidth else "unlimited"
            return f"{bandwidth} {_DIFFSERV[options.diffserv]} overhead {options.overhead}"
        case Ets():
            quanta = f" quanta {_numbers(options.quanta)}" if options.quanta else ""
            return f"bands {options.bands} strict {options.strict}{quanta} priomap {_numbers(options.priomap)}"
        case Fq():
            bands = f" bands 3 priomap {_numbers(options.priomap)}" if options.priomap else ""
            return f"limit {options.limit} flow_limit {options.flow_limit}{bands}"
    return ""


def _htb_class(options: HtbClass) -> str:
    words = [
        f"rate {options.rate * 8}bit ceil {options.ceil * 8}bit",
        f"burst {_bytes(options.burst, options.rate)} cburst {_bytes(options.cburst, options.ceil)}",
        f"prio {options.prio}",
    ]
    if options.quantum:
        words.append(f"quantum {options.quantum}")
    if options.overhead:
        words.append(f"overhead {options.overhead}")
    return " ".join(words)


def _bytes(ticks: int, rate: int) -> int:
    return -(-ticks * TICK_NS * rate // 10**9)


def _classifier(options: U32 | Flower) -> str:
    if isinstance(options, U32):
        keys = [f"match u32 {value:#010x} {mask:#010x} at {offset}" for offset, value, mask in options.keys]
        return " ".join([*(keys or ["match u32 0 0"]), f"flowid {handle_text(options.classid)}"])
    words = [f"ip_proto {_PROTOCOLS.get(options.ip_proto, options.ip_proto)}"] if options.ip_proto is not None else []
    words += [f"{end}_ip {network}" for end, network in (("src", options.src), ("dst", options.dst)) if network]
    for end, ports in (("src", options.sport), ("dst", options.dport)):
        if ports is not None:
            words.append(f"{end}_port {ports[0]}" + (f"-{ports[1]}" if ports[1] != ports[0] else ""))
    if options.dscp is not None:
        words.append(f"ip_tos {options.dscp << 2:#04x}/0xfc")
    return " ".join([*words, f"classid {handle_text(options.classid)}"])


def _numbers(values: tuple[int, ...]) -> str:
    return " ".join(map(str, values))


def summary(options: Options) -> str:
    """The kind and what people ask first."""
    match options:
        case HtbClass():
            return f"rate {format_rate(options.rate * 8)} ceil {format_rate(options.ceil * 8)}"
        case Bpf():
            return options.name
        case Redirect():
            return f"all to {options.to}"
    return " ".join(filter(None, (kind_of(options), tc_words(options))))


def difference(old: Options, new: Options) -> str:
    """`rate 6mbit -> 7mbit, prio 1 -> 0`; the kinds where they differ."""
    if type(old) is not type(new) or kind_of(old) != kind_of(new):
        return f"{summary(old)} -> {summary(new)}"
    fields = [
        f"{name} {_shown(name, getattr(old, name))} -> {_shown(name, getattr(new, name))}"
        for name in new.__struct_fields__
        # Bursts are ticks at the rate: they follow it, and say nothing to people.
        if getattr(old, name) != getattr(new, name) and name not in _FOLLOWING
    ]
    if not fields and old != new:
        return "burst"
    return ", ".join(fields) or "again"


def _shown(name: str, value: object) -> str:
    if name in _RATES and isinstance(value, int):
        return format_rate(value * 8)
    if name == "classid" and isinstance(value, int):
        return handle_text(value)
    if name == "default":
        return f"{value:x}"
    if isinstance(value, tuple):
        return msgspec.json.encode(value).decode().replace(",", " ")
    return str(value)
