# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import signal
import threading
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from inferlane.blocking import BlockingClient
from inferlane.errors import ConnectionFailed
from inferlane.wire import Type
from tests.fakes.udp_gateway import udp_gateway


@pytest.fixture
def gateway(question):
    """A gateway in a thread of its own, as another machine's would be; a model named "silent" is never answered."""
    ready, done, found, asked = threading.Event(), asyncio.Event(), [], threading.Event()

    def answer(heard):
        asked.set()
        if heard.header.model == "interrupting":
            signal.pthread_kill(threading.main_thread().ident, signal.SIGINT)
        if heard.header.model == "magika":
            heard.send(type=Type.REPLY, status=200, body=question.body, json_length=question.json_length)

    async def serve():
        with udp_gateway(answer) as one:
            found.extend([one, asyncio.get_running_loop()])
            one.asked = asked
            ready.set()
            await done.wait()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    ready.wait()
    yield found[0]
    found[1].call_soon_threadsafe(done.set)
    thread.join()


def url_of(gateway):
    return f"udp://127.0.0.1:{gateway.port}"


def test_a_program_without_a_loop_gets_its_answer(gateway, question):
    with BlockingClient(url_of(gateway)) as client:
        reply = client.infer("magika", question.inputs, cls="batch", timeout=30.0)

    np.testing.assert_array_equal(reply.outputs["target_label"], question.outputs["target_label"])


def test_many_threads_share_a_client(gateway, question):
    with BlockingClient(url_of(gateway)) as client, ThreadPoolExecutor(8) as threads:
        replies = list(threads.map(lambda _: client.infer("magika", question.inputs), range(64)))

    assert len({reply.request_id for reply in replies}) == 64
    assert len({heard.client for heard in gateway.heard}) == 1


def test_closing_ends_what_other_threads_wait_for(gateway, question):
    client = BlockingClient(url_of(gateway))
    with ThreadPoolExecutor(1) as threads:
        waiting = threads.submit(client.infer, "silent", question.inputs)
        gateway.asked.wait()
        client.close()

        with pytest.raises(ConnectionFailed, match="the client was closed"):
            waiting.result()
    client.close()
    with pytest.raises(ConnectionFailed, match="the client is closed"):
        client.infer("magika", question.inputs)
    assert not client._thread.is_alive()


def test_an_interrupted_wait_cancels_the_request(gateway, question):
    with BlockingClient(url_of(gateway)) as client:
        with pytest.raises(KeyboardInterrupt):
            client.infer("interrupting", question.inputs)
        client.infer("magika", question.inputs)  # what was said before has arrived by now

    assert gateway.cancelled.qsize() == 1


def test_errors_of_the_caller_are_raised_where_the_call_is(gateway, question):
    with pytest.raises(ValueError, match="scheme"):
        BlockingClient("ftp://host")
    with BlockingClient(url_of(gateway)) as client, pytest.raises(ValueError, match="timeout"):
        client.infer("magika", question.inputs, timeout=-1)
