# SPDX-License-Identifier: Apache-2.0
"""The admin address over a real socket."""

from __future__ import annotations

from collections.abc import AsyncIterator

import aiohttp
import pytest
import pytest_asyncio

from proxy.telemetry.admin import AdminServer
from proxy.telemetry.metrics import Metrics
from qos.diagnosis import report


class Site:
    """An admin server, what is said to be missing, and a client."""

    def __init__(self, session: aiohttp.ClientSession) -> None:
        self.missing: list[str] = []
        documents = {"/v1/diagnose": self.diagnose, "/v1/pools": self.pools}
        self.server = AdminServer("127.0.0.1", 0, Metrics(version="0.1.0").answer, self.not_ready, documents)
        self.session = session

    async def not_ready(self) -> list[str]:
        return self.missing

    async def diagnose(self) -> object:
        return report([])

    async def pools(self) -> object:
        raise RuntimeError("no document today")

    async def ask(self, path: str, method: str = "GET", **fields: str) -> tuple[int, str, str]:
        host, port = self.server.bound
        async with self.session.request(method, f"http://{host}:{port}{path}", headers=fields) as reply:
            return reply.status, reply.content_type, await reply.text()


@pytest_asyncio.fixture
async def site() -> AsyncIterator[Site]:
    async with aiohttp.ClientSession() as session:
        site = Site(session)
        await site.server.start()
        yield site
        await site.server.close()


async def test_metrics(site):
    status, content_type, page = await site.ask("/metrics")
    assert (status, content_type) == (200, "text/plain")
    assert 'inferlane_build_info{version="0.1.0"} 1.0' in page


async def test_metrics_as_the_scraper_prefers_them(site):
    status, content_type, page = await site.ask("/metrics", Accept="application/openmetrics-text;version=1.0.0")
    assert (status, content_type) == (200, "application/openmetrics-text")
    assert page.endswith("# EOF\n")


async def test_health(site):
    assert await site.ask("/healthz") == (200, "application/json", '{"alive":true}')


async def test_ready_when_nothing_is_missing(site):
    assert await site.ask("/readyz") == (200, "application/json", '{"ready":true,"not_ready":[]}')


async def test_not_ready_says_what_is_missing(site):
    site.missing = ["pool digits"]
    assert await site.ask("/readyz") == (503, "application/json", '{"ready":false,"not_ready":["pool digits"]}')


async def test_an_unknown_path_says_which_there_are(site):
    status, content_type, page = await site.ask("/v1/config")
    assert (status, content_type) == (404, "application/json")
    assert page == '{"error":"no such path","paths":["/healthz","/metrics","/readyz","/v1/diagnose","/v1/pools"]}'


async def test_documents_have_paths_of_their_own(site):
    status, content_type, page = await site.ask("/v1/diagnose")
    assert (status, content_type) == (200, "application/json")
    assert page == '{"window_s":300.0,"holds":true,"promises":[],"silent":[]}'
    assert (await site.ask("/v1/diagnose", "DELETE"))[0] == 405


async def test_a_document_that_fails_fails_alone(site, caplog):
    assert (await site.ask("/v1/pools"))[0] == 500
    assert "no document today" in caplog.text
    assert (await site.ask("/healthz"))[0] == 200


async def test_reading_only(site):
    assert await site.ask("/metrics", "POST") == (405, "application/json", '{"error":"reading only: GET"}')


async def test_a_taken_port_is_one_line(site):
    second = AdminServer(*site.server.bound, Metrics(version="0").answer, site.not_ready)
    with pytest.raises(OSError, match=r"cannot listen on tcp 127\.0\.0\.1:\d+: Address already in use"):
        await second.start()
    await second.close()
    assert "stopped" in repr(second)


async def test_closed_it_answers_no_more(site):
    assert "serving" in repr(site.server)
    await site.server.close()
    with pytest.raises(aiohttp.ClientConnectionError):
        await site.ask("/healthz")
