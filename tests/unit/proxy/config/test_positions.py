# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.positions import MAX_DEPTH, MAX_VALUES, Position, YamlError, parse

TEXT = """\
version: 1
classes:
  - name: realtime
    gate: {queue: 20ms}
  - {name: batch, "dead line": [1, 2]}
"""


def plain(text):
    return parse(text).plain()


def at(text, *path, key=False):
    found = parse(text).place(path, key=key)
    return found.line, found.column


def fault(text) -> YamlError:
    with pytest.raises(YamlError) as raised:
        parse(text)
    return raised.value


# Values


def test_mappings_are_dicts_and_lists_are_tuples():
    assert plain(TEXT) == {
        "version": 1,
        "classes": ({"name": "realtime", "gate": {"queue": "20ms"}}, {"name": "batch", "dead line": (1, 2)}),
    }


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("", None),
        ("~", None),
        ("null", None),
        ("true", True),
        ("FALSE", False),
        ("yes", "yes"),
        ("on", "on"),
        ("1", 1),
        ("-7", -7),
        ("010", 10),
        ("0o17", 15),
        ("0xfF", 255),
        ("1_000", "1_000"),
        ("1.5", 1.5),
        ("1e3", 1000.0),
        (".5", 0.5),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("20ms", "20ms"),
        ("12:30", "12:30"),
        ("2026-01-01", "2026-01-01"),
        ("'1'", "1"),
        ('"true"', "true"),
        ("'~'", "~"),
    ],
)
def test_scalars_are_those_of_yaml_1_2(text, value):
    found = plain(f"a: {text}")["a"]
    assert (type(found), found) == (type(value), value)


def test_nan_is_read_as_itself():
    assert math.isnan(plain("a: .nan")["a"])


def test_a_number_of_any_length_is_read_in_no_time():
    assert plain("a: " + "9" * 100_000)["a"] == math.inf


def test_a_text_without_a_document_is_nothing():
    assert [plain(text) for text in ("", "# only a comment\n", "---\n")] == [None, None, None]


# Positions


def test_values_keys_and_items_have_their_places():
    assert at(TEXT) == (1, 1)
    assert at(TEXT, "version") == (1, 10)
    assert at(TEXT, "version", key=True) == (1, 1)
    assert at(TEXT, "classes") == (3, 3)
    assert at(TEXT, "classes", 0) == (3, 5)
    assert at(TEXT, "classes", 0, "gate", "queue") == (4, 19)
    assert at(TEXT, "classes", 1, "dead line", key=True) == (5, 19)
    assert at(TEXT, "classes", 1, "dead line", 1) == (5, 36)


@pytest.mark.parametrize("missing", ["x", 7])
def test_what_is_not_there_is_at_what_would_hold_it(missing):
    assert at(TEXT, "classes", 1, missing) == (5, 5)
    assert at(TEXT, "classes", 1, missing, "deeper") == (5, 5)


def test_what_is_there_is_known():
    root = parse(TEXT)
    assert root.has(())
    assert root.has(("classes", 1, "dead line", 0))
    assert not root.has(("classes", 2))
    assert not root.has(("classes", "name"))
    assert not root.has(("version", 0))


def test_an_alias_is_where_its_anchor_is():
    text = "a: &one {b: 1}\nc: *one\n"
    assert plain(text) == {"a": {"b": 1}, "c": {"b": 1}}
    assert at(text, "c", "b") == (1, 13)
    assert at(text, "c", key=True) == (2, 1)


def test_merged_keys_are_where_they_are_written_and_yield_to_those_beside_them():
    text = "a: &a {x: 1, y: 2}\nb: &b {y: 3, z: 4}\nc: {<<: [*a, *b], x: 5}\n"
    assert plain(text)["c"] == {"x": 5, "y": 2, "z": 4}
    assert at(text, "c", "x") == (3, 22)
    assert at(text, "c", "z") == (2, 17)


def test_a_quoted_merge_sign_is_a_key():
    assert plain("'<<': 1") == {"<<": 1}


# What is refused


@pytest.mark.parametrize(
    ("text", "line", "column", "message"),
    [
        ("a: 1\na: 2\n", 2, 1, "a second time; the first is in line 1"),
        ("a: {b: 1, 'b': 2}", 1, 11, "a second time; the first is in line 1"),
        ("a: [1, 2\nb: 3\n", 2, 2, "not YAML: while parsing a flow sequence"),
        ("a: 1\n b: 2\n", 2, 3, "not YAML: mapping values are not allowed here"),
        ("a:\n\t- 1\n", 2, 1, "not YAML: while scanning for the next token, found character '\\t'"),
        ("a: 'b\n", 2, 1, "not YAML: while scanning a quoted scalar, found unexpected end of stream"),
        ("a: 1\nb: \x07\n", 2, 4, r"the character '\x07' cannot stand in YAML"),
        ("a: 1\n---\nb: 2\n", 2, 1, "a second document begins here"),
        ("%YAML 1.1\n---\na: yes\n", 2, 1, "only YAML 1.2 is read here"),
        ("a: !!str 5", 1, 4, "the tag tag:yaml.org,2002:str has no meaning here; remove it"),
        ("a: !env X", 1, 4, "the tag !env has no meaning here; remove it"),
        ("a: *b", 1, 4, "*b stands for nothing: no &b ends before it"),
        ("a: &a [*a]", 1, 8, "*a stands for nothing"),
        ("? [1]\n: 2", 1, 3, "a key is a word, not a list, a mapping or an alias"),
        ("a: {<<: 1}", 1, 9, "<< takes a mapping, or a list of mappings"),
    ],
)
def test_the_first_fault_is_told_with_its_place(text, line, column, message):
    found = fault(text)
    assert found.message.startswith(message)
    assert found.position == Position(line, column)


def test_a_fault_knows_its_keys():
    assert fault("a: [{b: 1, b: 2}]").path == ("a", 0, "b")


# Bounds


@pytest.mark.parametrize(
    "text",
    [
        "[" * 100_000,
        "- " * 100_000,
        "{a: " * 100_000,
        "a: &k0 [1]\n" + "".join(f"k{n}: &k{n + 1} [[[*k{n}]]]\n" for n in range(200)),
    ],
)
def test_no_text_nests_deeper_than_the_bound(text):
    assert f"{MAX_DEPTH} levels" in fault(text).message


@pytest.mark.parametrize(
    "text",
    [
        "[" + "a," * (MAX_VALUES + 1) + "]",
        "a: &a x\nb: [" + "*a," * (MAX_VALUES + 1) + "]",
        "a: &a [1,1,1,1,1,1,1,1,1,1]\n"
        + "".join(f"{name}: &{name} [{','.join(['*' + chr(ord(name) - 1)] * 10)}]\n" for name in "bcdefghij"),
        "a: &a {" + ",".join(f"k{n}: 1" for n in range(1000)) + "}\nb: [" + "{<<: *a}," * 100 + "]",
    ],
)
def test_no_text_stands_for_more_values_than_the_bound(text):
    assert f"more than {MAX_VALUES} values" in fault(text).message


# Whatever comes

SIGNS = ["\n", "\n  ", "\t", "\x85", "\u2028", "\ufeff", "%YAML 1.1\n", "---", "...", "\\x"]
SYNTAX = ["- ", "[", "]", "{", "}", ", ", ": ", "? ", "'", '"', "&a ", "*a", "!x ", "|", ">-", "# c", "<<: ", "@"]
WORDS = ["a", "b: ", "~", "1_0", ".nan", "true"]
PIECES = st.lists(st.sampled_from(SIGNS + SYNTAX + WORDS), max_size=30).map("".join)


@given(st.text() | PIECES)
def test_any_text_is_a_tree_or_a_fault_inside_it(text):
    try:
        root = parse(text)
    except YamlError as error:
        assert 1 <= error.position.line <= len(text.splitlines()) + 2
        assert error.position.column >= 1
        assert "\n" not in error.message
        return
    root.plain()
    assert root.at >= Position(1, 1)
