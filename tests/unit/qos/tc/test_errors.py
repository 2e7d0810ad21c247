# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import errno

from qos.tc.errors import KernelError


def test_an_error_says_in_one_line_what_was_tried_and_what_the_kernel_said():
    error = KernelError(errno.EINVAL, "Parent Qdisc doesn't exists", "eth0: add filter u32")
    assert str(error) == "eth0: add filter u32: Parent Qdisc doesn't exists"
    assert (error.errno, error.said, error.doing) == (22, "Parent Qdisc doesn't exists", "eth0: add filter u32")
