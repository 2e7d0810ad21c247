# SPDX-License-Identifier: Apache-2.0
"""The program decides as the reference does, whatever comes."""

from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from inferlane.wire import Header, Type, encode
from proxy.quic.connection_ids import PLACES, ConnectionIds
from proxy.steering.program import SHORTEST, Steering, decide, program
from tests.fakes.cbpf_machine import run

KEY = b"shared by all workers"


@st.composite
def ranges(draw: st.DrawFn) -> range:
    start = draw(st.integers(0, PLACES - 1))
    return range(start, draw(st.integers(start + 1, PLACES)))


steerings = st.builds(Steering, st.sampled_from([KEY, b"another"]), ranges(), st.lists(ranges(), max_size=3))


@st.composite
def our_ids(draw: st.DrawFn) -> bytes:
    ids = ConnectionIds(draw(st.integers(0, PLACES - 1)), draw(st.integers(0, 40)), KEY)
    return ids.issue(draw(st.binary(min_size=7, max_size=7)))


def long_header(cid: bytes, rest: bytes = bytes(20)) -> bytes:
    return b"\xc3\x00\x00\x00\x01" + bytes([len(cid)]) + cid + rest


def short_header(cid: bytes, rest: bytes = bytes(20)) -> bytes:
    return b"\x47" + cid + rest


datagrams = st.one_of(
    st.binary(max_size=60),
    st.builds(long_header, our_ids(), st.binary(max_size=30)),
    st.builds(short_header, our_ids(), st.binary(max_size=30)),
    st.builds(long_header, st.binary(max_size=20), st.binary(max_size=30)),
    st.builds(short_header, st.binary(min_size=10, max_size=10), st.binary(max_size=30)),
    st.builds(lambda rest: b"\x0a" + rest, st.binary(max_size=60)),
    st.builds(lambda first, cid: bytes([first]) + cid + bytes(9), st.integers(0, 255), our_ids()),
)


@given(steerings, datagrams)
@example(Steering(KEY, range(3, 4)), b"")
def test_the_program_is_the_reference(steering: Steering, datagram: bytes) -> None:
    place = run(program(steering), datagram)
    assert place == decide(steering, datagram)
    assert steering.reads(place), "somebody reads there"


@given(st.integers(0, 7), st.integers(0, 99), st.binary(min_size=7, max_size=7))
def test_ids_of_ours_go_to_their_place_in_both_kinds_of_header(place: int, generation: int, random: bytes) -> None:
    """Also while the other half of the places gets what is new: that is an upgrade."""
    cid = ConnectionIds(place, generation, KEY).issue(random)
    for current, live in ((range(4), [range(4, 8)]), (range(4, 8), [range(4)]), (range(8), [])):
        code = program(Steering(KEY, current, live))
        assert run(code, long_header(cid)) == run(code, short_header(cid)) == place


def test_what_is_of_a_place_that_nobody_reads_goes_to_those_who_can_answer() -> None:
    cid = ConnectionIds(1, 0, KEY).issue(bytes(7))
    steering = Steering(KEY, range(4, 8))
    assert run(program(steering), short_header(cid)) in range(4, 8)


@given(st.binary(min_size=8, max_size=20), st.binary(max_size=1200), st.binary(max_size=1200))
def test_all_packets_with_one_id_of_the_client_s_meet(cid: bytes, one: bytes, other: bytes) -> None:
    code = program(Steering(KEY, range(4)))
    assert run(code, long_header(cid, one + bytes(8))) == run(code, long_header(cid, other + bytes(8)))


def test_new_connections_spread_over_the_bank() -> None:
    code = program(Steering(KEY, range(4, 8)))
    places = [run(code, long_header(number.to_bytes(8, "big"))) for number in range(1000)]
    assert all(150 < places.count(place) < 350 for place in range(4, 8))


@given(st.integers(0, 2**64 - 1))
def test_a_request_s_datagrams_meet_whatever_they_are(request_id: int) -> None:
    code = program(Steering(KEY, range(2, 5)))
    sent = [encode(Header(type=kind, request_id=request_id)) for kind in (Type.PING, Type.CANCEL)]
    sent.append(encode(Header(type=Type.REQUEST, request_id=request_id, model="m")))
    assert {run(code, each) for each in sent} == {2 + request_id % 2**32 % 3}


@given(st.binary(max_size=SHORTEST - 1))
def test_runts_go_to_the_first_place_of_the_current_bank(datagram: bytes) -> None:
    assert run(program(Steering(KEY, range(6, 9))), datagram) == 6


@pytest.mark.parametrize("places", [range(0), range(4, 4), range(0, 257), range(-1, 2), range(0, 8, 2)])
def test_no_steering_to_where_no_place_can_be(places: range) -> None:
    with pytest.raises(ValueError, match="no range of places"):
        Steering(KEY, places)
    with pytest.raises(ValueError, match="no range of places"):
        Steering(KEY, range(2), [places])


def test_the_key_stays_out_of_sight() -> None:
    assert "shared" not in repr(Steering(KEY, range(2)))
