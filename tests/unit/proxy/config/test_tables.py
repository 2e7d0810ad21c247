# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from proxy.config.positions import parse
from proxy.config.tables import duration, names, parsed, repeated, tables, texts
from qos.units import parse_rate


def plain(text: str) -> dict:
    return parse(text).plain()


def test_the_mappings_in_lists_come_with_their_paths():
    config = plain("pools: [{endpoints: [{a: 1}, 5]}, x, {endpoints: 7}]")
    assert [path for path, _ in tables(config, "pools")] == [("pools", 0), ("pools", 2)]
    assert list(tables(config, "pools", "endpoints")) == [(("pools", 0, "endpoints", 0), {"a": 1})]


def test_a_text_may_stand_for_a_list_of_one():
    assert list(texts({"model": "a"}, "model")) == [(("model",), "a")]
    assert list(texts({"model": ("a", 5, "b")}, "model")) == [(("model", 0), "a"), (("model", 2), "b")]
    assert list(texts({"model": 5}, "model")) == []


@pytest.mark.parametrize(
    ("text", "known"),
    [
        ("{}", ["realtime", "interactive", "batch", "background"]),
        ("classes: [{name: a}, {name: b}]", ["a", "b"]),
        ("classes: [{name: a}, {}]", None),
        ("classes: 5", None),
        ("classes: []", None),
    ],
)
def test_names_are_known_only_where_all_can_be_read(text, known):
    assert names(plain(text), "classes") == known


def test_what_is_there_twice_is_told_at_the_second():
    (fault,) = repeated(iter([(("a",), "x"), (("b",), "y"), (("c",), "x")]))
    assert (fault.path, fault.message) == (("c",), "'x' is taken by a; once is enough")


@pytest.mark.parametrize("value", ["fast", 5, None, (), {}, True])
def test_what_cannot_be_read_is_nothing(value):
    assert parsed(parse_rate, value) is None
    assert duration(value) is None


def test_what_can_be_read_is_its_value():
    assert (parsed(parse_rate, "1mbit"), duration("20ms")) == (10**6, 0.02)
