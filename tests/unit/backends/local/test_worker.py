# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import gc
import threading
import time
import weakref

import numpy as np
import pytest
from structlog.testing import capture_logs

from backends.local.worker import Answer, Job, Worker
from inferlane.errors import Reason, Refused
from tests.fakes.runs import FakeModel


def job(*values: float, outputs=("y",), rank=0, key="same", timeout_s=60.0) -> Job:
    """A request with one row a value."""
    now = time.monotonic()
    return Job(
        rows=len(values),
        key=key,
        rank=rank,
        arrival=now,
        deadline=now + timeout_s,
        feeds={"x": np.array(values)},
        outputs=outputs,
        answer=asyncio.get_running_loop().create_future(),
    )


def y_of(answer: Answer) -> list[float]:
    return answer.outputs["y"].tolist()


def threads_of(name: str) -> list[threading.Thread]:
    return [thread for thread in threading.enumerate() if thread.name.startswith(f"inferlane-{name}-")]


async def ended(threads: list[threading.Thread]) -> bool:
    """Whether they do, which is a moment after they said so."""
    for thread in threads:
        await asyncio.to_thread(thread.join, 60.0)
    return not any(thread.is_alive() for thread in threads)


@pytest.fixture
async def model():
    return FakeModel()


@pytest.fixture
async def work(model):
    """Starts workers, and closes them at the end."""
    workers = []

    def start(*, slots=1, max_size=4, max_wait_s=0.0, pads=False) -> Worker:
        worker = Worker("fake", model.new_run, slots=slots, max_size=max_size, max_wait_s=max_wait_s, pads=pads)
        worker.start()
        workers.append(worker)
        return worker

    yield start
    model.release()
    threads = threads_of("fake")
    for worker in workers:
        await worker.close()
    assert await ended(threads)


async def submitted(worker: Worker, *jobs: Job) -> list[asyncio.Task[Answer]]:
    """The jobs, given to the worker in this order."""
    tasks = [asyncio.create_task(worker.submit(each)) for each in jobs]
    await asyncio.sleep(0)  # each task has run up to its wait
    return tasks


async def test_a_request_is_answered(work):
    answer = await work().submit(job(1.0, 2.0, outputs=("z", "y")))
    assert list(answer.outputs) == ["z", "y"]
    assert y_of(answer) == [2.0, 4.0]
    assert answer.compute_s > 0


async def test_tensors_are_freed_as_soon_as_nobody_holds_them(work):
    gc.collect()
    gc.disable()
    try:
        asked = job(1.0)
        feed = weakref.ref(asked.feeds["x"])
        answer = await work().submit(asked)
        output = weakref.ref(answer.outputs["y"])
        del asked, answer
        await asyncio.sleep(0)
        assert (feed(), output()) == (None, None)
    finally:
        gc.enable()


async def test_what_arrives_during_a_run_is_the_next_batch(work, model):
    worker = work()
    model.hold()
    tasks = await submitted(worker, job(1.0))
    await model.began()
    tasks += await submitted(worker, job(2.0, 3.0), job(4.0), job(5.0, 6.0))
    assert repr(worker) == "<Worker fake, 1 of 1 busy, <Batcher 3 waiting, 5 rows, max 4>>"
    model.release()
    assert [y_of(await task) for task in tasks] == [[2.0], [4.0, 6.0], [8.0], [10.0, 12.0]]
    assert model.rows() == [1, 3, 2]


async def test_each_slot_runs_one_batch(work, model):
    worker = work(slots=2, max_size=1)
    model.hold()
    tasks = await submitted(worker, job(1.0), job(2.0), job(3.0))
    await model.began()
    await model.began()
    assert model.rows() == [1, 1]
    model.release()
    assert [y_of(await task) for task in tasks] == [[2.0], [4.0], [6.0]]


async def test_a_better_class_overtakes_those_that_wait(work, model):
    worker = work(max_size=1)
    model.hold()
    tasks = await submitted(worker, job(1.0))
    await model.began()
    tasks += await submitted(worker, job(2.0, rank=2), job(3.0, rank=1))
    model.release()
    await asyncio.gather(*tasks)
    assert [feeds["x"].tolist() for feeds in model.feeds] == [[1.0], [3.0], [2.0]]


async def test_unequal_shapes_do_not_meet(work, model):
    worker = work()
    model.hold()
    tasks = await submitted(worker, job(1.0))
    await model.began()
    tasks += await submitted(worker, job(2.0, key="a"), job(3.0, key="b"), job(4.0, key="a"))
    model.release()
    await asyncio.gather(*tasks)
    assert model.rows() == [1, 2, 1]


async def test_a_lone_request_goes_when_it_has_waited_long_enough(work, model):
    answer = await work(max_wait_s=0.005).submit(job(1.0))
    assert y_of(answer) == [2.0]


async def test_a_full_batch_goes_at_once(work, model):
    worker = work(max_wait_s=1000.0)
    tasks = await submitted(worker, job(1.0), job(2.0, 3.0), job(4.0))
    assert [y_of(await task) for task in tasks] == [[2.0], [4.0, 6.0], [8.0]]
    assert model.rows() == [4]


async def test_each_request_gets_the_outputs_that_it_asked_for(work):
    worker = work(max_wait_s=1000.0, max_size=2)
    first, second = await submitted(worker, job(1.0, outputs=("z",)), job(2.0, outputs=("y", "z")))
    assert {name: each.tolist() for name, each in (await first).outputs.items()} == {"z": [1.0]}
    assert {name: each.tolist() for name, each in (await second).outputs.items()} == {"y": [4.0], "z": [2.0]}


@pytest.mark.parametrize(("rows", "run"), [(1, 1), (2, 2), (3, 4), (5, 6), (6, 6)])
async def test_batches_are_padded_to_buckets_where_shapes_cost(work, model, rows, run):
    answer = await work(max_size=6, pads=True).submit(job(*range(rows)))
    assert y_of(answer) == [2.0 * each for each in range(rows)]
    assert model.rows() == [run]


async def test_who_goes_away_while_waiting_is_not_run(work, model):
    worker = work(max_size=1)
    model.hold()
    running, waiting = await submitted(worker, job(1.0), job(2.0))
    await model.began()
    waiting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await waiting
    assert "0 waiting" in repr(worker)
    model.release()
    assert y_of(await running) == [2.0]
    assert model.rows() == [1]
    assert model.stopped == 0


async def test_a_run_that_nobody_waits_for_is_stopped(work, model):
    worker = work(max_size=2, max_wait_s=1000.0)
    model.hold()
    first, second = await submitted(worker, job(1.0), job(2.0))
    await model.began()
    first.cancel()
    with pytest.raises(asyncio.CancelledError):
        await first
    assert model.stopped == 0
    second.cancel()
    with pytest.raises(asyncio.CancelledError):
        await second
    assert model.stopped == 1
    assert y_of(await worker.submit(job(3.0, 4.0))) == [6.0, 8.0]


async def test_the_others_of_a_batch_are_answered_though_one_went_away(work, model):
    worker = work(max_size=2, max_wait_s=1000.0)
    model.hold()
    gone, stays = await submitted(worker, job(1.0), job(2.0))
    await model.began()
    gone.cancel()
    model.release()
    assert y_of(await stays) == [4.0]


async def test_a_passed_deadline_is_refused_and_not_run(work, model):
    with pytest.raises(Refused) as raised:
        await work().submit(job(1.0, timeout_s=-1.0))
    assert raised.value.reason is Reason.DEADLINE
    assert model.feeds == []


async def test_one_bad_request_does_not_fail_its_company(work, model):
    def picky(feeds):
        if 13.0 in feeds["x"]:
            raise Refused(Reason.INVALID_TENSOR, "13")
        return {"y": feeds["x"]}

    model.compute = picky
    worker = work(max_size=3, max_wait_s=1000.0)
    good, bad, other = await submitted(worker, job(1.0), job(13.0), job(2.0))
    assert (y_of(await good), y_of(await other)) == ([1.0], [2.0])
    with pytest.raises(Refused, match="13"):
        await bad
    assert model.rows() == [3, 1, 1, 1]


async def test_a_failed_run_leaves_the_slot_usable(work, model):
    def broken(feeds):
        raise KeyError("nobody expects this")

    worker = work()
    compute, model.compute = model.compute, broken
    with pytest.raises(KeyError, match="nobody expects this"):
        await worker.submit(job(1.0))
    model.compute = compute
    assert y_of(await worker.submit(job(1.0))) == [2.0]


@pytest.mark.parametrize("result", [np.zeros(1), np.array(1.0)])
async def test_a_model_that_does_not_keep_rows_is_told_from_a_good_one(work, model, result):
    model.compute = lambda feeds: {"y": result if len(feeds["x"]) > 1 else feeds["x"]}
    worker = work(max_size=2, max_wait_s=1000.0, pads=True)
    tasks = await submitted(worker, job(1.0), job(2.0))
    assert [y_of(await task) for task in tasks] == [[1.0], [2.0]]
    with pytest.raises(Refused, match=r"output 'y' has shape .* for a batch of 4 rows: this model cannot be batched"):
        await work(max_size=4, pads=True).submit(job(1.0, 2.0, 3.0))


async def test_closing_refuses_all_and_stops_what_runs(work, model):
    worker = work(max_size=1)
    model.hold()
    running, waiting = await submitted(worker, job(1.0), job(2.0))
    await model.began()
    threads = threads_of("fake")
    await worker.close()
    for task in (running, waiting, asyncio.create_task(worker.submit(job(3.0)))):
        with pytest.raises(Refused) as raised:
            await task
        assert raised.value.reason is Reason.NO_ENDPOINT
    assert model.stopped == 1
    assert len(threads) == 1
    assert await ended(threads)


async def test_a_run_that_cannot_be_stopped_is_left_behind(work, model, monkeypatch):
    monkeypatch.setattr("backends.local.worker._CLOSE_S", 0.0)
    worker = work()
    model.hold()
    model.deaf = True
    (task,) = await submitted(worker, job(1.0))
    await model.began()
    (thread,) = threads_of("fake")
    with capture_logs() as logs:
        await worker.close()
    with pytest.raises(Refused):
        await task
    assert [entry["event"] for entry in logs] == ["model_thread_left_behind"]
    model.release()
    assert await ended([thread])


def test_a_thread_whose_loop_is_gone_ends_with_a_word():
    async def leave() -> FakeModel:
        model = FakeModel()
        model.hold()
        model.deaf = True
        worker = Worker("left", model.new_run, slots=1, max_size=1, max_wait_s=0.0, pads=False)
        worker.start()
        (task,) = await submitted(worker, job(1.0))
        await model.began()
        task.cancel()
        return model

    with capture_logs() as logs:
        model = asyncio.run(leave())
        (thread,) = threads_of("left")
        model.release()
        thread.join(60.0)
    assert [entry["event"] for entry in logs] == ["model_thread_outlived_loop"]
