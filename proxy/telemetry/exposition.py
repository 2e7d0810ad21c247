# SPDX-License-Identifier: Apache-2.0
"""Metrics as a page: the one door to Prometheus' client library, which formats it and reads this process's figures."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from itertools import accumulate

from prometheus_client import CollectorRegistry, ProcessCollector
from prometheus_client.exposition import choose_encoder
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from proxy.telemetry.families import Across, Exported

__all__ = ["process", "render"]

_PROCESS = ProcessCollector(registry=None)
_ACROSS: dict[str, Across] = {"process_max_fds": "min", "process_start_time_seconds": "min"}
"""Memory and descriptors add up, limits and beginnings do not."""


def render(exports: Iterable[Exported], accept: str = "") -> tuple[bytes, str]:
    """The page, in the format that an Accept field prefers; and its content type."""
    encode, content_type = choose_encoder(accept)
    registry = CollectorRegistry()
    registry.register(_Page(exports))
    return encode(registry), content_type


def process() -> Iterator[Exported]:
    """What this process uses of the machine."""
    for each in _PROCESS.collect():
        samples = [((), (float(sample.value),)) for sample in each.samples]
        if each.type == "counter":
            yield Exported(each.name, each.documentation, "counter", "sum", (), samples)
        else:
            across = _ACROSS.get(each.name, "sum")
            yield Exported(each.name, each.documentation, "gauge", across, (), samples)


class _Page(Collector):
    """The library asks for everything, once when it is told of it and once to write it."""

    def __init__(self, exports: Iterable[Exported]) -> None:
        self._exports = exports

    def describe(self) -> Iterable[Metric]:
        return ()  # nothing is compared with others: the page is this

    def collect(self) -> Iterator[Metric]:
        return map(_metric, self._exports)


def _metric(one: Exported) -> Metric:
    if one.kind == "histogram":
        return _histogram(one)
    kind = CounterMetricFamily if one.kind == "counter" else GaugeMetricFamily
    made = kind(one.name, one.help, labels=one.labels)
    for labels, (value,) in one.samples:
        made.add_metric(labels, value)
    return made


def _histogram(one: Exported) -> Metric:
    made = HistogramMetricFamily(one.name, one.help, labels=one.labels)
    bounds = [*map(str, one.bounds), "+Inf"]
    for labels, (*counts, total) in one.samples:
        made.add_metric(labels, list(zip(bounds, accumulate(counts), strict=True)), total)
    return made
