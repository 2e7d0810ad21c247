# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno

import pytest

from qos.tc.errors import KernelError
from qos.tc.kernel.probe import probe

# What a kernel answers is in tests/integration/test_tc_door.py and tests/kernel/test_tc_door.py.


def test_a_namespace_that_is_not_there_is_an_error():
    with pytest.raises(KernelError) as caught:
        probe("no-such-namespace")
    assert caught.value.errno == errno.ENOENT


@pytest.mark.parametrize("written", ["000003e8 00000001 000f4240 3b9aca00\n", "", "what?"])
def test_other_ticks_than_ours_are_an_error(tmp_path, written):
    (tmp_path / "psched").write_text(written)
    with pytest.raises(KernelError, match=r"read .*psched: "):
        probe(None, ticks=tmp_path / "psched")
