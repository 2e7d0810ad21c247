# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np

from inferlane.messages import LONGEST_WAIT_S, Reply, Timing, request_name


def test_a_request_id_has_sixteen_digits():
    assert request_name(255) == "00000000000000ff"
    assert len(request_name(2**64 - 1)) == 16


def test_a_request_is_given_up_at_its_timeout_or_at_last(ask):
    assert ask(started=100.0, timeout_s=0.05).deadline == 100.05
    assert ask(started=100.0, timeout_s=None).deadline == 100.0 + LONGEST_WAIT_S
    assert ask(request_id=255).name == "00000000000000ff"


def test_a_reply_shows_its_shape_and_not_its_tensors():
    reply = Reply(
        model="magika",
        version="",
        outputs={"label": np.zeros((1, 214), dtype=np.float32)},
        timing=Timing(total=0.0125),
        request_id="00",
        served_class="batch",
        dscp_seen=None,
        endpoint=None,
    )

    assert repr(reply) == "<Reply magika: label float32[1, 214]; class batch, 12.500 ms>"
