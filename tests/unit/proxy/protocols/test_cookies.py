# SPDX-License-Identifier: Apache-2.0
"""Cookies prove an address for one to two epochs, and nothing else."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from proxy.protocols.cookies import COOKIE_BYTES, EPOCH_S, MOST_SEEN, CookieJar

HOME = ("192.0.2.1", 40000)


def test_good_for_its_epoch_and_the_next_only() -> None:
    jar = CookieJar(bytes(32))
    cookie = jar.mint(HOME, 10 * EPOCH_S)
    assert len(cookie) == COOKIE_BYTES
    assert jar.valid(cookie, HOME, 10 * EPOCH_S)
    assert jar.valid(cookie, HOME, 11.9 * EPOCH_S)
    assert not jar.valid(cookie, HOME, 12 * EPOCH_S)


def test_an_address_or_port_of_somebody_else_is_refused() -> None:
    jar = CookieJar(bytes(32))
    cookie = jar.mint(HOME, 0.0)
    assert not jar.valid(cookie, ("192.0.2.1", 40001), 0.0)
    assert not jar.valid(cookie, ("192.0.2.2", 40000), 0.0)
    assert not jar.valid(None, HOME, 0.0)


def test_workers_that_share_the_secret_accept_each_others_cookies_and_no_others() -> None:
    cookie = CookieJar(bytes(32)).mint(HOME, 5.0)
    assert CookieJar(bytes(32)).valid(cookie, HOME, 6.0)
    assert not CookieJar(b"x" * 32).valid(cookie, HOME, 6.0)


@given(st.binary(min_size=COOKIE_BYTES, max_size=COOKIE_BYTES), st.floats(0, 1e6))
def test_guesses_fail(guess: bytes, now: float) -> None:
    jar = CookieJar(bytes(32))
    assert jar.valid(guess, HOME, now) == (guess in (jar.mint(HOME, now), jar.mint(HOME, now - EPOCH_S)))


@given(st.lists(st.tuples(st.floats(0, 10 * EPOCH_S), st.sampled_from([0, 1, 2, 9])), max_size=30))
def test_a_jar_that_has_seen_much_judges_like_a_new_one(asked: list[tuple[float, int]]) -> None:
    jar = CookieJar(bytes(32))
    for now, epochs_ago in asked:
        cookie = CookieJar(bytes(32)).mint(HOME, now - epochs_ago * EPOCH_S)
        assert jar.valid(cookie, HOME, now) == CookieJar(bytes(32)).valid(cookie, HOME, now)


def test_what_it_has_seen_is_bounded_and_only_of_those_who_proved_their_address() -> None:
    jar = CookieJar(bytes(32))
    for port in range(MOST_SEEN + 10):
        peer = ("192.0.2.1", port)
        assert not jar.valid(bytes(COOKIE_BYTES), peer, 0.0)
        assert peer not in jar._seen
        assert jar.valid(jar.mint(peer, 0.0), peer, 0.0)
        assert len(jar._seen) <= MOST_SEEN
