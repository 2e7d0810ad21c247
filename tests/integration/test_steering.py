# SPDX-License-Identifier: Apache-2.0
"""Workers on one address: clients keep theirs when their addresses change, and are told when it is gone."""

from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path

import curl_cffi
import pytest
from curl_cffi import CurlHttpVersion

from proxy.listeners import strangers
from tests.fakes.raw_quic import PATIENCE_S, RawClient, http3, section
from tests.fakes.steered import Workers, workers

PLACES = 4
INFER = section(b"/v2/models/m/infer", (b"content-type", b"application/json"))


@pytest.fixture
async def site(tmp_path: Path) -> AsyncIterator[Workers]:
    async with workers(tmp_path, places=2 * PLACES) as site:
        site.start(range(PLACES))
        yield site


async def ask(client: RawClient, body: bytes = b'{"inputs": []}') -> None:
    answer = await client.ask(INFER, body)
    assert (answer.status, bytes(answer.body)) == (200, body)


async def move(client: RawClient, address: tuple[str, int]) -> None:
    """Another port of its own, which the client does not hear of: what a NAT does."""
    old = client._transport
    await asyncio.get_running_loop().create_datagram_endpoint(lambda: client, remote_addr=address)
    assert old is not None
    old.close()


async def test_clients_whose_addresses_change_keep_their_worker(site: Workers) -> None:
    """Rebinding, and migration to another connection id as well."""
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(http3(site.address)) for _ in range(12)]
        for turn in range(4):
            for client in clients:
                if turn % 2:
                    client.quic.change_connection_id()
                await move(client, site.address)
                await ask(client)
        assert sum(site.served().values()) == 4 * len(clients)
        assert sum(served > 0 for served in site.served().values()) > 1
        assert site.counts == {"handshakes": len(clients)}  # nothing stray, nothing misdirected
        for client in clients:
            assert client._transport is not None
            client._transport.close()


async def test_an_upgrade_takes_what_is_new_and_leaves_what_is_there(site: Workers) -> None:
    async with AsyncExitStack() as stack:
        old = [await stack.enter_async_context(http3(site.address)) for _ in range(6)]
        site.start(range(PLACES, 2 * PLACES), generation=1)
        new = [await stack.enter_async_context(http3(site.address)) for _ in range(6)]
        for _ in range(3):
            for client in (*old, *new):
                await ask(client)
        served = site.served()
        assert sum(served[place] for place in range(PLACES)) == 3 * len(old)
        assert sum(served[place] for place in range(PLACES, 2 * PLACES)) == 3 * len(new)
        assert site.counts == {"handshakes": 12}


async def test_a_packet_that_got_to_the_wrong_worker_ends_nothing(site: Workers) -> None:
    """The kernel steers a train by its first datagram. It is lost there, as any packet may be, and sent again."""
    async with http3(site.address) as client:
        await ask(client)
        (place,) = (place for place, served in site.served().items() if served)
        for other, worker in site.workers.items():
            if other != place:
                worker.listener.receive(b"\x41" + client.quic._peer_cid.cid + bytes(60), ("127.0.0.1", 9), 0)
        await ask(client)
        assert site.counts["misdirected"] == PLACES - 1
        assert site.counts["stateless_resets"] == 0


async def gtlsclient(site: Workers, *switches: str) -> tuple[int, str]:
    host, port = site.address
    process = await asyncio.create_subprocess_exec(
        *("gtlsclient", "--exit-on-all-streams-close", "--no-quic-dump", "--no-http-dump", "--handshake-timeout=60s"),
        *(*switches, host, str(port), f"https://{host}:{port}/v2"),
        stdout=asyncio.subprocess.PIPE,
        stderr=asyncio.subprocess.STDOUT,
    )
    try:
        async with asyncio.timeout(PATIENCE_S):
            printed, _ = await process.communicate()
    except TimeoutError:
        process.kill()
        await process.wait()
        raise
    assert process.returncode is not None
    return process.returncode, printed.decode()


@pytest.mark.needs_gtlsclient
async def test_a_crashed_worker_s_client_is_told_by_a_stateless_reset(site: Workers) -> None:
    """It is done at once, and does not wait for its idle timeout, here longer than the test."""
    asked = asyncio.create_task(gtlsclient(site, "--delay-stream=1s", "--timeout=600s"))
    async with asyncio.timeout(PATIENCE_S):
        while not site.counts["handshakes"]:
            await asyncio.sleep(0.01)
        await asyncio.sleep(0.2)  # the handshake's last packets are through
    (place,) = (place for place, worker in site.workers.items() if len(worker.listener))
    site.crash(place)
    _, printed = await asked
    assert site.counts["stateless_resets"] >= 1, printed
    assert ":status: 200" not in printed


@pytest.mark.needs_gtlsclient
async def test_a_ticket_is_good_at_every_worker(site: Workers, tmp_path: Path) -> None:
    session = f"--session-file={tmp_path / 'session'}"
    for run in range(6):
        code, printed = await gtlsclient(site, session)
        assert code == 0 and "[:status: 200]" in printed
        assert sum(worker.listener.resumed for worker in site.workers.values()) == run
    assert sum(served > 0 for served in site.served().values()) > 1


@pytest.mark.needs_gtlsclient
async def test_a_client_under_pressure_proves_its_address(site: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "RETRY_FROM", 0)
    code, printed = await gtlsclient(site)
    assert code == 0 and "[:status: 200]" in printed
    assert site.counts["retries"] == 1 and re.search(r"Retry", printed)


async def test_curl_goes_through_a_retry(site: Workers, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(strangers, "RETRY_FROM", 0)
    host, port = site.address
    async with curl_cffi.AsyncSession(http_version=CurlHttpVersion.V3ONLY, verify=False) as session:
        answer = await session.post(f"https://{host}:{port}/v2/models/m/infer", data=b"{}", timeout=PATIENCE_S)
    assert (answer.status_code, answer.content) == (200, b"{}")
    assert site.counts["retries"] >= 1


async def test_new_clients_get_in_while_others_hold_every_half_open_place(site: Workers, monkeypatch) -> None:
    """A flood of first packets, each from another connection: whoever comes back to us is served all the same."""
    monkeypatch.setattr(strangers, "RETRY_FROM", 8)
    host, port = site.address
    flood = [
        b"\xc3\x00\x00\x00\x01\x08" + number.to_bytes(8, "big") + b"\x00\x00\x44\x96" + bytes(1200 - 18)
        for number in range(400)
    ]
    transport, _ = await asyncio.get_running_loop().create_datagram_endpoint(
        asyncio.DatagramProtocol, remote_addr=(host, port)
    )
    try:
        for datagram in flood:
            transport.sendto(datagram)
            await asyncio.sleep(0)
        async with asyncio.timeout(PATIENCE_S):
            while site.counts["retries"] < len(flood) - 8 * PLACES:
                await asyncio.sleep(0.01)
        async with http3(site.address) as client:
            await ask(client)
        assert all(len(worker.listener) <= 8 + 1 for worker in site.workers.values())
    finally:
        transport.close()
