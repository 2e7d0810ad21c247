# SPDX-License-Identifier: Apache-2.0
"""The door to the real kernel, which refuses the changes that a test names."""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from qos.tc.kernel.netlink import Kernel, KernelError


class FailingKernel(Kernel):
    """Counts its changes, and refuses those of these numbers."""

    changes = 0
    fails: Collection[int] = ()

    def _change(self) -> None:
        self.changes += 1
        if self.changes in self.fails:
            raise KernelError(105, "injected", "a change")

    def add(self, *arguments: Any, **named: Any) -> None:
        self._change()
        super().add(*arguments, **named)

    def change(self, *arguments: Any, **named: Any) -> None:
        self._change()
        super().change(*arguments, **named)

    def replace(self, *arguments: Any, **named: Any) -> None:
        self._change()
        super().replace(*arguments, **named)

    def delete(self, *arguments: Any, **named: Any) -> None:
        self._change()
        super().delete(*arguments, **named)

    def add_ifb(self, name: str, ifb_for: str) -> None:
        self._change()
        super().add_ifb(name, ifb_for)

    def delete_link(self, name: str) -> None:
        self._change()
        super().delete_link(name)

    def set_table(self, transaction: str) -> None:
        self._change()
        super().set_table(transaction)

    def set_gso_max_size(self, name: str, size: int) -> None:
        self._change()
        super().set_gso_max_size(name, size)
