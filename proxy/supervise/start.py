# SPDX-License-Identifier: Apache-2.0
"""What a worker is told before it starts: all by which it becomes the same gateway as the others, in one document.

The config travels as the text that the supervisor has read: whatever happens to the file, all run the same.
"""

from __future__ import annotations

import msgspec

from proxy.config.loading import Config, load_text
from proxy.reload import merge, with_ceilings

__all__ = ["ConfigText", "LedgerPlace", "Start", "config_of"]


class ConfigText(msgspec.Struct, frozen=True, kw_only=True):
    """A config that runs: the file it was started from, and what a reload has changed since."""

    path: str
    """Where it was read, as it was given: errors name it, and relative paths are relative to it."""
    started: str
    """What was in the file at the start."""
    reloaded: str | None = None
    """What was in it at the last reload."""
    ceilings: dict[str, str | None] = {}
    """By listener, the highest class as it is now."""
    helped: bool = True
    """Whether there is a helper that keeps interfaces."""


class LedgerPlace(msgspec.Struct, frozen=True, kw_only=True):
    """A worker's way to the shared ledger; descriptors that it inherits."""

    fd: int
    event_fds: list[int]
    row: int


class Start(msgspec.Struct, frozen=True, kw_only=True):
    """The document."""

    config: ConfigText
    state_dir: str
    place: int
    """Which socket of each address is its own."""
    generation: int
    siblings: list[int]
    """Places of the others."""
    sockets: dict[str, list[tuple[int | None, int | None]]]
    """By listener, UDP and TCP descriptor of each address."""
    keys: bytes
    ledger: LedgerPlace | None = None
    name: str = ""
    """Said in its log lines, where there are several."""
    models: list[tuple[str, int, str]] = []
    """Unix sockets of endpoints that another process runs: pool, number, path."""
    standby: bool = False
    """Whether it leaves new TCP connections to others until it is told to accept them."""


def config_of(text: ConfigText) -> Config:
    """What the gateway runs with now. Raises ConfigError for a text that is none (to this version of the code)."""
    config, _ = load_text(text.started, text.path)
    if text.reloaded is None:
        return config
    read, _ = load_text(text.reloaded, text.path)
    return merge(with_ceilings(config, text.ceilings), read, helped=text.helped).config
