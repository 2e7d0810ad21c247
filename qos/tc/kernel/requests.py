# SPDX-License-Identifier: Apache-2.0
"""The body of what is sent to the kernel about a qdisc, class or filter, and how to call it in an error."""

from __future__ import annotations

import socket

from qos.tc.kernel.attributes import nested, text
from qos.tc.kernel.filter_codec import Outside, encode_filter, filter_kind
from qos.tc.kernel.observe import TC_MESSAGE
from qos.tc.kernel.qdisc_codec import class_kind, encode_class, encode_qdisc, qdisc_kind
from qos.tc.state import Filter, Qdisc, Redirect, TcClass, handle_text

__all__ = ["Subject", "described", "place_of", "request_for"]

Subject = Qdisc | TcClass | Filter
"""What traffic control is made of."""

_KIND, _OPTIONS = 1, 2


def place_of(subject: Subject, index: int) -> bytes:
    """Where it is: all that the kernel needs to remove it."""
    info = subject.pref << 16 | socket.htons(subject.protocol) if isinstance(subject, Filter) else 0
    return TC_MESSAGE.pack(0, 0, 0, index, subject.handle, subject.parent, info)


def request_for(subject: Subject, index: int, outside: Outside) -> bytes:
    """Where it is and all that it is. outside: what a filter takes beside its options."""
    if isinstance(subject, Filter):
        kind = filter_kind(subject.options, outside)
        options = encode_filter(subject.options, subject.protocol, outside)
    elif isinstance(subject, TcClass):
        kind, options = class_kind(subject.options), encode_class(subject.options)
    else:
        kind, options = qdisc_kind(subject.options), encode_qdisc(subject.options)
    of_kind = b"" if options is None else nested(_OPTIONS, options)
    return place_of(subject, index) + text(_KIND, kind) + of_kind


def described(subject: Subject) -> str:
    """Its sort, kind and place."""
    if isinstance(subject, Qdisc):
        return f"qdisc {qdisc_kind(subject.options)} {handle_text(subject.handle)}"
    if isinstance(subject, TcClass):
        return f"class {class_kind(subject.options)} {handle_text(subject.handle)}"
    options = subject.options
    kind = "redirect" if isinstance(options, Redirect) else filter_kind(options, Outside())
    return f"filter {kind} pref {subject.pref} at {handle_text(subject.parent)}"
