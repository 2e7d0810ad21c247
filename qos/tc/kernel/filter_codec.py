# SPDX-License-Identifier: Apache-2.0
"""Options of filters as the kernel's bytes, and back (linux/pkt_cls.h, net/sched/cls_*.c)."""

from __future__ import annotations

import ipaddress
import struct
from collections.abc import Mapping

import msgspec

from qos.tc.kernel.attributes import (
    attribute,
    attribute_pairs,
    nested,
    nested_attributes,
    read_text,
    read_u32,
    text,
    u8,
    u32,
)
from qos.tc.state import U32, Bpf, FilterOptions, Flower, Redirect, UnreadFilter

__all__ = ["ALL_PROTOCOLS", "Outside", "decode_filter", "encode_filter", "filter_kind"]

ALL_PROTOCOLS = 0x0003
"""ETH_P_ALL."""

_IPV4 = 0x0800
_TCP = 6

_U32_CLASSID, _U32_SEL, _U32_ACT = 1, 5, 7
_U32_KNOWN = {_U32_CLASSID, 2, _U32_SEL, 9, 11, 12}  # and HASH, PCNT, FLAGS, PAD
_SEL = struct.Struct("=BBBxHHhhI")  # struct tc_u32_sel
_TERMINAL = 1  # TC_U32_TERMINAL
_KEY = struct.Struct("=4s4sii")  # struct tc_u32_key: mask and value in network order

_BPF_FD, _BPF_NAME, _BPF_FLAGS = 6, 7, 8
_DIRECT_ACTION = 1  # TCA_BPF_FLAG_ACT_DIRECT

_MATCHALL_ACT = 2
_MATCHALL_KNOWN = {_MATCHALL_ACT, 3, 4, 5}  # and FLAGS, PCNT, PAD
_ACT_KIND, _ACT_OPTIONS = 1, 2
_MIRRED_PARMS = 2
_MIRRED = struct.Struct("=IIiiiiI")  # struct tc_mirred: index, capab, action, refcnt, bindcnt, eaction, ifindex
_STOLEN, _EGRESS_REDIRECT = 4, 1  # TC_ACT_STOLEN, TCA_EGRESS_REDIR

_FL_CLASSID, _FL_ETHER_TYPE, _FL_IP_PROTO = 1, 8, 9
_FL_TOS, _FL_TOS_MASK = 73, 74
_FL_NETWORKS = {("src", 4): 10, ("dst", 4): 12, ("src", 6): 14, ("dst", 6): 16}  # the mask's type is one more
_FL_PORTS = {("sport", True): 18, ("dport", True): 19, ("sport", False): 20, ("dport", False): 21}  # by (end, TCP)
_FL_PORT_MASKS = {18: 35, 19: 36, 20: 37, 21: 38}
_FL_RANGES = {"sport": (87, 88), "dport": (89, 90)}
_FL_REPORTS = {22, 86}  # FLAGS and IN_HW_COUNT

# Where each kind has its flags. A dump adds whether hardware took the filter, and that the kernel does not take back.
_FLAGS = {"u32": 11, "flower": 22, "matchall": 3, "bpf": 9}
_FLAGS_TAKEN = 0x13  # TCA_CLS_FLAGS_SKIP_HW, _SKIP_SW, _VERBOSE


class Outside(msgspec.Struct, frozen=True):
    """What a filter's bytes take that its options do not name."""

    fd: int = -1
    """Of the loaded program, for Bpf."""
    ifindex: int = 0
    """Of the device that Redirect sends to."""
    matchall: bool = True
    """Whether the kernel has cls_matchall; else Redirect is an u32 that matches all."""


def filter_kind(options: FilterOptions, outside: Outside) -> str:
    """The kernel's name for it."""
    if isinstance(options, UnreadFilter):
        return options.kind
    if isinstance(options, Redirect):
        return "matchall" if outside.matchall else "u32"
    return str(options.__struct_config__.tag)


def encode_filter(options: FilterOptions, protocol: int, outside: Outside) -> bytes | None:
    """The value of TCA_OPTIONS."""
    if isinstance(options, UnreadFilter):
        return _acceptable(options)
    if isinstance(options, U32):
        return u32(_U32_CLASSID, options.classid) + _selector(options.keys)
    if isinstance(options, Flower):
        return _encode_flower(options, protocol)
    if isinstance(options, Bpf):
        return u32(_BPF_FD, outside.fd) + text(_BPF_NAME, options.name) + u32(_BPF_FLAGS, _DIRECT_ACTION)
    redirect = _redirect(outside.ifindex)
    if outside.matchall:
        return nested(_MATCHALL_ACT, redirect)
    return _selector(((0, 0, 0),)) + nested(_U32_ACT, redirect)


def decode_filter(kind: str, value: bytes | None, protocol: int, names: Mapping[int, str]) -> FilterOptions | None:
    """The options that the kernel reports; None for what is no filter: heads of chains, and hash tables of u32.

    `names` are those of the devices, by index.
    """
    found = nested_attributes(value)
    if not found or (kind == "u32" and _U32_SEL not in found):
        return None
    read: FilterOptions | None = None
    if kind == "u32":
        read = _decode_u32(found, names)
    elif kind == "flower":
        read = _decode_flower(found, protocol)
    elif kind == "bpf" and read_u32(found.get(_BPF_FLAGS)) == _DIRECT_ACTION:
        read = Bpf(read_text(found.get(_BPF_NAME)))
    elif kind == "matchall" and not found.keys() - _MATCHALL_KNOWN:
        read = _decode_redirect(found.get(_MATCHALL_ACT), names)
    return UnreadFilter(kind, value) if read is None else read


def _acceptable(options: UnreadFilter) -> bytes | None:
    """Somebody else's options so that the kernel takes back what it has told."""
    flags = _FLAGS.get(options.kind)
    if options.data is None or flags is None:
        return options.data
    return b"".join(
        u32(kind, read_u32(value) & _FLAGS_TAKEN) if kind == flags else attribute(kind, value)
        for kind, value in attribute_pairs(options.data)
    )


def _selector(keys: tuple[tuple[int, int, int], ...]) -> bytes:
    packed = [
        _KEY.pack(mask.to_bytes(4, "big"), (word & mask).to_bytes(4, "big"), offset, 0) for offset, word, mask in keys
    ]
    return attribute(_U32_SEL, _SEL.pack(_TERMINAL, 0, len(keys), 0, 0, 0, 0, 0) + b"".join(packed))


def _decode_u32(found: dict[int, bytes], names: Mapping[int, str]) -> FilterOptions | None:
    keys = _keys(found[_U32_SEL])
    if keys is None:
        return None
    if keys == ((0, 0, 0),) and not found.keys() - _U32_KNOWN - {_U32_ACT} and _U32_CLASSID not in found:
        return _decode_redirect(found.get(_U32_ACT), names)
    if _U32_CLASSID not in found or found.keys() - _U32_KNOWN:
        return None
    return U32(keys, read_u32(found[_U32_CLASSID]))


def _keys(selector: bytes) -> tuple[tuple[int, int, int], ...] | None:
    """What it compares; None where it does more than comparing words at fixed places."""
    if len(selector) < _SEL.size:
        return None
    flags, _, count, *offsets = _SEL.unpack_from(selector)
    if flags != _TERMINAL or any(offsets) or len(selector) < _SEL.size + count * _KEY.size:
        return None
    keys = [_KEY.unpack_from(selector, _SEL.size + each * _KEY.size) for each in range(count)]
    if any(offset_mask for *_, offset_mask in keys):
        return None
    return tuple((offset, int.from_bytes(word, "big"), int.from_bytes(mask, "big")) for mask, word, offset, _ in keys)


def _redirect(ifindex: int) -> bytes:
    parameters = _MIRRED.pack(0, 0, _STOLEN, 0, 0, _EGRESS_REDIRECT, ifindex)
    return nested(1, text(_ACT_KIND, "mirred"), nested(_ACT_OPTIONS, attribute(_MIRRED_PARMS, parameters)))


def _decode_redirect(value: bytes | None, names: Mapping[int, str]) -> Redirect | None:
    actions = [each for _, each in attribute_pairs(value or b"")]
    if len(actions) != 1:
        return None
    action = nested_attributes(actions[0])
    parameters = nested_attributes(action.get(_ACT_OPTIONS)).get(_MIRRED_PARMS, b"")
    if read_text(action.get(_ACT_KIND)) != "mirred" or len(parameters) < _MIRRED.size:
        return None
    _, _, then, _, _, way, ifindex = _MIRRED.unpack_from(parameters)
    # The kernel says index 0 once the device is gone.
    return Redirect(names.get(ifindex, "")) if (then, way) == (_STOLEN, _EGRESS_REDIRECT) else None


def _encode_flower(options: Flower, protocol: int) -> bytes:
    parts = [u32(_FL_CLASSID, options.classid)]
    if protocol != ALL_PROTOCOLS:
        parts.append(attribute(_FL_ETHER_TYPE, protocol.to_bytes(2, "big")))
    if options.ip_proto is not None:
        parts.append(u8(_FL_IP_PROTO, options.ip_proto))
    if options.dscp is not None:
        parts += [u8(_FL_TOS, options.dscp << 2), u8(_FL_TOS_MASK, 0xFC)]
    for end, network in (("src", options.src), ("dst", options.dst)):
        if network:
            parsed = ipaddress.ip_network(network)
            kind = _FL_NETWORKS[end, parsed.version]
            parts.append(attribute(kind, parsed.network_address.packed) + attribute(kind + 1, parsed.netmask.packed))
    for end, ports in (("sport", options.sport), ("dport", options.dport)):
        if ports is not None:
            parts += _ports(end, ports, tcp=options.ip_proto == _TCP)
    return b"".join(parts)


def _ports(end: str, ports: tuple[int, int], *, tcp: bool) -> list[bytes]:
    first, last = (each.to_bytes(2, "big") for each in ports)
    if first == last:
        return [attribute(_FL_PORTS[end, tcp], first)]
    low, high = _FL_RANGES[end]
    return [attribute(low, first), attribute(high, last)]


def _decode_flower(found: dict[int, bytes], protocol: int) -> Flower | None:
    rest = {kind: value for kind, value in found.items() if kind not in _FL_REPORTS}
    classid = rest.pop(_FL_CLASSID, None)
    ether_type = rest.pop(_FL_ETHER_TYPE, None)
    if classid is None or (ether_type is not None and int.from_bytes(ether_type, "big") != protocol):
        return None
    proto = rest.pop(_FL_IP_PROTO, None)
    tos = rest.pop(_FL_TOS, None)
    if tos is not None and rest.pop(_FL_TOS_MASK, b"\xfc") != b"\xfc":
        return None
    tcp = proto is not None and proto[0] == _TCP
    try:
        networks = [_take_network(rest, end, 4 if protocol == _IPV4 else 6) for end in ("src", "dst")]
        ports = [_take_ports(rest, end, tcp=tcp) for end in ("sport", "dport")]
    except ValueError:  # a mask with holes: only somebody else's
        return None
    if rest:
        return None
    return Flower(
        classid=read_u32(classid),
        dscp=None if tos is None else tos[0] >> 2,
        ip_proto=None if proto is None else proto[0],
        src=networks[0],
        dst=networks[1],
        sport=ports[0],
        dport=ports[1],
    )


def _take_network(rest: dict[int, bytes], end: str, version: int) -> str:
    kind = _FL_NETWORKS[end, version]
    address, mask = rest.pop(kind, None), rest.pop(kind + 1, None)
    if address is None:
        return ""
    bits = f"{int.from_bytes(mask or bytes(len(address)), 'big'):0{8 * len(address)}b}"
    prefix = len(bits.rstrip("0"))
    if "0" in bits[:prefix]:
        raise ValueError
    return str(ipaddress.ip_network((address, prefix)))


def _take_ports(rest: dict[int, bytes], end: str, *, tcp: bool) -> tuple[int, int] | None:
    kind = _FL_PORTS[end, tcp]
    exact = rest.pop(kind, None)
    if exact is not None:
        if rest.pop(_FL_PORT_MASKS[kind], b"\xff\xff") != b"\xff\xff":
            raise ValueError
        return int.from_bytes(exact, "big"), int.from_bytes(exact, "big")
    first, last = (rest.pop(each, None) for each in _FL_RANGES[end])
    if first is None or last is None:
        return None
    return int.from_bytes(first, "big"), int.from_bytes(last, "big")
