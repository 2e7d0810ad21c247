# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from proxy.config.errors import ConfigError, Fault, Problem, key_path, located, shape_faults, unknown_name
from proxy.config.positions import parse
from proxy.config.settings import Config
from qos.schema import Reading

LEAST = {
    "listeners": ({"name": "main", "bind": ("127.0.0.1:4433",), "tls": "development"},),
    "pools": ({"name": "p", "model": "m", "endpoints": ({"oip": "http://a"},)},),
}


def faults(text: str) -> list[Fault]:
    """What is wrong with the shape of a config that has the text's keys beside the least that it needs."""
    root = parse(text)
    with pytest.raises(ValidationError) as raised:
        Config.model_validate(LEAST | root.plain(), context=Reading(Path("/")))
    return list(shape_faults(raised.value, root))


# Problems


def test_a_problem_reads_as_compilers_write():
    problem = Problem("g.yaml", 3, 7, "pools[0].slots", "0 is too little; at least 1")
    assert str(problem) == "g.yaml:3:7: pools[0].slots: 0 is too little; at least 1"
    assert str(Problem("g.yaml", 1, 1, "", "cannot be read")) == "g.yaml:1:1: cannot be read"


def test_an_error_is_its_problems_a_line_each():
    problems = [Problem("g.yaml", 1, 1, "a", "b"), Problem("g.yaml", 2, 1, "c", "d")]
    error = ConfigError(problems)
    assert error.problems == problems
    assert str(error) == "g.yaml:1:1: a: b\ng.yaml:2:1: c: d"


@pytest.mark.parametrize(
    ("path", "text"),
    [
        ((), ""),
        (("pools", 0, "endpoints", 1, "slots"), "pools[0].endpoints[1].slots"),
        ((0, "a"), "[0].a"),
        (("a", "b c"), "a.'b c'"),
        (("a", "x\ny"), r"a.'x\ny'"),
        (("max-class",), "max-class"),
    ],
)
def test_key_paths(path, text):
    assert key_path(path) == text


def test_faults_are_put_in_the_order_of_the_file():
    root = parse("a: 1\nb: {c: 2}\n")
    found = located([Fault(("b", "c"), "two"), Fault(("b", "c"), "key", at_key=True), Fault(("a",), "one")], root, "f")
    assert [str(each) for each in found] == ["f:1:4: a: one", "f:2:5: b.c: key", "f:2:8: b.c: two"]


def test_an_unknown_name_comes_with_the_known_ones_once_and_not_too_many():
    assert unknown_name("class", "btach", ["batch", "bulk", "batch"]) == (
        "no class is named 'btach'; did you mean batch?; allowed: batch, bulk"
    )
    assert len(unknown_name("class", "x", [f"class{n}" for n in range(10_000)])) < 1000


# Shapes


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("log: {level: 5}", ("log", "level"), "5 is not known; allowed: debug, info, warning, error"),
        ("log: json", ("log",), "'json' is not a mapping; write key: value pairs"),
        ("rules: {}", ("rules",), "a mapping is not a list; write [ITEM, ITEM] or begin each item with -"),
        ("classes: []", ("classes",), "an empty list; at least one item is needed"),
        ("classes: ~", ("classes",), "has no value; write one or remove the key"),
        (
            "rules: [{when: {model: 5}, class: a}]",
            ("rules", 0, "when", "model"),
            "5 is not text; put it in quotes if it is meant as text",
        ),
        ("rules: [{class: a}]", ("rules", 0, "when"), "missing; needed here: when, class"),
        (
            "admin: {bind: 9433}",
            ("admin", "bind"),
            "9433 is not an address with its port; write 127.0.0.1:4433 or [::1]:4433",
        ),
    ],
)
def test_values_of_the_wrong_shape(text, path, message):
    assert faults(text) == [Fault(path, message)]


@pytest.mark.parametrize(
    ("endpoint", "path", "message"),
    [
        (
            "{oip: 'http://a', slots: yes}",
            ("slots",),
            "'yes' is not known; allowed: a number, adaptive, or a mapping with floor and ceiling",
        ),
        (
            "{oip: 'http://a', slots: 1.0}",
            ("slots",),
            "1.0 is not a whole number; write it in digits alone, without quotes",
        ),
        ("{oip: 'http://a', slots: 99999}", ("slots",), "99999 is too much; at most 65536"),
        ("{oip: 'http://a', tls: {}}", ("tls", "ca"), "missing; needed here: ca"),
        (
            "{onnx: m, providers: cpu}",
            ("providers",),
            "'cpu' is not a list; write [ITEM, ITEM] or begin each item with -",
        ),
        (
            "{onnx: m, batch: {max_size: true}}",
            ("batch", "max_size"),
            "true is not a whole number; write it in digits alone, without quotes",
        ),
    ],
)
def test_values_of_the_wrong_shape_inside_variants(endpoint, path, message):
    text = f"pools: [{{name: p, model: m, endpoints: [{endpoint}]}}]"
    assert faults(text) == [Fault(("pools", 0, "endpoints", 0, *path), message)]


@pytest.mark.parametrize(
    ("text", "path", "message"),
    [
        ("<x>: 1", ("<x>",), "unknown key; allowed: version, classes, rules, trust, listeners, pools, interfaces, "),
        ("lgo: {}", ("lgo",), "unknown key; did you mean log?; allowed: version, classes, "),
        ("clients: 1", ("clients",), "not available yet; allowed: version, classes, "),
        (
            "rules: [{when: {path: /}, clas: a, class: a}]",
            ("rules", 0, "clas"),
            "unknown key; did you mean class?; allowed: when, class",
        ),
    ],
)
def test_unknown_keys_are_at_the_key_and_planned_ones_are_told_from_them(text, path, message):
    (found,) = faults(text)
    assert (found.path, found.at_key) == (path, True)
    assert found.message.startswith(message)


@pytest.mark.parametrize(
    "text",
    [
        "clients: x",
        "rules: [{when: {path: /, client: robots}, class: a}]",
        *(
            f"listeners: [{{name: a, bind: ['127.0.0.1:1'], tls: development, {key}: x}}]"
            for key in ("networks", "forward")
        ),
        "pools: [{name: p, model: m, endpoints: [{udp: 'a:1'}]}]",
        "trust: {class_from: [robots]}",
    ],
)
def test_everything_planned_says_that_it_is_not_available_yet(text):
    (found,) = faults(text)
    assert "not available yet" in found.message


@pytest.mark.parametrize(
    ("tls", "path", "message"),
    [
        ("{cert: a, kye: b, key: c}", ("kye",), "unknown key; did you mean key?; allowed: cert, key"),
        ("[development]", (), "a list is not known; allowed: development, or a mapping with cert and key"),
    ],
)
def test_the_variants_of_tls(tls, path, message):
    (found,) = faults(f"listeners: [{{name: a, bind: ['127.0.0.1:1'], tls: {tls}}}]")
    assert (found.path, found.message) == (("listeners", 0, "tls", *path), message)


def test_one_model_that_is_wrong_is_at_the_value_that_stands_for_a_list():
    text = "pools: [{name: p, model: '', endpoints: [{oip: 'http://a'}]}]"
    assert [each.path for each in faults(text)] == [("pools", 0, "model")]


def test_an_item_that_is_wrong_does_not_make_its_list_short_as_well():
    assert [each.path for each in faults("classes: [{name: a, dscp: EF, deadline: 5}]")] == [("classes", 0, "deadline")]


def test_what_we_have_no_words_for_is_said_in_pydantics():
    error = ValidationError.from_exception_data("Config", [{"type": "date_type", "loc": ("version",), "input": 1}])
    assert list(shape_faults(error, parse("version: 1"))) == [Fault(("version",), "Input should be a valid date")]
