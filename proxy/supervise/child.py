# SPDX-License-Identifier: Apache-2.0
"""The beginning of a process that the supervisor starts: its channel, its signals, its loop."""

from __future__ import annotations

import argparse
import os
import signal
import socket
from collections.abc import Callable
from typing import Protocol

import uvloop

from proxy.supervise.channel import Channel

__all__ = ["Running", "run_child"]


class Running(Protocol):
    """What the process is."""

    async def run(self) -> int:
        """All of its life -> its exit code."""
        ...


def run_child(about: str | None, made: Callable[[Channel], Running]) -> int:
    """Be it until its end. about: what --help says."""
    parser = argparse.ArgumentParser(description=about)
    parser.add_argument("--fd", type=int, required=True, help="one end of the channel")
    fd = parser.parse_args().fd
    for each in (signal.SIGINT, signal.SIGHUP, signal.SIGUSR2):
        signal.signal(each, signal.SIG_IGN)
    signal.pthread_sigmask(signal.SIG_SETMASK, ())  # whatever it was when it was started
    return uvloop.run(_work(fd, made))


async def _work(fd: int, made: Callable[[Channel], Running]) -> int:
    os.set_inheritable(fd, False)
    channel = Channel(socket.socket(fileno=fd))
    running = made(channel)
    await channel.start()
    return await running.run()
