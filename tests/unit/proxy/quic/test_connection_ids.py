# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.quic.connection_ids import CID_LENGTH, GENERATIONS, PLACES, RANDOM_BYTES, VERSION, ConnectionIds, Mix

KEY = b"shared by all workers"
places = st.integers(0, PLACES - 1)
randoms = st.binary(min_size=RANDOM_BYTES, max_size=RANDOM_BYTES)


@given(places, st.integers(0, 1000), randoms)
def test_what_one_worker_issues_every_worker_reads(place: int, generation: int, random: bytes) -> None:
    cid = ConnectionIds(place, generation, KEY).issue(random)
    assert len(cid) == CID_LENGTH and cid.endswith(random)
    assert ConnectionIds(7, 3, KEY).read(cid) == (VERSION, generation % GENERATIONS, place)


@given(st.binary(max_size=24))
def test_any_bytes_are_read_without_an_exception(cid: bytes) -> None:
    origin = ConnectionIds(key=KEY).read(cid)
    if origin is not None:
        assert cid[:3] == ConnectionIds(origin.place, origin.generation, KEY).issue(bytes(7))[:3]


def test_few_ids_of_others_pass_for_ours() -> None:
    """One in 4,096: 4 bits of version and 8 of check."""
    ids = ConnectionIds(key=KEY)
    passed = sum(ids.read(head.to_bytes(3, "big") + bytes(7)) is not None for head in range(0, 1 << 24, 5))
    assert passed == pytest.approx((1 << 24) / 5 / 4096, rel=0.1)


def test_ids_of_another_key_do_not_pass() -> None:
    issued = [ConnectionIds(place, 0, b"another").issue(bytes(7)) for place in range(PLACES)]
    assert sum(ConnectionIds(key=KEY).read(cid) is not None for cid in issued) < 10


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.binary(max_size=40))
def test_the_mix_stays_in_what_the_program_can_hold(first: int, second: int, key: bytes) -> None:
    mix = Mix.of(key)
    assert mix.mask < 1 << 16 and all(each & 1 and each < 1 << 32 for each in mix[1:])
    assert 0 <= mix.check(first & 0xFFFF) < 256 and 0 <= mix.spread(first, second) < 1 << 16


def test_what_cannot_be_written_is_refused() -> None:
    for place in (-1, PLACES):
        with pytest.raises(ValueError, match="is not in 0"):
            ConnectionIds(place)
    with pytest.raises(ValueError, match="random bytes"):
        ConnectionIds().issue(bytes(8))
    assert repr(ConnectionIds(3, 18)) == "<ConnectionIds of place 3, generation 2>"
