# SPDX-License-Identifier: Apache-2.0
"""Who else keeps the policy of the same books: only the last one may release it.

A gateway that is started beside a running one by mistake ends at once, because the port is taken, and must not take the
running one's traffic control along. Each keeper has a shared flock(2) on one file, which ends with its process.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

from qos.tc.change.ownership import give, make_folder

__all__ = ["Company"]


class Company:
    """This process among those that keep; where the file cannot be written it knows of no other."""

    def __init__(self, file: Path) -> None:
        self._descriptor: int | None = None
        try:
            make_folder(file.parent)
            self._descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            give(self._descriptor, file.parent)
            fcntl.flock(self._descriptor, fcntl.LOCK_SH)  # nobody has it for himself longer than `alone` takes
        except OSError:
            self.close()

    def alone(self) -> bool:
        """Whether nobody else keeps. From here on this one does not count any more: of two that end, one is last."""
        if self._descriptor is None:
            return True
        try:
            fcntl.flock(self._descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
        finally:
            fcntl.flock(self._descriptor, fcntl.LOCK_UN)
        return True

    def close(self) -> None:
        """No part of it any more."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
