# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

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
