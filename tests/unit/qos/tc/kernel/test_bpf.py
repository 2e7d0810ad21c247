# SPDX-License-Identifier: Apache-2.0
"""What holds without privileges; the rest is in tests/integration/test_tc_classifier.py."""

from __future__ import annotations

import pytest

from qos.tc.errors import KernelError
from qos.tc.kernel.bpf import load, run


def test_an_empty_program_is_refused_with_what_was_tried():
    with pytest.raises(KernelError, match="load the classifier of 0 instructions"):
        load(b"", "inferlane-0123456789ab")


def test_what_is_no_program_cannot_be_run():
    with pytest.raises(KernelError, match="run the classifier on a packet"):
        run(1_000_000, bytes(64))
