# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest

from proxy.state import state_directory

HOME = {"HOME": "/home/ada"}


@pytest.mark.parametrize(
    ("chosen", "environ", "root", "expected"),
    [
        (Path("here"), {"STATE_DIRECTORY": "/var/lib/unit"}, True, "here"),
        (None, {"STATE_DIRECTORY": "/var/lib/unit"}, True, "/var/lib/unit"),
        (None, {"STATE_DIRECTORY": "/var/lib/one:/var/lib/two"}, False, "/var/lib/one"),
        (None, {"STATE_DIRECTORY": ""}, True, "/var/lib/inferlane"),
        (None, {"XDG_STATE_HOME": "/somewhere"}, True, "/var/lib/inferlane"),
        (None, {**HOME, "XDG_STATE_HOME": "/home/ada/state"}, False, "/home/ada/state/inferlane"),
        (None, {**HOME, "XDG_STATE_HOME": "relative"}, False, "/home/ada/.local/state/inferlane"),
        (None, HOME, False, "/home/ada/.local/state/inferlane"),
    ],
)
def test_the_first_that_is_given_counts(chosen, environ, root, expected):
    assert state_directory(chosen, environ=environ, root=root) == Path(expected)
