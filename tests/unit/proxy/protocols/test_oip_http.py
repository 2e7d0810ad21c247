# SPDX-License-Identifier: Apache-2.0
"""Open Inference Protocol paths and steering fields."""

from __future__ import annotations

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from inferlane.errors import Reason, Refused
from proxy.arrival import Operation
from proxy.protocols.oip_http import Head, Target, head, target


@pytest.mark.parametrize(
    ("method", "path", "expected"),
    [
        (b"GET", b"/v2", Target(Operation.SERVER_METADATA)),
        (b"GET", b"/v2/", Target(Operation.SERVER_METADATA)),
        (b"GET", b"/v2/health/live", Target(Operation.LIVE)),
        (b"HEAD", b"/v2/health/ready", Target(Operation.READY)),
        (b"GET", b"/v2/models/m", Target(Operation.METADATA, "m")),
        (b"GET", b"/v2/models/m/versions/2", Target(Operation.METADATA, "m", "2")),
        (b"GET", b"/v2/models/m/ready", Target(Operation.MODEL_READY, "m")),
        (b"GET", b"/v2/models/m/versions/2/ready", Target(Operation.MODEL_READY, "m", "2")),
        (b"POST", b"/v2/models/m/infer", Target(Operation.INFER, "m")),
        (b"POST", b"/v2/models/m/versions/2/infer?x=1", Target(Operation.INFER, "m", "2")),
        (b"POST", b"/v2/models/a%20b/infer", Target(Operation.INFER, "a b")),
        (b"POST", b"/v1/chat/completions", Target(Operation.OPENAI)),
        (b"POST", b"/v1/completions?x=1", Target(Operation.OPENAI)),
        (b"POST", b"/v1/embeddings", Target(Operation.OPENAI)),
        (b"GET", b"/v1/models", Target(Operation.OPENAI_MODELS)),
        (b"HEAD", b"/v1/models/", Target(Operation.OPENAI_MODELS)),
        (b"GET", b"/v1/models/meta-llama/Llama-3%208B", Target(Operation.OPENAI_MODELS, "meta-llama/Llama-3 8B")),
    ],
)
def test_paths(method: bytes, path: bytes, expected: Target) -> None:
    assert target(method, path) == expected


@pytest.mark.parametrize(
    ("method", "path", "reason"),
    [
        (b"GET", b"/", Reason.NOT_FOUND),
        (b"GET", b"/v2/models", Reason.NOT_FOUND),
        (b"GET", b"/v2/models/m/versions", Reason.NOT_FOUND),
        (b"POST", b"/v2/models/m/generate", Reason.NOT_FOUND),
        (b"POST", b"/v1/files", Reason.NOT_FOUND),
        (b"POST", b"/v1/chat/completions/", Reason.NOT_FOUND),
        (b"POST", b"/v1/", Reason.NOT_FOUND),
        (b"GET", b"/v1", Reason.NOT_FOUND),
        (b"GET", b"/v1/models/" + b"x" * 300, Reason.NOT_FOUND),
        (b"GET", b"/v1/chat/completions", Reason.METHOD_NOT_ALLOWED),
        (b"POST", b"/v1/models", Reason.METHOD_NOT_ALLOWED),
        (b"DELETE", b"/v1/models/m", Reason.METHOD_NOT_ALLOWED),
        (b"POST", b"/v2/models/" + b"x" * 300 + b"/infer", Reason.NOT_FOUND),
        (b"GET", b"/v2/models/m/infer", Reason.METHOD_NOT_ALLOWED),
        (b"HEAD", b"/v2/models/m/infer", Reason.METHOD_NOT_ALLOWED),
        (b"POST", b"/v2", Reason.METHOD_NOT_ALLOWED),
        (b"DELETE", b"/v2/models/m", Reason.METHOD_NOT_ALLOWED),
    ],
)
def test_what_is_not_there(method: bytes, path: bytes, reason: Reason) -> None:
    with pytest.raises(Refused) as refused:
        target(method, path)
    assert refused.value.reason is reason


def test_steering_fields() -> None:
    found = head(
        (
            (b"x-other", b"1"),
            (b"inferlane-class", b"realtime"),
            (b"inferlane-timeout", b"20ms"),
            (b"priority", b"u=5, i"),
            (b"x-request-id", b"abc-1"),
            (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"),
            (b"inference-header-content-length", b"17"),
        )
    )
    trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"
    assert found == Head("realtime", 5, 0.02, "abc-1", trace, 17)


def test_hints_that_cannot_be_read_are_lost_and_nothing_else() -> None:
    found = head(((b"priority", b"u=99"), (b"x-request-id", b"a b\x80"), (b"traceparent", b"rubbish")))
    assert found == Head()


@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"inferlane-timeout", b"50"),
        (b"inferlane-timeout", b"-5ms"),
        (b"inference-header-content-length", b"-1"),
        (b"inference-header-content-length", b"+1"),
        (b"inference-header-content-length", b"1_0"),
        (b"inference-header-content-length", b"99999999999999"),
    ],
)
def test_what_must_be_exact_is_refused_by_name(name: bytes, value: bytes) -> None:
    with pytest.raises(Refused) as refused:
        head(((name, value),))
    assert refused.value.reason is Reason.BAD_REQUEST
    assert name.decode() in refused.value.detail


@given(st.from_regex(rb"/[!-~]{0,60}", fullmatch=True))
def test_any_path_is_a_target_or_refused(path: bytes) -> None:
    with contextlib.suppress(Refused):
        assert isinstance(target(b"GET", path), Target)
