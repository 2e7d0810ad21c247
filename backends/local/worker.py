# SPDX-License-Identifier: Apache-2.0
"""Runs batches in threads and hands their results back to the event loop.

One thread a slot, one batch in flight a slot. All state lives on the event loop: a thread sees only the batch that it
was given, so there is no lock. A batch that nobody waits for any more is stopped at the model's next node.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from queue import SimpleQueue
from typing import Protocol

import structlog

from backends.local.batcher import Batcher, Entry
from backends.local.providers import buckets
from backends.local.rows import join_rows, split_rows
from inferlane.errors import Reason, Refused
from inferlane.oip import Array

__all__ = ["Answer", "Job", "Run", "Worker"]

log = structlog.get_logger(__name__)

_CLOSE_S = 5.0  # longest wait for a run to notice that it was stopped


class Run(Protocol):
    """One run of the model, which another thread may stop."""

    def __call__(self, outputs: Sequence[str], feeds: Mapping[str, Array]) -> list[Array]:
        """The named outputs. Raises Refused where the model fails on these inputs."""
        ...

    def stop(self) -> None:
        """Make the run fail soon, from any thread."""
        ...


@dataclass(frozen=True, slots=True, eq=False)
class Answer:
    """What the model said."""

    outputs: Mapping[str, Array]
    compute_s: float
    """Wall time of the run; the whole batch's, as each of its requests waited for all of it."""


@dataclass(slots=True, eq=False, kw_only=True)
class Job(Entry):
    """One request's way through the worker."""

    feeds: Mapping[str, Array]
    outputs: Sequence[str]
    answer: asyncio.Future[Answer]
    batch: _Batch | None = None
    """The batch that it runs in, once it does."""


@dataclass(slots=True, eq=False)
class _Batch:
    """What a thread is given, and what it leaves behind."""

    jobs: list[Job]
    run: Run
    padding: int = 0
    outcomes: list[Answer | Exception] = field(default_factory=list)

    def execute(self) -> None:
        """Run it, in the thread. A request whose company failed gets a second try alone: it may be innocent."""
        try:
            self.outcomes.extend(self._answers(self.jobs, self.padding))
        except Exception as error:  # noqa: BLE001  whatever a run raises belongs to the requests in it
            if len(self.jobs) == 1:
                self.outcomes.append(error)
            else:
                self.outcomes.extend(map(self._alone, self.jobs))

    def _alone(self, job: Job) -> Answer | Exception:
        try:
            return self._answers([job], 0)[0]
        except Exception as error:  # noqa: BLE001  as above
            return error

    def _answers(self, jobs: list[Job], padding: int) -> list[Answer]:
        names = jobs[0].outputs if len(jobs) == 1 else list(dict.fromkeys(name for job in jobs for name in job.outputs))
        feeds = join_rows([job.feeds for job in jobs], padding=padding)
        began = time.perf_counter()
        arrays = self.run(names, feeds)
        compute_s = time.perf_counter() - began
        outputs = dict(zip(names, arrays, strict=True))
        if len(jobs) == 1 and not padding:
            return [Answer(outputs, compute_s)]
        rows = [job.rows for job in jobs]
        _check_rows(outputs, sum(rows) + padding)
        parts = split_rows(outputs, rows)
        return [
            Answer({name: part[name] for name in job.outputs}, compute_s) for job, part in zip(jobs, parts, strict=True)
        ]


class _Slot:
    """One thread, which runs one batch at a time."""

    def __init__(self, name: str, finished: Callable[[_Slot], None]) -> None:
        self.batch: _Batch | None = None
        self._finished = finished
        self._loop = asyncio.get_running_loop()
        self.stopped: asyncio.Future[None] = self._loop.create_future()
        self._inbox: SimpleQueue[_Batch | None] = SimpleQueue()
        # A daemon, so that a run that cannot be stopped does not keep the process from ending.
        self._thread = threading.Thread(target=self._serve, name=name, daemon=True)

    def start(self) -> None:
        self._thread.start()

    def begin(self, batch: _Batch) -> None:
        self.batch = batch
        self._inbox.put(batch)

    def end(self) -> None:
        """No more batches: the thread ends after the present one."""
        self._inbox.put(None)

    def _serve(self) -> None:
        try:
            while (batch := self._inbox.get()) is not None:
                batch.execute()
                del batch  # an idle thread keeps no tensors
                self._loop.call_soon_threadsafe(self._finished, self)
            self._loop.call_soon_threadsafe(self.stopped.set_result, None)
        except RuntimeError:
            # The loop was closed without close(): nobody is left to hand anything to.
            log.warning("model_thread_outlived_loop", thread=threading.current_thread().name)


class Worker:
    """The slots of one model, and the requests that wait for them.

    new_run: makes a run of the model. pads: batches are filled up to a bucket's size.
    """

    def __init__(
        self, name: str, new_run: Callable[[], Run], *, slots: int, max_size: int, max_wait_s: float, pads: bool
    ) -> None:
        self._name = name
        self._new_run = new_run
        self._buckets = buckets(max_size) if pads else []
        self._batcher: Batcher[Job] = Batcher(max_size=max_size, max_wait_s=max_wait_s)
        self._count = slots
        self._slots: list[_Slot] = []
        self._idle: list[_Slot] = []
        self._timer: asyncio.TimerHandle | None = None
        self._closed = False

    def __repr__(self) -> str:
        return (
            f"<Worker {self._name}, {len(self._slots) - len(self._idle)} of {len(self._slots)} busy, {self._batcher}>"
        )

    def start(self) -> None:
        """Start the threads."""
        self._slots = [_Slot(f"inferlane-{self._name}-{index}", self._on_finished) for index in range(self._count)]
        self._idle = list(self._slots)
        for slot in self._slots:
            slot.start()

    async def submit(self, job: Job) -> Answer:
        """Have one request run. Cancelled: it leaves the queue, or its batch, if that is all its own."""
        if self._closed:
            raise _closing()
        self._batcher.add(job)
        self._dispatch()
        try:
            return await job.answer
        finally:
            if job.answer.cancelled():
                self._abandon(job)
            elif job.answer.done():
                job.answer.exception()  # seen, though the waiter may have been cancelled after it was set

    async def close(self) -> None:
        """Refuse what waits, stop what runs, end the threads."""
        self._closed = True
        self._set_timer(None, 0.0)
        running = [slot.batch for slot in self._slots if slot.batch is not None]
        for job in [*self._batcher.take_all(), *(job for batch in running for job in batch.jobs)]:
            _settle(job, _closing())
        for batch in running:
            batch.run.stop()
        for slot in self._slots:
            slot.end()
        _, late = await asyncio.wait([slot.stopped for slot in self._slots], timeout=_CLOSE_S)
        if late:
            log.warning("model_thread_left_behind", model=self._name, threads=len(late))

    def _dispatch(self) -> None:
        """Give waiting requests to idle slots."""
        if not len(self._batcher):
            return
        now = time.monotonic()
        for job in self._batcher.take_expired(now):
            _settle(job, Refused(Reason.DEADLINE, "its deadline passed while it waited for the model"))
        while self._idle and (jobs := self._batcher.take_batch(now)):
            self._begin(self._idle.pop(), jobs)
        # Without an idle slot there is nothing to wake for: the next one that finishes dispatches.
        self._set_timer(self._batcher.due() if self._idle else None, now)

    def _begin(self, slot: _Slot, jobs: list[Job]) -> None:
        rows = sum(job.rows for job in jobs)
        size = next((bucket for bucket in self._buckets if bucket >= rows), rows)
        batch = _Batch(jobs, self._new_run(), padding=size - rows)
        for job in jobs:
            job.batch = batch
        slot.begin(batch)

    def _on_finished(self, slot: _Slot) -> None:
        batch, slot.batch = slot.batch, None
        assert batch is not None
        for job, outcome in zip(batch.jobs, batch.outcomes, strict=True):
            job.batch = None  # no cycle, so that tensors are freed as soon as the reply is written
            _settle(job, outcome)
        if not self._closed:
            self._idle.append(slot)
            self._dispatch()

    def _abandon(self, job: Job) -> None:
        if job.batch is None:
            self._batcher.discard(job)
        elif all(other.answer.done() for other in job.batch.jobs):
            job.batch.run.stop()

    def _set_timer(self, due: float | None, now: float) -> None:
        if self._timer is not None:
            self._timer.cancel()
        loop = asyncio.get_running_loop()
        self._timer = None if due is None else loop.call_later(max(0.0, due - now), self._dispatch)


def _settle(job: Job, outcome: Answer | Exception) -> None:
    """Tell whoever waits, if somebody still does."""
    if job.answer.done():
        return
    if isinstance(outcome, Answer):
        job.answer.set_result(outcome)
    else:
        job.answer.set_exception(outcome)


def _check_rows(outputs: Mapping[str, Array], rows: int) -> None:
    for name, array in outputs.items():
        if array.ndim == 0 or array.shape[0] != rows:
            raise Refused(
                Reason.BACKEND_FAILED,
                f"output {name!r} has shape {list(array.shape)} for a batch of {rows} rows: this model cannot be "
                "batched; set batch.max_size to 1",
            )


def _closing() -> Refused:
    return Refused(Reason.NO_ENDPOINT, "the model is being unloaded")
