# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tritonclient.http import InferenceServerClient, InferInput, InferRequestedOutput, InferResult

from inferlane.oip import (
    DATATYPES,
    OipError,
    RequestedOutput,
    decode_reply,
    decode_request,
    encode_reply,
    encode_request,
)

SAMPLES = {
    **{name: np.array([[0, 1], [1, 0], [1, 1]], dtype) for name, dtype in DATATYPES.items() if name != "BYTES"},
    "BYTES": np.array([[b"", b"\xff\x00"], [b"abc", b"d"], [b"\xc3\xa9", b"z" * 300]], object),
}


def body_of(*inputs: dict, binary: bytes = b"", **others: object) -> tuple[bytes, int]:
    head = json.dumps({"inputs": list(inputs), **others}).encode()
    return head + binary, len(head)


def tensor(name: str = "x", datatype: str = "FP32", shape: tuple = (2,), **others: object) -> dict:
    return {"name": name, "datatype": datatype, "shape": list(shape), **others}


def sized(size: object) -> dict:
    return {"parameters": {"binary_data_size": size}}


@pytest.mark.parametrize("datatype", SAMPLES)
def test_a_request_with_binary_tensors_comes_back_as_it_went(datatype):
    array = SAMPLES[datatype]
    body, json_length = encode_request({"x": array}, request_id="7")
    request = decode_request(body, json_length)
    x = request.inputs["x"]
    assert (request.request_id, x.name, x.datatype, x.shape) == ("7", "x", datatype, (3, 2))
    assert x.array.tolist() == array.tolist()
    assert request.binary_outputs
    assert request.outputs == ()


@pytest.mark.parametrize("datatype", SAMPLES)
def test_a_reply_with_binary_tensors_comes_back_as_it_went(datatype):
    body, json_length = encode_reply("m", "1", {"y": SAMPLES[datatype]}, request_id="7", binary=True)
    reply = decode_reply(body, json_length)
    assert (reply.model, reply.version, reply.request_id) == ("m", "1", "7")
    assert reply.outputs["y"].tolist() == SAMPLES[datatype].tolist()


@pytest.mark.parametrize("datatype", [name for name in SAMPLES if name not in ("FP16", "BYTES")])
def test_json_tensors_come_back_as_they_went(datatype):
    array = SAMPLES[datatype]
    body, json_length = encode_request({"x": array}, binary=False)
    assert json_length is None
    assert json.loads(body) == {"inputs": [tensor("x", datatype, (3, 2), data=array.reshape(-1).tolist())]}
    request = decode_request(body, None)
    assert request.inputs["x"].array.tolist() == array.tolist()
    assert not request.binary_outputs

    body, json_length = encode_reply("m", "1", {"y": array}, binary=False)
    assert json_length is None
    assert decode_reply(body, None).outputs["y"].tolist() == array.tolist()


def test_json_text_comes_back_as_utf_8():
    body, _ = encode_request({"x": np.array(["é", "b"])}, binary=False)
    assert decode_request(body, None).inputs["x"].array.tolist() == ["é".encode(), b"b"]


def test_binary_tensors_lie_aligned_behind_the_json():
    for length in range(1, 20):
        body, json_length = encode_request({"x" * length: np.zeros(3)})
        assert json_length is not None
        assert json_length % 8 == 0
        assert decode_request(body, json_length).inputs["x" * length].array.flags.aligned


def test_binary_and_json_tensors_mix_in_any_order():
    body, json_length = body_of(
        tensor("a", "INT16", **sized(4)),
        tensor("b", "FP64", data=[0.5, 1]),
        tensor("c", "BYTES", (1,), **sized(6)),
        tensor("d", "BOOL", (1, 1), data=[[True]]),
        binary=b"\1\0\2\0" + b"\2\0\0\0hi",
    )
    inputs = decode_request(body, json_length).inputs
    assert {name: each.array.tolist() for name, each in inputs.items()} == {
        "a": [1, 2],
        "b": [0.5, 1.0],
        "c": [b"hi"],
        "d": [[True]],
    }


def test_each_output_may_be_asked_for_in_its_own_way():
    body, json_length = body_of(
        tensor(data=[1, 2]),
        outputs=[
            {"name": "a"},
            {"name": "b", "parameters": {"binary_data": True}},
            {"name": "c", "parameters": {"binary_data": False}},
            {"name": "d", "parameters": {}},
        ],
    )
    asked = decode_request(body, None).outputs
    assert asked == tuple(RequestedOutput(name, name == "b") for name in "abcd")
    head = json.loads(body) | {"parameters": {"binary_data_output": True, "sequence": 3}}
    request = decode_request(json.dumps(head).encode(), None)
    assert request.outputs == tuple(RequestedOutput(name, name != "c") for name in "abcd")
    assert request.binary_outputs
    assert request.parameters["sequence"] == 3
    assert json_length == len(body)


def test_the_outputs_of_a_reply_go_each_in_its_own_way():
    outputs = {"a": np.array([1.5], np.float32), "b": np.array([2], np.int64)}
    body, json_length = encode_reply("m", "1", outputs, binary={"b"})
    assert json_length is not None
    head = json.loads(body[:json_length])
    assert head["outputs"][0] == {"name": "a", "datatype": "FP32", "shape": [1], "data": [1.5]}
    assert head["outputs"][1] == {"name": "b", "datatype": "INT64", "shape": [1], **sized(8)}
    assert {name: each.tolist() for name, each in decode_reply(body, json_length).outputs.items()} == {
        "a": [1.5],
        "b": [2],
    }


def test_a_request_names_the_outputs_and_parameters_it_is_given():
    body, json_length = encode_request({"x": np.zeros(1)}, outputs=["y"], parameters={"temperature": 1})
    head = json.loads(body[:json_length])
    assert head["outputs"] == [{"name": "y", "parameters": {"binary_data": True}}]
    assert head["parameters"] == {"binary_data_output": True, "temperature": 1}


def test_scalars_and_empty_tensors_are_tensors():
    arrays = {"scalar": np.array(3.5, np.float32), "none": np.zeros((0, 4), np.int32), "texts": np.zeros(0, object)}
    for binary in (True, False):
        inputs = decode_request(*encode_request(arrays, binary=binary)).inputs
        assert {name: each.shape for name, each in inputs.items()} == {"scalar": (), "none": (0, 4), "texts": (0,)}
        assert inputs["scalar"].array == 3.5


def test_null_stands_for_nothing():
    body, _ = body_of(tensor(data=[1, 2], parameters=None), id=None, outputs=None, parameters=None)
    request = decode_request(body, None)
    assert (request.request_id, request.outputs, request.parameters) == ("", (), {})


@pytest.mark.parametrize(
    ("json_length", "message"),
    [
        (-1, "the JSON length is -1, but the body has"),
        (0, "the JSON length is 0, but the body has"),
        (10**9, "the JSON length is 1000000000, but the body has"),
        (5, "does not fit the Open Inference Protocol"),
    ],
)
def test_a_json_length_that_lies_is_refused(json_length, message):
    body, _ = body_of(tensor(data=[1, 2]))
    for decode in (decode_request, decode_reply):
        with pytest.raises(OipError, match=message) as raised:
            decode(body, json_length)
        assert raised.value.tensor == ""


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "Input data was truncated"),
        (b"{", "truncated"),
        (b"[]", "Expected `object`, got `array`"),
        (b"{}", "missing required field `inputs`"),
        (
            b'{"inputs":[{"name":"x","shape":[1],"data":[1]}]}',
            r"missing required field `datatype` - at `\$.inputs\[0\]`",
        ),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":["a"]}]}', r"got `str` - at `\$.inputs\[0\].shape\[0\]`"),
        (b'{"inputs":[{"name":"\xff","datatype":"FP32","shape":[1],"data":[1]}]}', "not UTF-8"),
        (b'{"inputs":[],"parameters":{"a":NaN}}', "^NaN at byte 31: the JSON is malformed"),
        (b'{"inputs":[{"name":"x","parameters":{"a":NaN}}]}', "^NaN at byte 41: the JSON is malformed"),
        (b'{"inputs":[]} x', "trailing characters"),
        (b'{"inputs":[],"other":' + b"[" * 100_000, "nested too deeply"),
        (b'{"inputs":[{"name":"x","datatype":"FP32","shape":[1],"data":' + b"[" * 100_000, "nested too deeply"),
        (b'{"inputs":[],"parameters":' + b'{"a":' * 100_000, "nested too deeply"),
        (b'{"inputs":[],"parameters":{"binary_data_output":1}}', "binary_data_output of the request is neither true"),
    ],
)
def test_json_that_is_no_request_is_refused(body, message):
    with pytest.raises(OipError, match=message) as raised:
        decode_request(body, None)
    assert raised.value.tensor == ""


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity"])
def test_what_is_no_number_in_json_is_named_with_its_tensor(value):
    body = b'{"inputs":[{"name":"x","datatype":"FP32","shape":[2],"data":[1,%b]}]}' % value.encode()
    with pytest.raises(OipError, match=f"^tensor 'x': {value} at byte 63: .*send the tensor as binary") as raised:
        decode_request(body, None)
    assert raised.value.tensor == "x"


@pytest.mark.parametrize(
    ("inputs", "binary", "message"),
    [
        ([tensor()], b"", "neither data nor parameters.binary_data_size is given"),
        ([tensor(data=[1, 2], **sized(8))], b"\0" * 8, "both data and parameters.binary_data_size"),
        ([tensor(**sized(-8))], b"\0" * 8, "binary_data_size is not a whole number"),
        ([tensor(**sized(8.0))], b"\0" * 8, "binary_data_size is not a whole number"),
        ([tensor(**sized(True))], b"\0", "binary_data_size is not a whole number"),
        ([tensor(**sized("8"))], b"\0" * 8, "binary_data_size is not a whole number"),
        ([tensor(**sized(4))], b"\0" * 8, r"shape \[2\] of FP32 takes 8 bytes, but binary_data_size is 4"),
        ([tensor(**sized(8))], b"\0" * 7, "only 7 bytes of the body are left"),
        ([tensor(**sized(8))], b"", "Inference-Header-Content-Length"),
        ([tensor(shape=(-2,), **sized(8))], b"\0" * 8, "negative dimension"),
        ([tensor(shape=(2**62, 2**62), **sized(8))], b"\0" * 8, "overflows"),
        ([tensor(data=[1, 2]), tensor(data=[1, 2])], b"", "given twice"),
        ([tensor(datatype="FP16", data=[1, 2])], b"", "FP16 has no JSON form"),
        ([tensor(datatype="BYTES", data=[1, 2])], b"", "Expected `str`, got `int`"),
        ([tensor(parameters={"shared_memory_region": "r"})], b"", "shared_memory_region is not supported"),
    ],
)
def test_a_tensor_that_does_not_fit_is_named(inputs, binary, message):
    body, json_length = body_of(*inputs, binary=binary)
    with pytest.raises(OipError, match=f"^input 'x': .*{message}") as raised:
        decode_request(body, json_length)
    assert raised.value.tensor == "x"


def test_a_tensor_s_name_is_cut_in_messages():
    body, _ = body_of(tensor("n" * 10_000))
    with pytest.raises(OipError) as raised:
        decode_request(body, None)
    assert len(str(raised.value)) < 200


def test_bytes_behind_the_last_tensor_are_refused():
    body, json_length = body_of(tensor(**sized(8)), binary=b"\0" * 11)
    with pytest.raises(OipError, match="3 bytes follow the data of the last tensor"):
        decode_request(body, json_length)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        ({"name": "y", "parameters": {"binary_data": 1}}, "binary_data of output 'y' is neither true nor false"),
        (
            {"name": "y", "parameters": {"classification": 3}},
            "output 'y': the parameter classification is not supported",
        ),
    ],
)
def test_an_output_that_cannot_be_as_asked_is_named(output, message):
    body, _ = body_of(tensor(data=[1, 2]), outputs=[output])
    with pytest.raises(OipError, match=message):
        decode_request(body, None)


def test_an_output_is_asked_for_once():
    body, _ = body_of(tensor(data=[1, 2]), outputs=[{"name": "y"}, {"name": "y"}])
    with pytest.raises(OipError, match="asked for twice"):
        decode_request(body, None)


def test_an_output_that_json_cannot_carry_says_how_to_ask_for_it():
    for array in (np.array([np.nan]), np.zeros(1, np.half), np.array([b"\xff"], object)):
        with pytest.raises(OipError, match=r"^output 'y': .*parameters.binary_data: true") as raised:
            encode_reply("m", "1", {"y": array}, binary=False)
        assert raised.value.tensor == "y"


def test_an_input_that_json_cannot_carry_says_how_to_send_it():
    with pytest.raises(OipError, match=r"^input 'x': .*send it with binary=True"):
        encode_request({"x": np.array([np.inf])}, binary=False)


def test_a_reply_that_lies_about_its_data_names_the_output():
    body, json_length = encode_reply("m", "1", {"y": np.zeros(4)}, binary=True)
    with pytest.raises(OipError, match=r"output 'y': .*only 24 bytes"):
        decode_reply(body[:-8], json_length)


@given(st.binary(max_size=80), st.none() | st.integers(-5, 100))
def test_any_bytes_are_a_body_or_refused(body, json_length):
    for decode in (decode_request, decode_reply):
        try:
            decode(body, json_length)
        except OipError as error:
            assert str(error)


@given(st.data())
def test_a_body_with_any_byte_changed_is_a_body_or_refused(data):
    body, json_length = encode_request(SAMPLES)
    at = data.draw(st.integers(0, len(body) - 1))
    changed = body[:at] + bytes([data.draw(st.integers(0, 255))]) + body[at + 1 :]
    try:
        inputs = decode_request(changed, json_length).inputs
    except OipError as error:
        assert str(error)
    else:
        assert sum(each.array.size for each in inputs.values()) <= len(body)


@pytest.mark.parametrize(
    ("datatype", "binary"),
    [(name, binary) for name in SAMPLES for binary in (True, False) if binary or name != "FP16"],
)
def test_what_triton_s_client_writes_is_read(datatype, binary):
    array = (
        SAMPLES[datatype] if binary or datatype != "BYTES" else np.array([["a", "é"], ["", "b"], ["c", "d"]], object)
    )
    given_input = InferInput("x", array.shape, datatype)
    given_input.set_data_from_numpy(array, binary_data=binary)
    outputs = [InferRequestedOutput("y", binary_data=True), InferRequestedOutput("z", binary_data=False)]
    body, json_length = InferenceServerClient.generate_request_body([given_input], outputs=outputs, request_id="9")
    request = decode_request(body, json_length)
    expected = [each.encode() if isinstance(each, str) else each for each in array.reshape(-1).tolist()]
    assert request.inputs["x"].array.reshape(-1).tolist() == expected
    assert request.outputs == (RequestedOutput("y", True), RequestedOutput("z", False))
    assert request.request_id == "9"


def test_without_outputs_triton_s_client_wants_all_of_them_binary():
    given_input = InferInput("x", [1], "INT8")
    given_input.set_data_from_numpy(np.zeros(1, np.int8))
    assert decode_request(*InferenceServerClient.generate_request_body([given_input])).binary_outputs


@pytest.mark.parametrize("datatype", SAMPLES)
def test_what_is_written_triton_s_client_reads(datatype):
    body, json_length = encode_reply("m", "1", {"y": SAMPLES[datatype]}, binary=True)
    result = InferResult.from_response_body(body, header_length=json_length)
    assert result.as_numpy("y").tolist() == SAMPLES[datatype].tolist()
    assert result.get_response()["model_name"] == "m"
