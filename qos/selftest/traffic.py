# SPDX-License-Identifier: Apache-2.0
"""Floods and probes: UDP, UDP trains (GSO) and TCP at a rate, and small datagrams that carry when they were sent.

Floods run as `python -m qos.selftest.traffic` with an inherited socket, so that they share no interpreter with the
probes. A probe's arrival is the kernel's own time stamp (SO_TIMESTAMPNS, socket(7)), not when a thread was woken.
"""

from __future__ import annotations

import argparse
import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

import qos

__all__ = ["Flood", "Probe", "flood", "probing"]

UDP_SEGMENT = 103
_SO_TIMESTAMPNS = 35
_PROBE = struct.Struct("=IQ")
PROBE_BYTES = 200
PACKET = 1200
TRAIN = 40
"""Packets in a train: 48 KB, as a web server's kernel makes them."""
_GRACE_S = 0.5
"""Longer than the hop's queue: probes still on their way are not lost."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Flood:
    """Bulk traffic that asks for more than the link has."""

    kind: str
    """udp, train or tcp."""
    rate: int
    """Bits per second offered; tcp takes what it gets."""
    dscp: int
    seconds: float


@dataclass(slots=True)
class Probe:
    """The small datagrams of one class: how many went, and how long each that arrived took, seconds."""

    name: str
    sender: socket.socket
    receiver: socket.socket
    sent: int = 0
    latencies: list[float] = field(default_factory=list)


@contextmanager
def flood(wanted: Flood, sock: socket.socket) -> Iterator[None]:
    """Run a flood over a connected socket of some namespace while the block lasts, at most `wanted.seconds`."""
    sock.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, wanted.dscp << 2)
    arguments = [wanted.kind, str(sock.fileno()), str(wanted.rate), str(wanted.seconds)]
    process = subprocess.Popen(
        # -P: never import from the directory that somebody happened to start us in.
        [sys.executable, "-P", "-m", "qos.selftest.traffic", *arguments],
        pass_fds=[sock.fileno()],
        stdin=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": str(Path(qos.__path__[0]).parent)},
    )
    try:
        yield
    finally:
        process.terminate()
        with suppress(subprocess.TimeoutExpired):
            process.wait(5)
        if process.poll() is None:
            process.kill()
            process.wait()


@contextmanager
def probing(probes: Mapping[str, Probe], *, per_second: int) -> Iterator[None]:
    """Send probes of every class, `per_second` each, for as long as the block lasts; then wait for the last ones."""
    stop = threading.Event()
    done = threading.Event()
    threads = [
        threading.Thread(target=_send, args=(tuple(probes.values()), per_second, stop), name="probes out"),
        *(threading.Thread(target=_receive, args=(each, done), name=f"{each.name} in") for each in probes.values()),
    ]
    for each in threads:
        each.start()
    try:
        yield
    finally:
        stop.set()
        threads[0].join()
        time.sleep(_GRACE_S)
        done.set()
        for each in threads[1:]:
            each.join()


def _send(probes: tuple[Probe, ...], per_second: int, stop: threading.Event) -> None:
    gap = 1 / per_second / len(probes)
    turn = time.monotonic()
    while not stop.is_set():
        for probe in probes:
            turn += gap
            time.sleep(max(0.0, turn - time.monotonic()))
            stamp = _PROBE.pack(probe.sent, time.clock_gettime_ns(time.CLOCK_REALTIME))
            with suppress(OSError):  # ENOBUFS is a loss, and counted as one
                probe.sender.send(stamp.ljust(PROBE_BYTES, b"\0"))
            probe.sent += 1


def _receive(probe: Probe, done: threading.Event) -> None:
    sock = probe.receiver
    sock.setsockopt(socket.SOL_SOCKET, _SO_TIMESTAMPNS, 1)
    sock.settimeout(0.05)
    while True:
        try:
            datagram, ancillary, _, _ = sock.recvmsg(2048, socket.CMSG_SPACE(16))
        except TimeoutError:
            if done.is_set():
                return
            continue
        arrived = next(struct.unpack("=qq", value[:16]) for _, kind, value in ancillary if kind == _SO_TIMESTAMPNS)
        sent = _PROBE.unpack_from(datagram)[1]
        probe.latencies.append((arrived[0] * 10**9 + arrived[1] - sent) / 1e9)


def _flood(kind: str, sock: socket.socket, rate: int, seconds: float) -> None:
    """Send at `rate` until the time is over. Non-blocking for UDP: a full queue must drop, not slow the sender down."""
    if kind == "tcp":
        sock.settimeout(1.0)
        chunk = bytes(64 * 1024)
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            with suppress(TimeoutError):
                sock.send(chunk)
        return
    sock.setblocking(False)
    packets = TRAIN if kind == "train" else 1
    if packets > 1:
        sock.setsockopt(socket.SOL_UDP, UDP_SEGMENT, PACKET)
    payload = bytes(PACKET * packets)
    gap = len(payload) * 8 / rate
    start = turn = time.monotonic()
    while turn < start + seconds:
        turn += gap
        now = time.monotonic()
        if turn > now:
            time.sleep(turn - now)
        with suppress(OSError):  # EAGAIN, ENOBUFS: dropped here
            sock.send(payload)


def main() -> int:
    """One flood over an inherited socket."""
    parser = argparse.ArgumentParser()
    parser.add_argument("kind", choices=("udp", "train", "tcp"))
    parser.add_argument("fd", type=int)
    parser.add_argument("rate", type=int, help="bits per second")
    parser.add_argument("seconds", type=float)
    arguments = parser.parse_args()
    with socket.socket(fileno=arguments.fd) as sock:
        _flood(arguments.kind, sock, arguments.rate, min(arguments.seconds, 60.0))
    return 0


if __name__ == "__main__":
    sys.exit(main())
