# SPDX-License-Identifier: Apache-2.0
"""`apply` on a kernel in memory, with its clock and programs that nobody verifies."""

from __future__ import annotations

import os
from typing import Any

from qos.tc.reconcile.apply import Outcome, apply
from qos.tc.state import NetworkState
from tests.fakes.fake_kernel import FakeKernel

_RULE = 'meta priority set 51a:16 accept comment "1 of 1"'
_TABLE = """table inet inferlane {
    chain %s {
        type filter hook postrouting priority mangle; policy accept;
        %s
    }
}
"""
TABLES = {name: (_TABLE % (name, _RULE)).encode() for name in ("classify_a", "classify_b")}
PROGRAMS = {"inferlane-1": b"\x95" + bytes(7), "inferlane-2": b"\x95" + bytes(7), **TABLES}


def applied(kernel: FakeKernel, desired: NetworkState, **how: Any) -> Outcome:
    """What came of it."""
    given: dict[str, Any] = {
        "programs": PROGRAMS,
        "clock": kernel.clock,
        "sleep": kernel.sleep,
        "load": lambda instructions, name: os.open(os.devnull, os.O_RDONLY),
    }
    return apply(kernel, desired, **{**given, **how})  # type: ignore[arg-type]  # the door's interface, no subclass
