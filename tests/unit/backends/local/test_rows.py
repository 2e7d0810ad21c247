# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from backends.local.rows import join_rows, split_rows


@given(st.lists(st.integers(1, 4), min_size=1, max_size=5), st.integers(0, 4))
def test_what_is_joined_splits_again(rows, padding):
    requests = [{"x": np.random.default_rng(index).random((count, 3))} for index, count in enumerate(rows)]
    batch = join_rows(requests, padding=padding)
    assert batch["x"].shape == (sum(rows) + padding, 3)
    for request, part in zip(requests, split_rows(batch, rows), strict=True):
        assert np.array_equal(part["x"], request["x"])


def test_one_request_is_not_copied():
    x = np.zeros((2, 3))
    assert join_rows([{"x": x}])["x"] is x


def test_padding_repeats_the_last_row():
    batch = join_rows([{"x": np.array([[1], [2]]), "s": np.array(["a", "b"], object)}], padding=2)
    assert batch["x"].tolist() == [[1], [2], [2], [2]]
    assert batch["s"].tolist() == ["a", "b", "b", "b"]
