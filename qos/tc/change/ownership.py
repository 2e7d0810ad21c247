# SPDX-License-Identifier: Apache-2.0
"""Files that root and the service's own user share: whatever root makes belongs to the folder's owner.

So an admin's `inferlane qos apply` leaves nothing behind that a gateway with a user of its own could not read.
"""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["give", "make_folder"]


def make_folder(folder: Path) -> None:
    """Make it and those above it, for its owner alone."""
    if folder.is_dir():
        return
    make_folder(folder.parent)
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
    try:
        give(descriptor, folder.parent)
    finally:
        os.close(descriptor)


def give(descriptor: int, folder: Path) -> None:
    """Let an open file belong to the owner of the folder that it lies in."""
    if os.geteuid() == 0:
        owner = folder.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
