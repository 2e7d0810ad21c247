# SPDX-License-Identifier: Apache-2.0
"""A page made of plain data, as the library's own parser reads it."""

from __future__ import annotations

import msgspec
from prometheus_client.parser import text_string_to_metric_families

from proxy.telemetry.exposition import process, render
from proxy.telemetry.families import BOUNDS, Exported, Family, Histogram, Seconds, exported


def told() -> list[Exported]:
    took = Seconds()
    took.observe(0.0002)
    took.observe(100.0)
    counted = Family("inferlane_things", "Things.", ("kind",), True, [(("a",), 3)])
    gauge = Family("inferlane_on", "On.", (), samples=[((), True)], across="max")
    return list(exported([counted, gauge], [Histogram("inferlane_took_seconds", "Took.", ("kind",), [(("a",), took)])]))


def test_what_was_exported_is_read_back():
    page = render(told())[0].decode()
    found = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert found["inferlane_things_total", "a"] == 3
    assert found["inferlane_on",] == 1
    assert found["inferlane_took_seconds_bucket", "a", str(BOUNDS[0])] == 0
    assert found["inferlane_took_seconds_bucket", "a", str(BOUNDS[1])] == 1
    assert found["inferlane_took_seconds_count", "a"] == 2
    assert found["inferlane_took_seconds_sum", "a"] == 100.0002


def test_the_page_is_the_same_when_its_data_came_from_another_process():
    sent = msgspec.msgpack.encode(told())
    assert render(msgspec.msgpack.decode(sent, type=list[Exported])) == render(told())


def test_this_process_is_told_as_data():
    found = {each.name: each for each in process()}
    assert found["process_cpu_seconds"].kind == "counter"
    assert found["process_resident_memory_bytes"].samples[0][1][0] > 1e6
    assert found["process_max_fds"].across == "min"
