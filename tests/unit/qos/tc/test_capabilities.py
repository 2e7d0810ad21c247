# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec
import pytest

from qos.tc.capabilities import config_for
from tests.fakes.kernels import SMALL


@pytest.mark.parametrize("kind", ["htb", "bfifo", "u32", "bpf", "mirred", "ifb", "clsact"])
def test_a_kernel_has_what_it_refused_nothing_of(kind):
    assert SMALL.lacks(kind) is None


def test_what_it_lacks_is_told_with_its_words_and_the_option_that_gives_it():
    assert SMALL.lacks("cake") == (
        "cake: not in this kernel (6.18: Specified qdisc kind is unknown); CONFIG_NET_SCH_CAKE=m gives it"
    )


def test_what_nobody_asked_for_and_nobody_knows():
    assert SMALL.lacks("codel") == "codel: not in this kernel (6.18: not asked)"


def test_what_the_kernel_has_and_a_process_may_not_use_is_not_a_matter_of_its_config():
    said = "Operation not permitted: CAP_BPF is needed, too"
    denied = msgspec.structs.replace(SMALL, classifiers={"bpf": said})
    assert denied.lacks("bpf") == f"bpf: {said}"
    assert (config_for("bpf", said), config_for("bpf", "TC classifier not found")) == ("", "CONFIG_NET_CLS_BPF")
