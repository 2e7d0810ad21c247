# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from backends.routes import Routes
from tests.fakes.endpoints import pool_of

EMBED = pool_of(name="embed")
LARGE = pool_of(name="large")
REST = pool_of(name="rest")

ROUTES = Routes(
    [
        (EMBED, ["embed-*", "rank"]),
        (LARGE, ["embed-large", "embed-x*", "llama-[78]b", "v?"]),
        (REST, ["*", "rank"]),
    ]
)


@pytest.mark.parametrize(
    ("model", "pool"),
    [
        ("embed-small", EMBED),
        ("embed-large", LARGE),  # a name goes before a pattern
        ("embed-xl", EMBED),  # of patterns the first
        ("rank", EMBED),  # of names the first
        ("llama-7b", LARGE),
        ("llama-9b", REST),
        ("v1", LARGE),
        ("v12", REST),
        ("EMBED-small", REST),  # letters count as they are
        ("embed-\n", EMBED),
        ("", REST),
    ],
)
def test_from_a_model_to_its_pool(model, pool):
    assert ROUTES.pool_for(model) is pool


def test_a_model_that_nobody_serves():
    routes = Routes([(EMBED, ["embed-*"]), (LARGE, ["large"])])
    assert routes.pool_for("magika") is None
    assert routes.pools == (EMBED, LARGE)
    assert repr(routes) == "<Routes 1 names and 1 patterns to 2 pools>"
