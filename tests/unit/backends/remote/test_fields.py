# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from backends.messages import Fields
from backends.remote.fields import Said, duration_text, is_encoded, said_by, to_backend

HOP_BY_HOP = [
    b"connection",
    b"keep-alive",
    b"proxy-authenticate",
    b"proxy-authorization",
    b"proxy-connection",
    b"te",
    b"trailer",
    b"transfer-encoding",
    b"upgrade",
]
OF_THE_CLIENT = [b"host", b"content-length", b"cookie", b"priority", b"expect"]
KEYS = [b"authorization", b"api-key", b"x-api-key"]
OURS = [b"inferlane-class", b"inferlane-timeout", b"inferlane-anything", b"traceparent", b"x-request-id"]
OF_THE_ORIGIN = [b"alt-svc", b"set-cookie", b"server-timing", b"x-request-id", b"inferlane-endpoint"]
ABOUT_OUR_KEY = [b"authorization", b"www-authenticate"]
END_TO_END = ((b"content-type", b"application/json"), (b"accept-encoding", b"gzip"), (b"x-tenant", b"a"))


def timed(*values: bytes) -> Said:
    """What a reply says of its times."""
    return said_by(tuple((b"server-timing", value) for value in values))


def to_client(fields: Fields) -> Fields:
    return said_by(fields).to_client


@pytest.mark.parametrize("name", [*HOP_BY_HOP, *OF_THE_CLIENT, *KEYS, *OURS, b"inference-header-content-length"])
def test_what_a_backend_never_sees(name):
    assert to_backend(((name, b"v"), *END_TO_END)) == list(END_TO_END)


@pytest.mark.parametrize(
    "name", [*HOP_BY_HOP, *OF_THE_ORIGIN, *ABOUT_OUR_KEY, b"content-length", b"inference-header-content-length"]
)
def test_what_a_client_never_sees(name):
    assert to_client(((name, b"v"), *END_TO_END)) == END_TO_END


@pytest.mark.parametrize("options", [b"x-tenant", b"close, X-Tenant", b"keep-alive ,\tx-tenant, "])
def test_connection_takes_along_what_it_nominates(options):
    nominating = (*END_TO_END, (b"connection", options))
    assert to_backend(nominating) == list(END_TO_END[:2])
    assert to_client(nominating) == END_TO_END[:2]


def test_repeated_fields_and_their_order_stay():
    fields = ((b"via", b"1"), (b"x-a", b"2"), (b"via", b"3"))
    assert to_backend(fields) == list(fields)
    assert to_client(fields) == fields


@given(st.lists(st.tuples(st.binary(max_size=8), st.binary(max_size=8))))
def test_nothing_is_added_or_changed(fields):
    passed = to_backend(tuple(fields))
    remaining = iter(fields)
    assert all(field in remaining for field in passed)


def test_the_length_of_the_json_part():
    said = said_by(((b"x", b"1"), (b"inference-header-content-length", b"44")))
    assert (said.json_length, said.no_number) == (44, False)
    assert (said_by(()).json_length, said_by(()).no_number) == (None, False)


@pytest.mark.parametrize("value", [b"", b"-1", b"4.0", b"4 4", b"1e3", b"9" * 20])
def test_nonsense_as_the_length_of_the_json_part(value):
    said = said_by(((b"inference-header-content-length", value),))
    assert (said.json_length, said.no_number) == (None, True)


@pytest.mark.parametrize(
    ("value", "seconds"),
    [
        (b"compute;dur=12.3", 0.0123),
        (b"queue;dur=1, compute;desc=gpu;dur=2.5, total;dur=9", 0.0025),
        (b'compute ; Dur = "4"', 0.004),
        (b"compute;dur=0", 0.0),
        (b"compute", None),
        (b"compute;dur", None),
        (b"compute;dur=", None),
        (b"compute;dur=fast", None),
        (b"compute;dur=-1", None),
        (b"compute;dur=nan", None),
        (b"compute;dur=inf", None),
        (b"precompute;dur=1", None),
        (b"queue;dur=1", None),
    ],
)
def test_compute_time_from_server_timing(value, seconds):
    assert timed(value).compute_s == (None if seconds is None else pytest.approx(seconds))


def test_compute_time_may_stand_in_a_second_field():
    assert timed(b"queue;dur=1", b"compute;dur=3").compute_s == pytest.approx(0.003)
    assert said_by(()).compute_s is None


def test_of_two_times_with_one_name_the_first_counts():
    assert timed(b"compute;dur=1, compute;dur=2", b"compute;dur=3").compute_s == pytest.approx(0.001)
    assert timed(b"compute", b"compute;dur=3").compute_s is None


def test_waiting_inside_the_backend_is_told_beside_it():
    assert timed(b"network;dur=9, queue;dur=1.5, compute;dur=3").queue_s == pytest.approx(0.0015)
    assert timed(b"compute;dur=3").queue_s is None


@pytest.mark.parametrize(
    ("kind", "events"),
    [
        (b"text/event-stream", True),
        (b"Text/Event-Stream; charset=utf-8", True),
        (b"text/event-stream;charset=utf-8", True),
        (b"text/event-streams", False),
        (b"application/json", False),
        (b"", False),
    ],
)
def test_what_an_event_stream_calls_itself(kind, events):
    assert said_by(((b"server", b"x"), (b"content-type", kind))).event_stream is events
    assert said_by(((b"content-type", kind), (b"content-type", b"text/event-stream"))).event_stream is events
    assert not said_by(()).event_stream


@pytest.mark.parametrize(("coding", "encoded"), [(b"gzip", True), (b"identity", False), (b"Identity", False)])
def test_a_body_that_cannot_be_looked_into(coding, encoded):
    of_one, of_two = (
        ((b"content-encoding", coding),),
        ((b"content-encoding", b"identity"), (b"content-encoding", coding)),
    )
    assert [is_encoded(of_one), is_encoded(of_two), is_encoded(())] == [encoded, encoded, False]
    assert [said_by(each).encoded for each in (of_one, of_two, ())] == [encoded, encoded, False]


@given(st.text(alphabet='compute;dur=,. "0123456789eE+-naif\t').map(str.encode))
def test_whatever_a_backend_measures_is_a_duration_or_nothing(value):
    seconds = timed(b"compute;dur=" + value).compute_s
    assert seconds is None or 0 <= seconds < 86_400


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(2.0, "2000ms"), (0.0489, "48ms"), (0.01, "10ms"), (0.0099, "9900us"), (5e-7, "1us"), (0.0, "1us"), (-1.0, "1us")],
)
def test_remaining_time_is_told_rounded_down(seconds, text):
    assert duration_text(seconds) == text.encode()
