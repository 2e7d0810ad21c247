# SPDX-License-Identifier: Apache-2.0
"""Options of qdiscs and classes as the kernel's bytes, and back (linux/pkt_sched.h, net/sched/sch_*.c).

What we send, we read back equal; what a kernel can hold beside it is `Unread`, so that no difference stays hidden.
"""

from __future__ import annotations

import struct
from collections.abc import Callable

import msgspec

from qos.tc.kernel.attributes import (
    attribute,
    attribute_pairs,
    nested,
    nested_attributes,
    read_u32,
    read_u64,
    u8,
    u32,
    u64,
)
from qos.tc.state import (
    Bfifo,
    Cake,
    ClassOptions,
    Clsact,
    Ets,
    Fq,
    FqCodel,
    Htb,
    HtbClass,
    QdiscOptions,
    Tbf,
    Unread,
    UnreadClass,
)

__all__ = [
    "canonical",
    "class_kind",
    "decode_class",
    "decode_qdisc",
    "encode_class",
    "encode_qdisc",
    "qdisc_kind",
]

_HTB_PARMS, _HTB_INIT, _HTB_RATE64, _HTB_CEIL64 = 1, 2, 6, 7
_HTB_GLOB = struct.Struct("=5I")  # version, rate2quantum, defcls, debug, direct_pkts
_HTB_VERSION = 3  # HTB_VER >> 16; a dump says 0x30011, which htb_init() refuses
_HTB_RATE_TO_QUANTUM = 10  # tc's r2q; every class of ours says its quantum
_HTB_OPT = struct.Struct("=BBHhHI BBHhHI 5I".replace(" ", ""))  # two tc_ratespec, buffer, cbuffer, quantum, level, prio
_TBF_PARMS = 1
_TBF_OPT = struct.Struct("=BBHhHI BBHhHI 3I".replace(" ", ""))  # tc_ratespec, that of the peak, limit, buffer, mtu
_NO_PEAK = (0,) * 6
_ETHERNET = 1  # TC_LINKLAYER_ETHERNET: the kernel then asks for no rate table
_MOST_U32 = 2**32 - 1
_LEAST_QUANTUM = 256

_FQC_TARGET, _FQC_LIMIT, _FQC_INTERVAL, _FQC_ECN, _FQC_FLOWS, _FQC_QUANTUM, _FQC_CE, _FQC_MEMORY = (
    1,
    2,
    3,
    4,
    5,
    6,
    7,
    9,
)
_FQC_DEFAULT_FLOWS = 1024

_CAKE_RATE, _CAKE_DIFFSERV, _CAKE_OVERHEAD, _CAKE_NAT, _CAKE_RAW = 2, 3, 6, 11, 12
# What we choose once, and send each time: no ATM cells, triple-isolate, no autorate, no wash, no minimum, egress, no
# ACK filter, trains split.
_CAKE_FIXED = {4: 0, 5: 7, 9: 0, 13: 0, 14: 0, 15: 0, 16: 0, 17: 1}

_ETS_BANDS, _ETS_STRICT, _ETS_QUANTA, _ETS_QUANTUM, _ETS_PRIOMAP, _ETS_PRIOMAP_BAND = 1, 2, 3, 4, 5, 6

_FQ_LIMIT, _FQ_FLOW_LIMIT, _FQ_PRIOMAP = 1, 2, 16
_FQ_BANDS = struct.Struct("=i16B")  # struct tc_prio_qopt; sch_fq.c takes 3 bands and no other number


def qdisc_kind(options: QdiscOptions) -> str:
    """The kernel's name for it."""
    return options.kind if isinstance(options, Unread) else _tag(options)


def class_kind(options: ClassOptions) -> str:
    """The kernel's name for it."""
    return options.kind if isinstance(options, UnreadClass) else _tag(options)


def canonical(options: QdiscOptions) -> QdiscOptions:
    """What the kernel will say it has, when it was given this: what is compared must be made with it.

    fq_codel counts time in units of 1.024 us, so of 43 microsecond values one cannot be had (5 ms and 100 ms can), and
    no turn is shorter than 256 bytes.
    """
    if isinstance(options, Ets):  # Debian's 6.1 cuts it so; older ones take it as it is
        return msgspec.structs.replace(options, quanta=tuple(max(_LEAST_QUANTUM, each) for each in options.quanta))
    if isinstance(options, FqCodel):
        return msgspec.structs.replace(
            options,
            target=_units_us(_units(options.target)),
            interval=_units_us(_units(options.interval)),
            quantum=max(_LEAST_QUANTUM, options.quantum),
            memory_limit=min(2**31, options.memory_limit),
        )
    return options


def encode_qdisc(options: QdiscOptions) -> bytes | None:
    """The value of TCA_OPTIONS; None where the kind has none."""
    if isinstance(options, Unread):
        return _acceptable(options)
    return _QDISCS[type(options)][0](options)


def decode_qdisc(kind: str, value: bytes | None) -> QdiscOptions:
    """The options that the kernel reports; Unread where they are not ours to express."""
    decoder = _DECODERS.get(kind)
    read = decoder(value or b"") if decoder is not None else None
    return Unread(kind, value) if read is None else read


def encode_class(options: ClassOptions) -> bytes | None:
    """The value of TCA_OPTIONS; None where the kind has none."""
    if isinstance(options, UnreadClass):
        return options.data
    rates = (options.rate, options.ceil)
    specs = [field for rate in rates for field in (0, _ETHERNET, options.overhead, 0, 0, min(rate, _MOST_U32))]
    opt = _HTB_OPT.pack(*specs, options.burst, options.cburst, options.quantum, 0, options.prio)
    wide = [u64(kind, r) for kind, r in zip((_HTB_RATE64, _HTB_CEIL64), rates, strict=True) if r > _MOST_U32]
    return attribute(_HTB_PARMS, opt) + b"".join(wide)


def decode_class(kind: str, value: bytes | None) -> ClassOptions:
    """The options that the kernel reports; UnreadClass where they are not ours to express."""
    found = nested_attributes(value)
    if kind != "htb" or len(found.get(_HTB_PARMS, b"")) < _HTB_OPT.size:
        return UnreadClass(kind, value)
    fields = _HTB_OPT.unpack_from(found[_HTB_PARMS])
    rate, ceil, rest = fields[0:6], fields[6:12], fields[12:]
    if any(spec[1] & 0xF != _ETHERNET or spec[4] for spec in (rate, ceil)) or rate[2] != ceil[2]:
        return UnreadClass(kind, value)
    burst, cburst, quantum, level, prio = rest
    return HtbClass(
        rate=read_u64(found.get(_HTB_RATE64), rate[5]),
        ceil=read_u64(found.get(_HTB_CEIL64), ceil[5]),
        burst=burst,
        cburst=cburst,
        prio=0 if level else prio,  # of a class with children the kernel tells what it had before them
        quantum=quantum,
        overhead=rate[2],
    )


def _tag(options: msgspec.Struct) -> str:
    return str(options.__struct_config__.tag)


def _encode_htb(options: Htb) -> bytes:
    return attribute(_HTB_INIT, _HTB_GLOB.pack(_HTB_VERSION, _HTB_RATE_TO_QUANTUM, options.default, 0, 0))


def _decode_htb(value: bytes) -> Htb | None:
    init = nested_attributes(value).get(_HTB_INIT, b"")
    return Htb(_HTB_GLOB.unpack_from(init)[2]) if len(init) >= _HTB_GLOB.size else None


def _encode_bfifo(options: Bfifo) -> bytes:
    return struct.pack("=I", options.limit)


def _decode_bfifo(value: bytes) -> Bfifo | None:
    return Bfifo(read_u32(value)) if len(value) >= 4 else None


def _encode_tbf(options: Tbf) -> bytes:
    rate = (0, _ETHERNET, 0, 0, 0, options.rate)
    return attribute(_TBF_PARMS, _TBF_OPT.pack(*rate, *_NO_PEAK, options.limit, options.burst, 0))


def _decode_tbf(value: bytes) -> Tbf | None:
    found = nested_attributes(value)
    if len(found) != 1 or len(found.get(_TBF_PARMS, b"")) < _TBF_OPT.size:
        return None
    fields = _TBF_OPT.unpack_from(found[_TBF_PARMS])
    (_, linklayer, overhead, _, mpu, rate), peak, (limit, burst, mtu) = fields[:6], fields[6:12], fields[12:]
    if linklayer & 0xF != _ETHERNET or overhead or mpu or peak[5] or mtu:
        return None
    return Tbf(rate=rate, burst=burst, limit=limit)


def _units(us: int) -> int:
    """The fewest units of 1.024 us that the kernel reports as so many microseconds, or as one more."""
    return -(-us * 1000 // 1024)


def _units_us(units: int) -> int:
    # codel_time_to_us() in include/net/codel.h.
    return units * 1024 // 1000


def _sent_us(us: int) -> int:
    """What to send for the kernel to report `us`: it cuts once when it takes a time, and once when it tells it."""
    return -(-_units(us) * 1024 // 1000)


def _encode_fq_codel(options: FqCodel) -> bytes:
    return b"".join(
        (
            u32(_FQC_TARGET, _sent_us(options.target)),
            u32(_FQC_LIMIT, options.limit),
            u32(_FQC_INTERVAL, _sent_us(options.interval)),
            u32(_FQC_ECN, int(options.ecn)),
            u32(_FQC_QUANTUM, options.quantum),
            u32(_FQC_MEMORY, options.memory_limit),
        )
    )


def _decode_fq_codel(value: bytes) -> FqCodel | None:
    found = nested_attributes(value)
    if read_u32(found.get(_FQC_FLOWS), _FQC_DEFAULT_FLOWS) != _FQC_DEFAULT_FLOWS or _FQC_CE in found:
        return None
    return FqCodel(
        limit=read_u32(found.get(_FQC_LIMIT)),
        target=read_u32(found.get(_FQC_TARGET)),
        interval=read_u32(found.get(_FQC_INTERVAL)),
        quantum=read_u32(found.get(_FQC_QUANTUM)),
        memory_limit=read_u32(found.get(_FQC_MEMORY)),
        ecn=read_u32(found.get(_FQC_ECN)) != 0,
    )


def _encode_cake(options: Cake) -> bytes:
    said = {_CAKE_DIFFSERV: options.diffserv, _CAKE_OVERHEAD: options.overhead, **_CAKE_FIXED}
    return u64(_CAKE_RATE, options.bandwidth) + b"".join(u32(*each) for each in said.items())


def _decode_cake(value: bytes) -> Cake | None:
    found = nested_attributes(value)
    # NAT we never send: a kernel without conntrack refuses even its absence.
    fixed = {**_CAKE_FIXED, _CAKE_NAT: 0}
    if _CAKE_RAW in found or any(read_u32(found.get(kind), right) != right for kind, right in fixed.items()):
        return None
    return Cake(
        bandwidth=read_u64(found.get(_CAKE_RATE)),
        diffserv=read_u32(found.get(_CAKE_DIFFSERV)),
        overhead=read_u32(found.get(_CAKE_OVERHEAD)),
    )


def _encode_ets(options: Ets) -> bytes:
    parts = [u8(_ETS_BANDS, options.bands)]
    if options.strict:
        parts.append(u8(_ETS_STRICT, options.strict))
    if options.quanta:
        parts.append(nested(_ETS_QUANTA, *(u32(_ETS_QUANTUM, each) for each in options.quanta)))
    if options.priomap:
        parts.append(nested(_ETS_PRIOMAP, *(u8(_ETS_PRIOMAP_BAND, each) for each in options.priomap)))
    return b"".join(parts)


def _decode_ets(value: bytes) -> Ets | None:
    found = nested_attributes(value)
    if _ETS_BANDS not in found:
        return None
    return Ets(
        bands=found[_ETS_BANDS][0],
        strict=found.get(_ETS_STRICT, b"\0")[0],
        quanta=tuple(read_u32(each) for _, each in attribute_pairs(found.get(_ETS_QUANTA, b""))),
        priomap=tuple(each[0] for _, each in attribute_pairs(found.get(_ETS_PRIOMAP, b""))),
    )


def _encode_fq(options: Fq) -> bytes:
    bands = attribute(_FQ_PRIOMAP, _FQ_BANDS.pack(3, *options.priomap)) if options.priomap else b""
    return u32(_FQ_LIMIT, options.limit) + u32(_FQ_FLOW_LIMIT, options.flow_limit) + bands


def _decode_fq(value: bytes) -> Fq | None:
    found = nested_attributes(value)
    bands = found.get(_FQ_PRIOMAP, b"")
    return Fq(
        limit=read_u32(found.get(_FQ_LIMIT)),
        flow_limit=read_u32(found.get(_FQ_FLOW_LIMIT)),
        priomap=_FQ_BANDS.unpack_from(bands)[1:] if len(bands) >= _FQ_BANDS.size else (),
    )


def _acceptable(options: Unread) -> bytes | None:
    """Somebody else's options so that the kernel takes back what it has told."""
    if options.data is None or options.kind not in ("htb", "fq_codel"):
        return options.data
    return b"".join(
        attribute(kind, _as_sent(options.kind, kind, value)) for kind, value in attribute_pairs(options.data)
    )


def _as_sent(qdisc: str, kind: int, value: bytes) -> bytes:
    if qdisc == "htb" and kind == _HTB_INIT:
        return struct.pack("=I", _HTB_VERSION) + value[4:]
    if qdisc == "fq_codel" and kind in (_FQC_TARGET, _FQC_INTERVAL, _FQC_CE):
        return struct.pack("=I", _sent_us(read_u32(value)))
    return value


_QDISCS: dict[type[msgspec.Struct], tuple[Callable[..., bytes | None], Callable[[bytes], QdiscOptions | None]]] = {
    Htb: (_encode_htb, _decode_htb),
    Bfifo: (_encode_bfifo, _decode_bfifo),
    Tbf: (_encode_tbf, _decode_tbf),
    FqCodel: (_encode_fq_codel, _decode_fq_codel),
    Cake: (_encode_cake, _decode_cake),
    Ets: (_encode_ets, _decode_ets),
    Fq: (_encode_fq, _decode_fq),
    Clsact: (lambda _: None, lambda _: Clsact()),
}
_DECODERS = {str(kind.__struct_config__.tag): decode for kind, (_, decode) in _QDISCS.items()}
