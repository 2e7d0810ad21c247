# SPDX-License-Identifier: Apache-2.0
"""A pool of two real model servers: taken in turns, and what happens when one of them dies."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

import numpy as np
import pytest

from inferlane import Client
from inferlane.errors import Reason, Refused
from tests.fakes.models import doubling, linear, saved
from tests.fakes.programs import GatewayProgram, ModelServerProgram, model_server, until

X = {"x": np.ones((1, 8), np.float32)}
ENDLESS = {"times": np.array([10**15]), "x": np.ones(1, np.float32)}


@pytest.fixture
def mortal(tmp_path) -> Iterator[ModelServerProgram]:
    """A second server, for the test to kill."""
    for name, model in (("linear", linear()), ("doubling", doubling())):
        (tmp_path / "models" / name).mkdir(parents=True)
        saved(model, tmp_path / "models" / name)
    with model_server(tmp_path / "models", tmp_path / "mortal.log") as running:
        yield running


@pytest.fixture
def gateway_with(start_gateway, model_server, mortal):
    """A gateway whose one pool picks so among both."""

    def start(pick: str) -> GatewayProgram:
        endpoints = ", ".join(f"{{oip: 'http://{each.http}'}}" for each in (model_server, mortal))
        return start_gateway(f"  - {{name: pool, model: '*', pick: {pick}, endpoints: [{endpoints}]}}")

    return start


async def outcome(client: Client) -> str:
    """The endpoint that answered, or the reason why none did."""
    try:
        return (await client.infer("linear", X)).endpoint or "unnamed"
    except Refused as refusal:
        return refusal.reason.label


def idle(gateway: GatewayProgram) -> None:
    """Wait until no endpoint has a request and nobody waits for one."""
    counts = ("inferlane_in_flight", "inferlane_gate_waiting")
    until(lambda: not any(map(gateway.metric, counts)) or None, f"{' and '.join(counts)} to be 0")


async def test_round_robin_takes_turns(gateway_with, model_server, mortal):
    gateway = gateway_with("round_robin")
    async with Client(gateway.url(), ca=gateway.ca) as client:
        answered = [await outcome(client) for _ in range(10)]
    first, second = (f"oip:{each.http}" for each in (model_server, mortal))
    assert answered in ([first, second] * 5, [second, first] * 5)
    assert gateway.metric("inferlane_requests_total", endpoint=first, reason="ok") == 5
    idle(gateway)


@pytest.mark.parametrize("pick", ["round_robin", "least_in_flight"])
async def test_one_dies_and_the_other_answers(gateway_with, model_server, mortal, pick):
    gateway = gateway_with(pick)
    living, dead = (f"oip:{each.http}" for each in (model_server, mortal))
    async with Client(gateway.url(), ca=gateway.ca) as client:
        before = await asyncio.gather(*(outcome(client) for _ in range(8)))
        assert set(before) == {living, dead}
        mortal.program.kill()
        after = await asyncio.gather(*(outcome(client) for _ in range(32)))
    assert set(after) == {living, Reason.BACKEND_FAILED.label}
    assert gateway.metric("inferlane_requests_total", endpoint=dead, reason="backend_failed") == after.count(
        Reason.BACKEND_FAILED.label
    )
    idle(gateway)


async def test_what_was_in_flight_at_the_dead_one_is_refused_and_it_is_asked_again_when_it_is_back(
    start_gateway, mortal, tmp_path
):
    gateway = start_gateway(f"{{oip: 'http://{mortal.http}'}}")
    async with Client(gateway.url("quic"), ca=gateway.ca) as client:
        endless = [asyncio.create_task(client.infer("doubling", ENDLESS)) for _ in range(4)]

        def all_there() -> bool | None:
            return gateway.metric("inferlane_in_flight", pool="pool") == len(endless) or None

        await asyncio.to_thread(until, all_there, "the requests to be in flight")
        mortal.program.kill()
        for each in endless:
            with pytest.raises(Refused) as refused:
                await each
            assert refused.value.reason is Reason.BACKEND_FAILED
        idle(gateway)
        with model_server(tmp_path / "models", tmp_path / "again.log", http=mortal.http):
            reply = await client.infer("linear", X)
    assert reply.outputs["y"].shape == (1, 5)


async def test_a_client_that_cancels_frees_the_place_at_the_far_server(start_gateway, mortal):
    gateway = start_gateway(f"{{oip: 'http://{mortal.http}', slots: 1}}")
    async with Client(gateway.url("quic"), ca=gateway.ca) as client:
        with pytest.raises(Refused) as refused:
            await client.infer("doubling", ENDLESS, timeout=0.5)
        assert refused.value.reason is Reason.DEADLINE
        # Waits for the one place here, and then for the one at the model, which the endless run must have left.
        reply = await client.infer("doubling", {"times": np.array([2]), "x": np.ones(1, np.float32)})
    assert reply.outputs["y"].tolist() == [4.0]
    idle(gateway)
