# SPDX-License-Identifier: Apache-2.0
"""Make the kernel what it shall be: step by step, read back, and put back as it was where anything goes wrong.

Where not even the way back works our roots go and the kernel's own queue returns: unshaped, but never a cut-off.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import TYPE_CHECKING

import msgspec

from qos.tc.design.nft import replacing
from qos.tc.errors import KernelError
from qos.tc.kernel import bpf
from qos.tc.reconcile.backlogs import backlogs
from qos.tc.reconcile.commands import describe
from qos.tc.reconcile.plan import Device, Gso, Step, Table, Verb, plan, snapshot, takes_two
from qos.tc.state import ROOT, Bpf, Filter, NetworkState, Qdisc, TcClass, is_our_qdisc

if TYPE_CHECKING:
    from qos.tc.kernel.netlink import Kernel

__all__ = ["Outcome", "apply"]

_POLL_S = 0.01
_WAYS_BACK = 2


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What became of an apply."""

    done: tuple[Step, ...]
    """What was done, with the losses as they were found just before."""
    failure: str | None = None
    """One line: which step, and what the kernel said."""
    rolled_back: bool = False
    """Whether all is again as it was."""
    residual: tuple[Step, ...] = ()
    """What the kernel still has otherwise than it was asked to, or, after a failure, than it was."""
    unshaped: bool = False
    """Whether our root qdiscs were removed because the way back failed, too."""


def apply(  # noqa: PLR0913  the spec of one change, and the clocks that tests replace
    kernel: Kernel,
    desired: NetworkState,
    *,
    programs: Mapping[str, bytes],
    steps: Sequence[Step] | None = None,
    to_snapshot: bool = False,
    before_step: Callable[[Step], None] | None = None,
    drain_s: float = 2.0,
    clock: Callable[[], float] = time.monotonic,
    sleep: Callable[[float], None] = time.sleep,
    load: Callable[[bytes, str], int] = bpf.load,
) -> Outcome:
    """Do the steps (default: those of a plan made now), read back, roll back where the two differ.

    programs: by Bpf.name and by table, those of `desired` and those that now classify. drain_s: how long all draining
    may take. What before_step raises is raised again, once all is put back.
    """
    names = [each.name for each in desired.links if each.ifb_for is None]
    before = kernel.observe(names)
    if steps is None:
        waiting = backlogs(kernel, [each.name for each in before.links])
        steps = plan(before, desired, waiting, to_snapshot=to_snapshot)
    back = snapshot(before, desired)
    with _Hands(kernel, programs, load, clock, sleep) as hands:
        try:
            hands.load_for(steps)
        except KernelError as error:
            return Outcome(done=(), failure=str(error), rolled_back=True)
        hands.drain_until(clock() + drain_s)
        done: list[Step] = []
        try:
            for step in steps:
                if before_step is not None:
                    before_step(step)
                done.append(hands.do(step))
            residual = plan(kernel.observe(names), desired, to_snapshot=to_snapshot)
            failure = f"the kernel does not show what it was given: {describe(residual[0], {})}" if residual else None
        except KernelError as error:
            failure = f"{describe(steps[len(done)], {})}: {error}" if len(done) < len(steps) else str(error)
        except BaseException as error:
            if not _put_back(hands, names, back, drain_s).rolled_back:
                error.add_note("what was done could not be undone: our root qdiscs are removed, traffic is not shaped")
            raise
        if failure is None:
            return Outcome(done=tuple(done))
        return msgspec.structs.replace(_put_back(hands, names, back, drain_s), done=tuple(done), failure=failure)


def _put_back(hands: _Hands, names: Sequence[str], back: NetworkState, drain_s: float) -> Outcome:
    """Plan from whatever there is to what was; twice, because what refused once may have been busy."""
    residual: tuple[Step, ...] = ()
    for _ in range(_WAYS_BACK):
        hands.drain_until(hands.clock() + drain_s)
        with suppress(KernelError):
            now = hands.kernel.observe(names)
            waiting = backlogs(hands.kernel, [each.name for each in now.links])
            for step in plan(now, _still_there(back, now), waiting, to_snapshot=True):
                hands.do(step)
            residual = _left(hands, names, back)
            if not residual:
                return Outcome(done=(), rolled_back=True)
    _unshape(hands, names, back)
    with suppress(KernelError):
        residual = _left(hands, names, back)
    return Outcome(done=(), residual=residual, unshaped=True)


def _left(hands: _Hands, names: Sequence[str], back: NetworkState) -> tuple[Step, ...]:
    now = hands.kernel.observe(names)
    return plan(now, _still_there(back, now), to_snapshot=True)


def _still_there(back: NetworkState, now: NetworkState) -> NetworkState:
    """Without the devices that went meanwhile, and without their IFBs: with them went all that was made there."""
    present = {each.name for each in now.links}
    return msgspec.structs.replace(
        back, links=tuple(each for each in back.links if (each.ifb_for or each.name) in present)
    )


def _unshape(hands: _Hands, names: Sequence[str], back: NetworkState) -> None:
    """Remove what we made, as far as it goes: first the roots, because they hold packets back."""
    try:
        now = hands.kernel.observe(names)
    except KernelError:
        now = back
    for link in now.links:
        for root in filter(is_our_qdisc, link.qdiscs):
            with suppress(KernelError):
                hands.kernel.delete(link.name, root)
    nothing = NetworkState(netns=now.netns)
    with suppress(KernelError):
        # An IFB goes last, and only if nothing is redirected to it any more: packets to a gone device are dropped.
        # Still later the table, because that takes another program than ourselves.
        steps = plan(hands.kernel.observe(names), nothing)
        for step in sorted(steps, key=lambda each: isinstance(each.subject, Table)):
            if step.verb is Verb.DELETE:
                hands.do(step)


class _Hands:
    """What does single steps. Keeps the programs that it loaded until it is closed; the kernel keeps what is in use."""

    def __init__(
        self,
        kernel: Kernel,
        programs: Mapping[str, bytes],
        load: Callable[[bytes, str], int],
        clock: Callable[[], float],
        sleep: Callable[[float], None],
    ) -> None:
        self.kernel = kernel
        self.clock = clock
        self._programs, self._load, self._sleep = programs, load, sleep
        self._loaded: dict[str, int] = {}
        self._drain_ends = 0.0
        self._seen_empty: dict[str, set[int]] = {}

    def __enter__(self) -> _Hands:
        return self

    def __exit__(self, *_: object) -> None:
        for descriptor in self._loaded.values():
            os.close(descriptor)

    def load_for(self, steps: Sequence[Step]) -> None:
        """Load what the steps will attach, before the first of them: the verifier may refuse."""
        for step in steps:
            if step.verb in (Verb.ADD, Verb.REPLACE):
                if isinstance(step.subject, Filter):
                    self._program(step.subject)
                elif isinstance(step.subject, Table):
                    self._ruleset(step.subject)

    def drain_until(self, deadline: float) -> None:
        """All draining from now on ends then."""
        self._drain_ends = deadline

    def do(self, step: Step) -> Step:
        """Do it; the step with the loss as it was just before."""
        if step.verb is Verb.DRAIN:
            self._drain(step)
            return step
        step = self._with_loss_now(step)
        self._seen_empty.pop(step.device, None)
        match step.subject:
            case Device() as device if step.verb is Verb.ADD:
                self.kernel.add_ifb(device.name, device.ifb_for)
            case Device() as device:
                self.kernel.delete_link(device.name)
            case Gso() as gso:
                self.kernel.set_gso_max_size(step.device, gso.max_size)
            case Table() as table:
                self.kernel.set_table(replacing("" if step.verb is Verb.DELETE else self._ruleset(table)))
            case _ if step.verb is Verb.DELETE:
                self.kernel.delete(step.device, step.subject)
            case _:
                self._put(step, step.subject)
        return step

    def _put(self, step: Step, subject: Qdisc | TcClass | Filter) -> None:
        descriptor = self._program(subject) if isinstance(subject, Filter) else None
        if takes_two(step) and isinstance(step.before, Qdisc | Filter):
            self.kernel.delete(step.device, step.before)
            self.kernel.add(step.device, subject, fd=descriptor)
            return
        call = {Verb.ADD: self.kernel.add, Verb.CHANGE: self.kernel.change, Verb.REPLACE: self.kernel.replace}
        call[step.verb](step.device, subject, fd=descriptor)

    def _program(self, subject: Filter) -> int | None:
        if not isinstance(subject.options, Bpf):
            return None
        name = subject.options.name
        if name not in self._loaded:
            self._loaded[name] = self._load(self._at_hand(name), name)
        return self._loaded[name]

    def _ruleset(self, subject: Table) -> str:
        return self._at_hand(subject.chain).decode()

    def _at_hand(self, name: str) -> bytes:
        if name not in self._programs:
            raise KernelError(0, "it is not among those at hand, and no kernel gives one back", f"program {name}")
        return self._programs[name]

    def _drain(self, step: Step) -> None:
        """Wait until it is empty. One look tells of all on its device, and nothing is sent to those that drain."""
        if not isinstance(step.subject, Qdisc | TcClass):
            return
        while step.subject.handle not in self._seen_empty.get(step.device, ()):
            counters = self.kernel.counters(step.device)
            waiting = {handle for handle, each in counters.items() if each.backlog_packets}
            self._seen_empty[step.device] = counters.keys() - waiting
            if step.subject.handle not in waiting or self.clock() >= self._drain_ends:
                return
            self._sleep(_POLL_S)

    def _with_loss_now(self, step: Step) -> Step:
        """What is destroyed is counted once more just before, where there was anything."""
        gone = step.subject if step.verb is Verb.DELETE else step.before
        if step.loss.packets == 0:
            return step
        if step.verb is Verb.ADD and isinstance(step.subject, Qdisc) and step.subject.parent != ROOT:
            place = step.subject.parent  # the first queue of a class
        elif isinstance(gone, Qdisc | TcClass):
            place = gone.handle
        else:
            return step
        packets, _ = self.kernel.backlog(step.device, place)
        return msgspec.structs.replace(step, loss=msgspec.structs.replace(step.loss, packets=packets))
