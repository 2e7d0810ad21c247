# SPDX-License-Identifier: Apache-2.0
"""`inferlane demo`: the gateway of conf/demo.yaml, real files through its four transports, and a table of answers.

Gateway and client share one process and one event loop, so the times hold for a machine with nothing else to do.
"""

from __future__ import annotations

import asyncio
import errno
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rich import box
from rich.table import Table

from backends.errors import BackendError
from inferlane.client import Client
from inferlane.errors import ConnectionFailed, Refused
from inferlane.messages import Timing
from proxy.certificate import CertificateError
from proxy.config.settings import Config
from proxy.demo.inputs import Sample, samples
from proxy.demo.magika import INPUT, MODEL, OUTPUT, Answer, Magika
from proxy.demo.model import DIRECTORY, DemoError, fetch
from proxy.quic.configuration import TlsError
from proxy.server import Gateway
from proxy.telemetry import logs

__all__ = ["CONF", "Row", "demo", "document", "table"]

CHECKOUT = Path(__file__).parents[2]
CONF = CHECKOUT / "conf" / "demo.yaml"
SCHEMES = ("https", "quic", "quic+datagram", "udp")
REPETITIONS = 25
PARTS = ("network", "queue", "backend", "compute", "total")


@dataclass(slots=True, kw_only=True)
class Row:
    """One file asked about over one transport, again and again."""

    transport: str
    sample: Sample
    answer: Answer | None = None
    served_class: str | None = None
    timings: list[Timing] = field(default_factory=list)
    refused: list[str] = field(default_factory=list)
    """Reasons, one for each request without an answer."""

    def quantile(self, part: str, share: float) -> float | None:
        """Milliseconds of one part that `share` of the answers did not exceed; None: nobody measured it."""
        values = sorted(value for timing in self.timings if (value := getattr(timing, part)) is not None)
        return values[min(len(values) - 1, int(len(values) * share))] * 1e3 if values else None


async def demo(config: Config, *, repetitions: int = REPETITIONS) -> list[Row]:
    """Start the gateway, ask it about every file over every transport, the model fetched before where it is missing.

    DemoError says in one line why it cannot.
    """
    await asyncio.to_thread(fetch)
    with tempfile.TemporaryDirectory(prefix="inferlane-demo-") as scratch:
        asked = samples(CHECKOUT, Path(scratch))
        magika = Magika.load(DIRECTORY)
        async with _gateway(config, Path(scratch)) as (host, port):
            rows = [Row(transport=scheme, sample=sample) for scheme in SCHEMES for sample in asked]
            for scheme in SCHEMES:
                async with Client(f"{scheme}://{host}:{port}", ca=Path(scratch) / "development.pem") as client:
                    mine = [row for row in rows if row.transport == scheme]
                    for _ in range(repetitions):
                        for row in mine:
                            await _ask(client, magika, row)
            return rows


@asynccontextmanager
async def _gateway(config: Config, scratch: Path) -> AsyncIterator[tuple[str, int]]:
    """A gateway in this process; where it listens."""
    logs.configure("console", "warning")  # a line a request would drown the table
    gateway = Gateway(config, state_dir=scratch)
    try:
        await gateway.start()
    except (BackendError, CertificateError, OSError, TlsError) as error:
        raise DemoError(f"the demo's gateway did not start: {_why(error)}") from error
    try:
        host, port = gateway.doors[0].bound[0]
        yield host, port
    finally:
        await gateway.drain(longest_s=1.0)
        await gateway.close()


def _why(error: Exception) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return f"{error.strerror}; stop what listens there" if error.errno == errno.EADDRINUSE else error.strerror


async def _ask(client: Client, magika: Magika, row: Row) -> None:
    features = magika.features(row.sample.file)
    try:
        reply = await client.infer(MODEL, {INPUT: features}, cls=row.sample.class_name)
    except Refused as refusal:
        row.refused.append(refusal.reason.label)
        return
    except ConnectionFailed as error:
        raise DemoError(f"{row.transport}, {row.sample.file.name}: {error}") from error
    row.answer = magika.answer(reply.outputs[OUTPUT])
    row.served_class = reply.served_class
    row.timings.append(reply.timing)


def table(rows: Sequence[Row]) -> Table:
    """For people, 110 columns wide."""
    result = Table(
        title="Real files, one model, four transports. Latency: p50/p99 in ms",
        title_justify="left",
        caption=_caption(rows),
        caption_justify="left",
        box=box.SIMPLE_HEAD,
        pad_edge=False,
        collapse_padding=True,
    )
    for name in ("transport", "class", "file", "label"):
        result.add_column(name, no_wrap=True)
    for name in ("confidence", *PARTS):
        result.add_column(name, justify="right", no_wrap=True)
    for index, row in enumerate(rows):
        answer = row.answer or Answer("-", 0.0)
        result.add_row(
            row.transport,
            row.served_class or row.sample.class_name,
            row.sample.file.name,
            answer.label,
            f"{answer.confidence:.1%}",
            *(_both(row, part) for part in PARTS),
            end_section=index + 1 < len(rows) and rows[index + 1].transport != row.transport,
        )
    return result


def document(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """For scripts: the same as JSON values, times in ms."""
    return [
        {
            "transport": row.transport,
            "class": row.served_class,
            "file": str(row.sample.file),
            "label": row.answer.label if row.answer else None,
            "confidence": row.answer.confidence if row.answer else None,
            "answered": len(row.timings),
            "refused": row.refused,
            "latency_ms": {part: {"p50": row.quantile(part, 0.5), "p99": row.quantile(part, 0.99)} for part in PARTS},
        }
        for row in rows
    ]


def _both(row: Row, part: str) -> str:
    middle, high = row.quantile(part, 0.5), row.quantile(part, 0.99)
    return "-" if middle is None or high is None else f"{middle:.1f}/{high:.1f}"


def _caption(rows: Sequence[Row]) -> str:
    answered = sum(len(row.timings) for row in rows)
    refused = Counter(reason for row in rows for reason in row.refused)
    reasons = ", ".join(f"{count} {reason}" for reason, count in refused.most_common())
    return f"{answered} of {answered + refused.total()} requests answered" + (
        f"; refused: {reasons}" if reasons else ""
    )
