# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import numpy as np
import pytest

from backends.local.exchange import metadata_reply, read_request, write_reply
from backends.local.signature import Signature, TensorSpec
from inferlane.errors import Reason, Refused
from inferlane.oip import decode_reply, encode_request

NUMBERS = Signature(
    (TensorSpec("x", "FP32", (None, 2)),), (TensorSpec("y", "FP32", (None, 2)), TensorSpec("z", "FP16", (None,)))
)
PAIR = Signature((TensorSpec("a", "FP32", (None, 2)), TensorSpec("b", "FP32", (None, None))), ())
TEXT = Signature((TensorSpec("s", "BYTES", (None,)),), (TensorSpec("t", "BYTES", (None,)),))

X = np.array([[1, 2]], np.float32)


def ask(inputs, signature=NUMBERS, *, batched=False, most_rows=None, **options):
    return read_request(*encode_request(inputs, **options), signature, batched=batched, most_rows=most_rows)


def test_all_outputs_are_wanted_where_none_is_named():
    asked = ask({"x": X}, request_id="7")
    assert asked.request_id == "7"
    assert np.array_equal(asked.feeds["x"], X)
    assert asked.outputs == ["y", "z"]
    assert asked.binary == {"y", "z"}
    assert ask({"x": X}, binary=False).binary == set()


def test_only_the_named_outputs_are_wanted_where_some_are():
    asked = ask({"x": X}, outputs=["z"])
    assert asked.outputs == ["z"]
    assert asked.binary == {"z"}


def test_the_model_s_order_of_inputs_decides_which_requests_fit_together():
    a, b = np.zeros((1, 2), np.float32), np.zeros((1, 9), np.float32)
    one, other = ask({"a": a, "b": b}, PAIR), ask({"b": b, "a": a}, PAIR)
    assert one.key == other.key == ((2,), (9,))
    assert one.rows == 1
    assert one.key != ask({"a": a, "b": b[:, 1:]}, PAIR).key


def test_text_reaches_the_model_as_text():
    asked = ask({"s": np.array(["é", "b"])}, TEXT)
    assert asked.feeds["s"].tolist() == ["é", "b"]


def test_bytes_that_are_no_text_are_refused():
    with pytest.raises(Refused, match="input 's' holds bytes that are not UTF-8; the model expects text") as raised:
        ask({"s": np.array([b"\xff"], object)}, TEXT)
    assert raised.value.reason is Reason.INVALID_TENSOR


@pytest.mark.parametrize("shift", range(4))
def test_the_model_gets_aligned_numbers(shift):
    head = json.dumps(
        {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 2], "parameters": {"binary_data_size": 8}}]}
    ).encode()
    head += b" " * (-len(head) % 4 + shift)
    feed = read_request(head + X.tobytes(), len(head), NUMBERS).feeds["x"]
    assert feed.flags.aligned
    assert np.array_equal(feed, X)


def test_a_body_at_fault_and_a_tensor_at_fault_have_their_reasons():
    with pytest.raises(Refused) as raised:
        read_request(b"{", None, NUMBERS)
    assert raised.value.reason is Reason.BAD_REQUEST
    with pytest.raises(Refused, match="input 'x' has shape") as raised:
        ask({"x": np.zeros((1, 3), np.float32)})
    assert raised.value.reason is Reason.INVALID_TENSOR
    with pytest.raises(Refused, match="output 'w' is not one of the model's") as raised:
        ask({"x": X}, outputs=["w"])
    assert raised.value.reason is Reason.INVALID_TENSOR


def test_a_batched_model_s_inputs_have_equally_many_rows():
    inputs = {"a": np.zeros((2, 2), np.float32), "b": np.zeros((3, 1), np.float32)}
    assert ask(inputs, PAIR).rows == 2
    with pytest.raises(Refused, match="input 'b' has 3 rows; the first input has 2"):
        ask(inputs, PAIR, batched=True)


def test_a_batched_model_s_inputs_have_rows():
    empty = {"x": np.zeros((0, 2), np.float32)}
    assert ask(empty).rows == 0
    with pytest.raises(Refused, match="input 'x' has no rows; the model expects at least one"):
        ask(empty, batched=True)


def test_more_rows_than_are_run_are_refused():
    rows = {"x": np.zeros((5, 2), np.float32)}
    assert ask(rows, batched=True, most_rows=5).rows == 5
    with pytest.raises(Refused, match=r"input 'x' has 5 rows; at most 4 \(batch.max_size\) run here"):
        ask(rows, most_rows=4)


def test_a_reply_is_binary_json_or_both_as_asked():
    outputs = {"z": np.zeros(1, np.half), "y": X}
    reply = write_reply("m", ask({"x": X}, request_id="7"), outputs, 0.25)
    assert reply.compute_s == 0.25
    assert reply.fields == ((b"content-type", b"application/octet-stream"),)
    assert isinstance(reply.body, bytes)
    body = decode_reply(reply.body, reply.json_length)
    assert (body.model, body.version, body.request_id, list(body.outputs)) == ("m", "1", "7", ["y", "z"])

    reply = write_reply("m", ask({"x": X}, outputs=["y"], binary=False), outputs, 0.25)
    assert (reply.json_length, reply.fields) == (None, ((b"content-type", b"application/json"),))
    assert isinstance(reply.body, bytes)
    assert json.loads(reply.body)["outputs"] == [{"name": "y", "datatype": "FP32", "shape": [1, 2], "data": [1.0, 2.0]}]


@pytest.mark.parametrize(
    ("y", "why"),
    [(np.array([np.nan], np.float32), "NaN and infinity have no JSON form"), (np.zeros(1, np.half), "FP16")],
)
def test_an_output_that_json_cannot_carry_says_how_to_ask_for_it(y, why):
    asked = ask({"x": X}, outputs=["y"], binary=False)
    with pytest.raises(Refused, match=f"output 'y': {why}.*parameters.binary_data: true") as raised:
        write_reply("m", asked, {"y": y}, 0.0)
    assert raised.value.status == 400


def test_metadata_are_json():
    reply = metadata_reply("m", NUMBERS)
    assert isinstance(reply.body, bytes)
    assert json.loads(reply.body)["name"] == "m"
    assert reply.fields == ((b"content-type", b"application/json"),)
