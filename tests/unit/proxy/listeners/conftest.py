# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

import pytest_asyncio

from tests.fakes.http1_site import Site
from tests.fakes.walk import Answer, echo


@pytest_asyncio.fixture
async def site_with() -> AsyncIterator[Callable[..., Awaitable[Site]]]:
    """HTTP/1.1 doors with a walk of the test's, closed afterwards."""
    sites: list[Site] = []

    async def make(answer: Answer, **options: Any) -> Site:
        site = Site(answer, **options)
        sites.append(site)
        await site.start()
        return site

    yield make
    for site in sites:
        await site.close()


@pytest_asyncio.fixture
async def site(site_with) -> Site:
    """One that gives every body back."""
    return await site_with(echo)
