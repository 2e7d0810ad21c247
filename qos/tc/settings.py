# SPDX-License-Identifier: Apache-2.0
"""Interfaces, flows and safety as the config file writes them."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field, ValidationInfo, WithJsonSchema

from qos.schema import Dscp, Duration, Name, Network, Rate, Settings, did_you_mean, one_of, shown
from qos.units import parse_size

__all__ = ["OVERHEADS", "Engine", "FlowSettings", "InterfaceSettings", "Port", "SafetySettings"]

OVERHEADS = {"none": 0, "ethernet": 24, "vlan": 28}
"""Bytes that the wire adds to those that the kernel counts: preamble 8, frame check 4, gap 12 (IEEE 802.3), tag 4."""
_ENGINES = ("auto", "htb", "cake", "ets", "fq", "marks")
Engine = Literal["auto", "htb", "cake", "ets", "fq", "marks"]


def _interface_name(text: str) -> str:
    # dev_valid_name() in net/core/dev.c.
    if not 0 < len(text) < 16 or text in (".", "..") or re.search(r"[/:\s]", text) or not text.isprintable():
        raise ValueError(f"{shown(text)} is not an interface's name; allowed: 1 to 15 characters without / : or spaces")
    return text


def _namespace_name(text: str) -> str:
    if re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}", text) is None:
        raise ValueError(f"{shown(text)} is not a namespace's name; `ip netns list` prints them")
    return text


def _overhead(value: object) -> object:
    if isinstance(value, str):
        if value in OVERHEADS:
            return OVERHEADS[value]
        if value[:1].isdecimal():
            return parse_size(value)
        raise ValueError(
            f"{shown(value)} is not known{did_you_mean(value, OVERHEADS)}; "
            f"allowed: {', '.join(OVERHEADS)}, or bytes a packet such as 38B"
        )
    if type(value) is int and value in range(0, 257):
        raise ValueError(f"{value} has no unit; write {value}B, or one of {', '.join(OVERHEADS)}")
    return value


def _rate(bits_per_s: int) -> int:
    if not 8_000 <= bits_per_s <= 400 * 10**9:
        raise ValueError("a link's rate is at least 8kbit and at most 400gbit")
    return bits_per_s


def _confirm(seconds: float) -> float:
    if not 5 <= seconds <= 24 * 3600:
        raise ValueError("a time to confirm is at least 5s and at most 1440m")
    return seconds


def _port(value: object, info: ValidationInfo) -> object:
    """A port or a range `5010-5020` -> (first, last)."""
    if type(value) is int:
        first = last = value
    elif isinstance(value, str) and (match := re.fullmatch(r"([0-9]{1,5})(?:-([0-9]{1,5}))?", value)):
        first, last = int(match[1]), int(match[2] or match[1])
    elif isinstance(value, tuple) and info.context is None:  # from Python, not from a file
        return value
    else:
        raise ValueError(f'{shown(value)} is not a port; write 5000 or "5010-5020"')
    if not 1 <= first <= last <= 65535:
        raise ValueError(f"{shown(value)} is not a port; allowed: 1 to 65535, a range from low to high")
    return first, last


InterfaceName = Annotated[str, AfterValidator(_interface_name), Field(json_schema_extra={"maxLength": 15})]
LinkRate = Annotated[Rate, AfterValidator(_rate)]
Port = Annotated[
    tuple[int, int],
    BeforeValidator(_port),
    WithJsonSchema({"anyOf": [{"type": "integer", "minimum": 1, "maximum": 65535}, {"type": "string"}]}),
]
"""First and last port."""
Overhead = Annotated[
    int,
    BeforeValidator(_overhead),
    Field(ge=0, le=256),
    WithJsonSchema({"type": "string", "examples": [*OVERHEADS, "38B"]}),
]


class InterfaceSettings(Settings):
    """A link that traffic control may shape."""

    name: InterfaceName
    """The interface's name, as `ip link` prints it."""
    netns: Annotated[str, AfterValidator(_namespace_name)] | None = None
    """Its network namespace; default: the gateway's own."""
    egress: LinkRate
    """What the slowest hop behind it carries, or a little less: the queue must form here."""
    ingress: LinkRate | None = None
    """The same for what comes in, shaped through an IFB; default: not shaped."""
    overhead: Overhead = Field(default=OVERHEADS["none"], json_schema_extra={"default": "none"})
    """Bytes that the wire adds to each packet: none, ethernet, vlan, or a number as 38B."""
    engine: Annotated[Engine, one_of(*_ENGINES)] = "auto"
    """auto: HTB with fq_codel or bfifo leaves, marks alone on multiqueue links of 10 Gbit/s and more."""
    degrade: Annotated[Literal["allow", "refuse"], one_of("allow", "refuse")] = "allow"
    """What to do where the kernel cannot keep a key: use the next best and say so, or refuse."""
    adopt: bool = False
    """Whether a root qdisc that is not ours may be replaced."""


class FlowSettings(Settings):
    """Traffic through this host that is not the gateway's own; all that is given must hold."""

    class_: Name = Field(alias="class")
    """A class's name."""
    proto: Annotated[Literal["tcp", "udp"], one_of("tcp", "udp")] | None = None
    """tcp or udp; ports need it."""
    src: Network | None = None
    """Where its packets come from."""
    dst: Network | None = None
    """Where they go to."""
    sport: tuple[Port, ...] = ()
    """Source ports: numbers and ranges such as "5010-5020"."""
    dport: tuple[Port, ...] = ()
    """Destination ports."""
    dscp: Dscp | None = None
    """The mark that they carry."""
    before_nat: bool = False
    """Whether the addresses are those before this host translates them: then nftables classifies, not tc."""


class SafetySettings(Settings):
    """How changes to the kernel are made, kept and undone."""

    confirm: Annotated[Duration, AfterValidator(_confirm)] = Field(default=120.0, json_schema_extra={"default": "120s"})
    """How long `qos apply --confirm` without a time waits."""
    drift: Annotated[Literal["off", "report", "repair"], one_of("off", "report", "repair")] = "repair"
    """What `run` does when somebody else changes what we made."""
    repairs_per_10m: Annotated[int, Field(ge=0, le=1000)] = 5
    """After so many repairs in ten minutes it only reports: somebody else insists."""
    on_failure: Annotated[Literal["unshaped"], one_of("unshaped")] = "unshaped"
    """Where even the way back fails our root goes and the kernel's default returns: never a cut-off."""
    on_exit: Annotated[Literal["keep", "release"], one_of("keep", "release")] = "keep"
    """Whether traffic control stays when the gateway ends."""
