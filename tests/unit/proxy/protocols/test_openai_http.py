# SPDX-License-Identifier: Apache-2.0
"""What steers a request on OpenAI's paths is read, and everything that could be read in two ways is refused."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlane.errors import Reason, Refused
from proxy.protocols.openai_http import OpenAiHead, error_object, read_head


@pytest.mark.parametrize(
    ("body", "head"),
    [
        (b'{"model": "m"}', OpenAiHead("m")),
        (b' {"messages": [{"role": "user"}], "stream": true, "model": "hub/m-7b"}\n', OpenAiHead("hub/m-7b", True)),
        (b'{"model": "m", "stream": false}', OpenAiHead("m", False)),
        (b'{"model": "m", "stream": null}', OpenAiHead("m", None)),
        ('{"model": "größe"}'.encode(), OpenAiHead("größe")),
    ],
)
def test_model_and_stream(body: bytes, head: OpenAiHead) -> None:
    assert read_head(body) == head


@pytest.mark.parametrize(
    ("body", "told"),
    [
        (b"", "not a JSON object"),
        (b"hello", "not a JSON object"),
        (b'{"model": "m"', "not a JSON object"),
        (b'{"model": "m"} {}', "not a JSON object"),
        (b'{"model": "m\xff"}', "not a JSON object"),
        (b'{"model": "\\ud800"}', "not a JSON object"),
        (b"[]", "Expected `object`"),
        (b"{}", "required field `model`"),
        (b'{"model": 5}', r"\$\.model"),
        (b'{"model": null}', r"\$\.model"),
        (b'{"model": "m", "stream": "yes"}', r"\$\.stream"),
        (b'{"model": ""}', "1 to 255 bytes"),
        (b'{"model": "a\\nb"}', "no controls"),
        (b'{"model": "%b"}' % (b"x" * 256), "1 to 255 bytes"),
        (b'{"model": "m", "x": ' + b"[" * 100_000, "nested too deep"),
    ],
)
def test_a_body_that_does_not_say_it(body: bytes, told: str) -> None:
    with pytest.raises(Refused, match=told) as refused:
        read_head(body)
    assert refused.value.reason is Reason.BAD_REQUEST


@given(st.binary(max_size=64) | st.text(alphabet='{}[]":,model stru\\0e', max_size=64).map(str.encode))
def test_any_bytes_are_read_or_refused(body: bytes) -> None:
    try:
        head = read_head(body)
    except Refused as refused:
        assert refused.reason is Reason.BAD_REQUEST
    else:
        assert json.loads(body)["model"] == head.model


@pytest.mark.parametrize(
    ("refusal", "kind"),
    [
        (Refused(Reason.UNKNOWN_MODEL, "no pool"), "invalid_request_error"),
        (Refused(Reason.EVICTED), "rate_limit_error"),
        (Refused(Reason.DEADLINE), "server_error"),
        (Refused(Reason.BACKEND_FAILED, status=503), "server_error"),
    ],
)
def test_the_error_object(refusal: Refused, kind: str) -> None:
    error = error_object(refusal)
    assert (error["type"], error["code"], error["param"]) == (kind, refusal.reason.label, None)
    assert error["message"]
