# SPDX-License-Identifier: Apache-2.0
"""What applications import to ask an Inferlane gateway, and the wire that both ends speak.

The names below are imported when they are first used, so that `import inferlane.wire` stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from inferlane.blocking import BlockingClient
    from inferlane.client import Client
    from inferlane.errors import ConnectionFailed, InferlaneError, Reason, Refused
    from inferlane.messages import Reply, Timing

__version__ = "0.1.0"
__all__ = ["BlockingClient", "Client", "ConnectionFailed", "InferlaneError", "Reason", "Refused", "Reply", "Timing"]

_MODULES = {
    "BlockingClient": "inferlane.blocking",
    "Client": "inferlane.client",
    "ConnectionFailed": "inferlane.errors",
    "InferlaneError": "inferlane.errors",
    "Reason": "inferlane.errors",
    "Refused": "inferlane.errors",
    "Reply": "inferlane.messages",
    "Timing": "inferlane.messages",
}


def __dir__() -> list[str]:
    return sorted(_MODULES)


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(_MODULES[name]), name)
