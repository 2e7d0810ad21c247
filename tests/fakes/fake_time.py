# SPDX-License-Identifier: Apache-2.0
"""An event loop whose clock stands still until a test moves it."""

from __future__ import annotations

import asyncio


class FakeTimeLoop(asyncio.SelectorEventLoop):
    """Timers fire when `advance` passes them; nothing ever sleeps."""

    def __init__(self) -> None:
        super().__init__()
        self.now = 1000.0

    def time(self) -> float:
        return self.now

    def settle(self) -> None:
        """Run what is ready, and what that makes ready, until tasks only wait for the test."""
        for _ in range(10):
            self.run_until_complete(asyncio.sleep(0))

    def advance(self, seconds: float) -> None:
        """Move the clock and run what has become due."""
        self.now += seconds
        self.settle()

    def finish(self) -> None:
        """Cancel what still waits, and close."""
        for task in asyncio.all_tasks(self):
            task.cancel()
        self.settle()
        self.close()
