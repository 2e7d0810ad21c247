# SPDX-License-Identifier: Apache-2.0
"""Packets that wait, by device and handle."""

from __future__ import annotations

import errno

import pytest

from qos.tc.errors import KernelError
from qos.tc.reconcile.backlogs import backlogs
from tests.fakes.fake_kernel import FakeKernel
from tests.fakes.tc_states import TREE, one


def test_each_queue_is_counted_by_its_class_and_its_own_handle() -> None:
    kernel = FakeKernel.of(one(TREE))
    kernel.devices["eth0"].waiting = {0x51A0016: 3, 0x51A0024: 4}
    found = backlogs(kernel, ["eth0"])  # type: ignore[arg-type]  # the door's interface, no subclass
    assert found["eth0", 0x51A0016] == found["eth0", 0x160000] == 3
    assert found["eth0", 0x51A0000] == 7
    assert found["eth0", 0] == 0


@pytest.mark.parametrize("code", [errno.ENOENT, errno.EPERM])
def test_without_a_queue_of_the_kernels_own_nothing_waits_in_it(code: int) -> None:
    class Refusing(FakeKernel):
        def backlog(self, device: str, handle: int) -> tuple[int, int]:
            raise KernelError(code, "there is none", f"{device} {handle}")

    kernel = Refusing.of(one(TREE))
    if code == errno.ENOENT:
        assert backlogs(kernel, ["eth0"])["eth0", 0] == 0  # type: ignore[arg-type]  # as above
    else:
        with pytest.raises(KernelError):
            backlogs(kernel, ["eth0"])  # type: ignore[arg-type]  # as above
