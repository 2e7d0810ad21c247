# SPDX-License-Identifier: Apache-2.0
"""Asks one model at a steady rate and prints each latency: run inside a namespace by benchmarks.link."""

from __future__ import annotations

import argparse
import asyncio
import json
import sys
import time
from contextlib import suppress

import numpy as np
from numpy.typing import NDArray

from inferlane.client import Client
from inferlane.errors import InferlaneError

TIMEOUT_S = 2.0
INPUTS: dict[str, dict[str, NDArray[np.float32 | np.int32]]] = {
    "identity": {"x": np.arange(64, dtype=np.float32).reshape(1, 64)},
    "magika": {"bytes": np.arange(2048, dtype=np.int32).reshape(1, 2048) % 257},
}
"""One packet, and 8 KiB."""


async def ask(url: str, model: str, traffic_class: str, rate: float, seconds: float) -> dict[str, object]:
    """Latencies in seconds of requests sent every 1/rate, whether or not the one before has been answered."""
    latencies: list[float] = []
    failures: list[str] = []

    async def one(client: Client) -> None:
        start = time.perf_counter()
        try:
            await client.infer(model, inputs, cls=traffic_class, timeout=TIMEOUT_S)
        except InferlaneError as error:
            failures.append(str(error))
        else:
            latencies.append(time.perf_counter() - start)

    inputs = INPUTS[model.partition("_")[0]]
    async with Client(url, insecure=url.startswith("https")) as client, asyncio.TaskGroup() as tasks:
        for _ in range(3):
            with suppress(InferlaneError):  # a full link loses warm-ups, too
                await client.infer(model, inputs, cls=traffic_class, timeout=TIMEOUT_S)
        start = time.perf_counter()
        for turn in range(int(rate * seconds)):
            await asyncio.sleep(max(0.0, start + turn / rate - time.perf_counter()))
            tasks.create_task(one(client))
    return {"latencies": latencies, "failures": failures}


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("url")
    parser.add_argument("model")
    parser.add_argument("--class", dest="traffic_class", default="realtime")
    parser.add_argument("--rate", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=10.0)
    given = parser.parse_args()
    json.dump(asyncio.run(ask(given.url, given.model, given.traffic_class, given.rate, given.seconds)), sys.stdout)
    return 0


if __name__ == "__main__":
    sys.exit(main())
