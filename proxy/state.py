# SPDX-License-Identifier: Apache-2.0
"""Where the gateway keeps what outlives it: development certificates, and later policies. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

__all__ = ["state_directory"]


def state_directory(chosen: Path | None, *, environ: Mapping[str, str], root: bool) -> Path:
    """The option, else systemd's $STATE_DIRECTORY, else the system's or the user's own place."""
    if chosen is not None:
        return chosen
    # systemd.exec(5): with several StateDirectory= the paths are separated by colons.
    given = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if given:
        return Path(given)
    if root:
        return Path("/var/lib/inferlane")
    # XDG Base Directory Specification: a relative path is to be ignored.
    own = Path(environ.get("XDG_STATE_HOME", ""))
    if not own.is_absolute():
        own = Path(environ.get("HOME", "/")) / ".local" / "state"
    return own / "inferlane"
