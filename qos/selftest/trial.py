# SPDX-License-Identifier: Apache-2.0
"""The trial: probes of every class through an idle link, through a full one, and through a full one under the plan."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import msgspec

from qos.selftest.figures import Figures, Verdict, figures, verdict
from qos.selftest.lab import Lab, lab, within
from qos.selftest.traffic import Flood, Probe, flood, probing
from qos.tc.kernel.netlink import Kernel
from qos.tc.policy import Interface, LinkClass, LinkPolicy
from qos.tc.reconcile.apply import apply
from qos.tc.reconcile.survey import survey
from qos.tc.tree import kind_of, root_of

__all__ = ["KINDS", "RATE", "Phase", "Trial", "TrialError", "flooding", "phase", "put_in_force", "try_classes"]

KINDS = ("udp", "train", "tcp")
RATE = 20_000_000
"""Bits per second of the hop: slow enough for any machine to fill."""
ROOM = 0.95
"""Our rate over the hop's: the queue must be ours."""
MOST_CLASSES = 6
SECONDS = 5.0
PER_SECOND = 100
_SINK_PORT, _PROBE_PORT = 9000, 9001
_SETTLED_S = 0.7
"""A flood's first moments fill the hop's queue, and the moments after one empty it: longer than that queue is."""


class TrialError(Exception):
    """The plan could not be put in force on the trial's own link."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One run of probes: figures by class, and what of the bulk got through, bits per second."""

    name: str
    classes: dict[str, Figures]
    bulk: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """All phases and what they prove."""

    kernel: str
    engine: str
    bulk_class: str
    phases: tuple[Phase, ...]
    verdict: Verdict
    notes: tuple[str, ...]


def try_classes(
    policy: LinkPolicy, *, kind: str = "udp", seconds: float = SECONDS, tell: Callable[[str], None] = lambda line: None
) -> Trial:
    """Run it with the policy's classes, about 4 x `seconds`. Needs root; raises LabError, TrialError or KernelError."""
    classes = _tried(policy)
    bulk = classes[-1]
    with lab(RATE) as built:
        tell(f"{built.src}, {built.hop}, {built.dst}: a hop of {RATE / 1e6:g} Mbit/s with one FIFO")
        idle = phase("idle", built, classes, None, seconds)
        tell("idle link measured; now full, without the plan")
        wanted = Flood(kind=kind, rate=RATE * 3 // 2, dscp=bulk.dscp, seconds=seconds + 5)
        without = phase("full, one FIFO", built, classes, wanted, seconds)
        engine, kernel_name, notes = put_in_force(policy, built)
        tell(f"full link measured; now under the plan ({engine})")
        planned = phase("full, planned", built, classes, wanted, seconds)
    return Trial(
        kernel=kernel_name,
        engine=engine,
        bulk_class=bulk.name,
        phases=(idle, without, planned),
        verdict=verdict(classes[0].name, idle.classes, without.classes, planned.classes),
        notes=notes,
    )


def _tried(policy: LinkPolicy) -> list[LinkClass]:
    """The classes that packets reach by their mark: the first ones and the last."""
    reached = [each for each in policy.classes if each.owns_dscp and each.share > 0]
    if len(reached) < 2:
        raise TrialError("a trial needs two classes or more with marks of their own; the config has fewer")
    return reached if len(reached) <= MOST_CLASSES else [*reached[: MOST_CLASSES - 1], reached[-1]]


def put_in_force(policy: LinkPolicy, built: Lab) -> tuple[str, str, tuple[str, ...]]:
    """Apply the policy to src's link; the root's kind, the kernel's name, and what the plan says of itself."""
    engine = policy.interfaces[0].engine if policy.interfaces else "auto"
    here = Interface(
        name=built.interface,
        netns=built.src,
        egress=int(RATE * ROOM),
        ingress=None,
        overhead=0,
        engine=engine,
        refuse_degraded=False,
        adopt=False,
    )
    with Kernel(built.src) as kernel:
        seen = survey(msgspec.structs.replace(policy, interfaces=(here,), flows=()), built.src, kernel)
        outcome = apply(
            kernel, seen.compiled.desired, programs=seen.compiled.programs, clock=time.monotonic, sleep=time.sleep
        )
    if outcome.failure is not None:
        raise TrialError(f"the plan could not be applied to the trial's own link: {outcome.failure}")
    link = seen.compiled.desired.link(built.interface)
    root = None if link is None else root_of(link)
    kind = "marks" if root is None else kind_of(root.options)
    return kind, seen.capabilities.kernel, tuple(f"{note.where}: {note.text}" for note in seen.compiled.notes)


def phase(name: str, built: Lab, classes: Sequence[LinkClass], wanted: Flood | None, seconds: float) -> Phase:
    """Probes of all classes at once for `seconds`, beside a flood if one is wanted."""
    with ExitStack() as stack:
        if wanted is not None:
            stack.enter_context(flooding(built, wanted))
        time.sleep(_SETTLED_S)
        probes = {each.name: stack.enter_context(_probe(built, each, place)) for place, each in enumerate(classes)}
        before, start = _received(built), time.monotonic()
        with probing(probes, per_second=PER_SECOND):
            time.sleep(seconds)
            bulk = (_received(built) - before) * 8 / (time.monotonic() - start)
    return Phase(
        name=name, classes={each.name: figures(each.sent, each.latencies) for each in probes.values()}, bulk=bulk
    )


@contextmanager
def _probe(built: Lab, traffic_class: LinkClass, place: int) -> Iterator[Probe]:
    with built.socket(built.src) as sender, built.socket(built.dst) as receiver:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, traffic_class.dscp << 2)
        receiver.bind((built.dst_address, _PROBE_PORT + place))
        sender.connect((built.dst_address, _PROBE_PORT + place))
        yield Probe(name=traffic_class.name, sender=sender, receiver=receiver)


@contextmanager
def flooding(built: Lab, wanted: Flood) -> Iterator[None]:
    """A flood from src into a socket of dst that nobody reads: what its buffer does not hold is dropped there."""
    kind = socket.SOCK_STREAM if wanted.kind == "tcp" else socket.SOCK_DGRAM
    with ExitStack() as stack:
        sink = stack.enter_context(built.socket(built.dst, kind))
        sink.bind((built.dst_address, _SINK_PORT))
        sender = stack.enter_context(built.socket(built.src, kind))
        if kind == socket.SOCK_STREAM:
            sink.listen()
        sender.settimeout(5)
        sender.connect((built.dst_address, _SINK_PORT))
        if kind == socket.SOCK_STREAM:
            accepted, _ = sink.accept()
            stack.enter_context(accepted)
            stack.enter_context(_reading(accepted))
        stack.enter_context(flood(wanted, sender))
        yield


@contextmanager
def _reading(sock: socket.socket) -> Iterator[None]:
    """Read a TCP connection to its end, in a thread."""

    def read() -> None:
        sock.settimeout(0.2)
        buffer = bytearray(1 << 18)
        while not stop.is_set():
            try:
                if not sock.recv_into(buffer):
                    return
            except TimeoutError:
                continue
            except OSError:
                return

    stop = threading.Event()
    thread = threading.Thread(target=read, name="bulk in")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _received(built: Lab) -> int:
    """Bytes that dst's link has taken in."""

    def read() -> int:
        for line in Path("/proc/thread-self/net/dev").read_text().splitlines():
            name, _, counters = line.partition(":")
            if name.strip() == built.interface:
                return int(counters.split()[0])
        return 0

    return within(built.dst, read)
