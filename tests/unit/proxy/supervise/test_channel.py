# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import os
import socket
from collections.abc import AsyncIterator

import msgspec
import pytest

from proxy.supervise import channel as module
from proxy.supervise.channel import MOST_AT_ONCE, Channel, ChannelClosed, ChannelError, channel_pair


@pytest.fixture
async def both() -> AsyncIterator[tuple[Channel, Channel]]:
    ours, its = map(Channel, channel_pair())
    await ours.start()
    await its.start()
    yield ours, its
    await asyncio.gather(ours.close(), its.close())


async def test_both_sides_ask_and_answer(both: tuple[Channel, Channel]) -> None:
    async def twice(number: int) -> int:
        return 2 * number

    for here, there in (both, both[::-1]):
        there.handlers["twice"] = twice
        assert await asyncio.gather(*(here.ask("twice", n, timeout_s=5.0) for n in range(20))) == list(range(0, 40, 2))


async def test_what_a_payload_can_be(both: tuple[Channel, Channel]) -> None:
    async def same(payload: object) -> object:
        return payload

    ours, its = both
    its.handlers["same"] = same
    payload = {"bytes": b"\x00\xff", "list": [1, None, 0.5, True], "text": "µ"}
    assert await ours.ask("same", payload, timeout_s=5.0) == payload


async def test_words_come_in_order_and_unknown_ones_are_nobodys(both: tuple[Channel, Channel]) -> None:
    ours, its = both
    heard: list[int] = []
    its.told["word"] = heard.append
    for n in range(5):
        ours.tell("unknown", n)
        ours.tell("word", n)
    await asyncio.sleep(0)
    with pytest.raises(ChannelError, match="nothing is not known here"):
        await ours.ask("nothing", timeout_s=5.0)
    assert heard == [0, 1, 2, 3, 4]


async def test_a_complaint_is_told_to_who_asked(both: tuple[Channel, Channel]) -> None:
    async def complain(_: object) -> None:
        raise ValueError("no such thing")

    async def unsayable(_: object) -> object:
        return object()

    ours, its = both
    its.handlers |= {"complain": complain, "unsayable": unsayable}
    with pytest.raises(ChannelError, match=r"^no such thing$"):
        await ours.ask("complain", timeout_s=5.0)
    with pytest.raises(ChannelError, match="object"):
        await ours.ask("unsayable", timeout_s=5.0)


async def test_an_answer_that_comes_too_late_is_forgotten(both: tuple[Channel, Channel]) -> None:
    let_go = asyncio.Event()

    async def later(_: object) -> str:
        await let_go.wait()
        return "late"

    ours, its = both
    its.handlers["later"] = later
    with pytest.raises(TimeoutError, match=r"no answer to later within 0\.01 s"):
        await ours.ask("later", timeout_s=0.01)
    let_go.set()
    assert await ours.ask("later", timeout_s=5.0) == "late"


async def test_the_end_of_one_side_is_heard_by_the_other(both: tuple[Channel, Channel]) -> None:
    async def never(_: object) -> None:
        await asyncio.Event().wait()

    ours, its = both
    its.handlers["never"] = never
    asking = asyncio.create_task(ours.ask("never", timeout_s=30.0))
    await asyncio.sleep(0)
    await its.close()
    with pytest.raises(ChannelClosed, match="the other side is gone"):
        await asking
    await ours.wait_closed()
    assert ours.closed and "closed" in repr(ours)
    ours.tell("word")
    with pytest.raises(ChannelClosed):
        await ours.ask("never", timeout_s=5.0)


async def test_the_last_word_before_hanging_up_is_heard(both: tuple[Channel, Channel]) -> None:
    ours, its = both
    heard: list[bytes] = []
    ours.told["last"] = heard.append
    its.tell("last", bytes(1 << 20))
    await its.close()
    await ours.wait_closed()
    assert heard == [bytes(1 << 20)]


async def test_too_many_questions_at_once_are_refused(both: tuple[Channel, Channel]) -> None:
    let_go = asyncio.Event()

    async def later(_: object) -> None:
        await let_go.wait()

    ours, its = both
    its.handlers["later"] = later
    asking = [asyncio.create_task(ours.ask("later", timeout_s=30.0)) for _ in range(MOST_AT_ONCE)]
    await asyncio.sleep(0)
    with pytest.raises(ChannelError, match="at once"):
        await ours.ask("later", timeout_s=5.0)
    let_go.set()
    await asyncio.gather(*asking)


async def test_a_message_has_a_bound(both: tuple[Channel, Channel], monkeypatch: pytest.MonkeyPatch) -> None:
    async def long(_: object) -> bytes:
        return bytes(2000)

    ours, its = both
    its.handlers["long"] = long
    monkeypatch.setattr(module, "LONGEST", 1000)
    with pytest.raises(ChannelError, match="longer than 1000"):
        await ours.ask("x", bytes(2000), timeout_s=5.0)
    with pytest.raises(ChannelError, match="longer than 1000"):
        await ours.ask("long", timeout_s=5.0)


@pytest.mark.parametrize(
    "said",
    [
        b"\xff\xff\xff\xff",  # a length beyond the bound
        b"\0\0\0\1\xc1",  # a byte that MessagePack does not use
        b"\0\0\0\1\x01",  # no message of ours
        b"\0\0\0\5\1",  # its end comes first
    ],
)
async def test_whoever_cannot_be_understood_is_hung_up_on(said: bytes) -> None:
    ours, its = channel_pair()
    channel = Channel(ours)
    await channel.start()
    its.sendall(said)
    its.shutdown(socket.SHUT_WR)
    await channel.wait_closed()
    assert channel.why
    await channel.close()
    its.close()


async def test_a_side_that_never_reads_has_a_bound_too(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, its = channel_pair()
    channel = Channel(ours)
    await channel.start()
    monkeypatch.setattr(module, "LONGEST", 1 << 20)
    for _ in range(20):
        channel.tell("word", bytes(1 << 19))
    assert channel.closed and "has not read" in channel.why
    its.close()
    await channel.close()


async def test_one_that_was_never_started_closes_its_socket() -> None:
    ours, its = channel_pair()
    channel = Channel(ours)
    with pytest.raises(ChannelClosed, match="not open"):
        await channel.ask("x", timeout_s=1.0)
    await channel.close()
    assert ours.fileno() == -1
    its.close()


async def test_a_struct_crosses_as_plain_data(both: tuple[Channel, Channel]) -> None:
    class Word(msgspec.Struct):
        name: str

    heard: list[object] = []
    ours, its = both
    its.told["word"] = heard.append
    ours.tell("word", Word("a"))
    with pytest.raises(ChannelError):
        await ours.ask("unknown", timeout_s=5.0)
    assert heard == [{"name": "a"}]


async def test_another_program_goes_on_in_the_middle_of_a_message() -> None:
    """And an answer to what the first one asked is nobody's there."""
    sock, other = channel_pair()
    first = Channel(sock)
    await first.start()
    asking = asyncio.create_task(first.ask("slow", timeout_s=30.0))
    said = msgspec.msgpack.encode(["tell", "word", "whole"])
    frame = len(said).to_bytes(4, "big") + said
    late = msgspec.msgpack.encode(["answer", 0, "late", None])
    other.send(frame[:9])
    async with asyncio.timeout(30.0):
        while first.handed().held != frame[:9]:
            await asyncio.sleep(0.01)
    handed = first.handed()
    assert (handed.fd, handed.next_number) == (sock.fileno(), 1) and os.get_inheritable(handed.fd)
    assert first._transport is not None
    first._transport.pause_reading()  # as after an exec, it is no more
    heard: list[object] = []
    second = Channel.adopt(msgspec.structs.replace(handed, fd=os.dup(handed.fd)))
    second.told["word"] = heard.append
    await second.start()
    again = asyncio.create_task(second.ask("again", timeout_s=30.0))
    answer = msgspec.msgpack.encode(["answer", 1, "ours", None])
    other.send(frame[9:] + b"".join(len(each).to_bytes(4, "big") + each for each in (late, answer)))
    assert await again == "ours" and heard == ["whole"]
    other.close()
    await asyncio.gather(first.close(), second.close())
    await asyncio.gather(asking, return_exceptions=True)


async def test_nothing_is_handed_over_while_something_is_to_be_written(both: tuple[Channel, Channel]) -> None:
    ours, _ = both
    ours.tell("long", bytes(4 << 20))
    with pytest.raises(ChannelError, match="does not read"):
        ours.handed()
