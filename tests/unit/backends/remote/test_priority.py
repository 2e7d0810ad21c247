# SPDX-License-Identifier: Apache-2.0
"""Whatever a client writes, the backend sees the class's priority or none, and every other value as it was sent."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.remote.priority import oip_json, openai_json
from inferlane.errors import Reason, Refused


def oip(body: bytes, dialect: str | None, rank: int = 2, left_s: float = 0.5) -> bytes | None:
    return oip_json(body, len(body), dialect, rank, left_s=left_s)


@pytest.mark.parametrize(("dialect", "member"), [(None, b""), ("vllm", b'"priority":2,'), ("triton", b'"priority":3,')])
def test_the_clients_priority_gives_way_and_the_rest_keeps_its_bytes(dialect, member):
    body = b'{"priority": -9, "x": [1.50, {"priority": 3}], "y":"\\u00e9 \xc3\xa9"}'
    assert openai_json(body, dialect, 2) == b"{" + member + b'"x":[1.50, {"priority": 3}],"y":"\\u00e9 \xc3\xa9"}'


@pytest.mark.parametrize(
    "body", [b'{ "model" : "m" }', b'{"text":"\\u00e9"}', b'{"text":"its \\"priority\\""}', b"not even JSON"]
)
def test_a_body_without_one_is_not_touched(body):
    assert openai_json(body, None, 2) is body
    assert oip(body, None) is None


@pytest.mark.parametrize("name", [b"priority", b"\\u0070riority", b"pri\\u006Frity"])
def test_escapes_do_not_hide_it(name):
    assert json.loads(openai_json(b'{"%b": 1, "x": 2}' % name, None, 0)) == {"x": 2}
    assert json.loads(oip(b'{"parameters": {"%b": 1, "x": 2}}' % name, None)) == {"parameters": {"x": 2}}


def test_the_last_of_two_does_not_survive_the_first():
    assert json.loads(openai_json(b'{"priority": 1, "x": 2, "priority": 3}', None, 0)) == {"x": 2}
    twice = b'{"parameters": {"priority": 1}, "parameters": {"priority": 2, "x": 1}}'
    assert json.loads(oip(twice, None)) == {"parameters": {"x": 1}}


@pytest.mark.parametrize(
    ("dialect", "parameters"),
    [(None, {"x": 1}), ("vllm", {"x": 1, "priority": 2}), ("triton", {"x": 1, "priority": 3, "timeout": 500_000})],
)
def test_the_parameters_of_the_other_api(dialect, parameters):
    body = b'{"inputs": [], "parameters": {"priority": 7, "timeout": 1, "x": 1}}'
    assert json.loads(oip(body, dialect)) == {"inputs": [], "parameters": parameters}


def test_only_the_json_part_is_read():
    body = b'{"inputs": []}"priority" and tensors'
    assert oip_json(body, 14, None, 0, left_s=1) is None
    assert oip_json(body, 14, "vllm", 0, left_s=1) == b'{"inputs":[],"parameters":{"priority":0}}'


@pytest.mark.parametrize(
    "first", [b'"parameters": {"priority": 1}', b'"parameters": {"timeout": 1}', b'"parameters": {"\\u0070riority": 1}']
)
@pytest.mark.parametrize("second", [b'"parameters": {"y": 1}', b'"parameters": null', b'"\\u0070arameters": {}'])
def test_parameters_that_stand_twice_hide_nothing_from_who_reads_the_first(first, second):
    edited = oip(b'{"inputs": [], %b, %b}' % (first, second), None)
    assert edited is not None
    assert edited.count(b"parameters") == 1
    assert not {"priority", "timeout"} & (json.loads(edited)["parameters"] or {}).keys()


@pytest.mark.parametrize("body", [b'{"inputs": [{"name": "priority"}]}', b'{ "id": "\\u00e4", "parameters": {"x": 1}}'])
def test_what_only_looks_like_it_is_not_touched(body):
    assert oip(body, None) is None


def test_time_that_is_up_is_still_a_time():
    assert json.loads(oip(b"{}", "triton", left_s=-1.0))["parameters"]["timeout"] == 1


@pytest.mark.parametrize("body", [b"", b"[]", b'{"priority"', b'"priority"', b'{"priority":' + b"[" * 100_000])
def test_what_is_no_object_cannot_be_given_one(body):
    for edit in (openai_json, lambda *args: oip(*args[:2])):
        with pytest.raises(Refused) as refused:
            edit(body, "vllm", 1)
        assert refused.value.reason is Reason.BAD_REQUEST


@pytest.mark.parametrize("parameters", [b"5", b"[]", b'"x"'])
def test_parameters_that_are_none(parameters):
    with pytest.raises(Refused) as refused:
        oip(b'{"parameters": %b}' % parameters, "triton")
    assert refused.value.reason is Reason.BAD_REQUEST
    assert json.loads(oip(b'{"parameters": null}', "vllm")) == {"parameters": {"priority": 2}}


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**60), 2**60) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8) | st.just("priority"), inner),
    max_leaves=8,
)
OBJECTS = st.dictionaries(st.text(max_size=8) | st.sampled_from(["priority", "timeout", "parameters"]), VALUES)


@given(OBJECTS, st.sampled_from([None, "vllm", "triton"]), st.integers(0, 6), st.booleans())
def test_only_the_priority_differs(members, dialect, rank, escaped):
    body = json.dumps(members, ensure_ascii=escaped).encode()
    expected = {name: value for name, value in members.items() if name != "priority"}
    if dialect is not None:
        expected["priority"] = rank + (dialect == "triton")
    assert json.loads(openai_json(body, dialect, rank)) == expected


@given(OBJECTS, st.sampled_from([None, "vllm", "triton"]), st.integers(0, 6), st.booleans())
def test_only_the_scheduling_parameters_differ(members, dialect, rank, escaped):
    given_parameters = members.get("parameters")
    if not isinstance(given_parameters, dict):
        members.pop("parameters", None)
        given_parameters = {}
    body = json.dumps(members, ensure_ascii=escaped).encode()
    edited = json.loads(oip(body, dialect, rank) or body)
    parameters = {name: value for name, value in given_parameters.items() if name not in ("priority", "timeout")}
    if dialect is not None:
        parameters["priority"] = rank + (dialect == "triton")
    if dialect == "triton":
        parameters["timeout"] = 500_000
    assert edited.pop("parameters", {}) == parameters
    members.pop("parameters", None)
    assert edited == members
