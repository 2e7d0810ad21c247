# SPDX-License-Identifier: Apache-2.0
"""What may be changed of endpoints: found by name, done once, told to those who wait."""

from __future__ import annotations

import pytest

from proxy.endpoints import Endpoints, NotDone
from tests.fakes.fleet import watched_pool


async def test_an_endpoint_is_taken_out_once_and_told_as_it_is_then():
    pool, changed = watched_pool("a", "b")[0], []
    endpoints = Endpoints([pool], changed=changed.append, clock=lambda: 100.0)
    for _ in range(2):
        told = await endpoints.drain("digits", "a", draining=True, uid=0)
        assert (told["pool"], told["name"], told["state"]) == ("digits", "a", "draining")
    assert changed == ["digits"]
    assert [each["state"] for each in (await endpoints.pools())["pools"][0]["endpoints"]] == ["draining", "healthy"]


@pytest.mark.parametrize(
    ("pool", "endpoint", "names"), [("x", "a", {"pools": ["digits"]}), ("digits", "x", {"endpoints": ["a"]})]
)
async def test_who_is_not_there_is_said_with_those_who_are(pool, endpoint, names):
    endpoints = Endpoints([watched_pool("a")[0]], changed=lambda _: None)
    with pytest.raises(NotDone) as refused:
        await endpoints.drain(pool, endpoint, draining=True, uid=0)
    assert refused.value.status == 404
    assert names.items() <= refused.value.document.items()
