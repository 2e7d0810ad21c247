# SPDX-License-Identifier: Apache-2.0
"""What stands in the place of aioquic's functions answers as they do, and stands there."""

from __future__ import annotations

import inspect

import pytest
from aioquic import tls
from aioquic._buffer import Buffer
from aioquic.quic import connection, crypto
from cryptography.hazmat.primitives import hashes
from hypothesis import given
from hypothesis import strategies as st

from proxy.quic.shortcuts import (
    PulledBlock,
    PushedBlock,
    epochs,
    hkdf_expand_label,
    original_epochs,
    original_hkdf_expand_label,
)

ALGORITHMS = [hashes.SHA256(), hashes.SHA384(), hashes.SHA512()]


def test_they_stand_where_aioquic_looks() -> None:
    assert connection.EPOCHS is epochs
    assert tls.hkdf_expand_label is hkdf_expand_label
    assert vars(crypto)["hkdf_expand_label"] is hkdf_expand_label
    assert (vars(tls)["pull_block"], vars(tls)["push_block"]) == (PulledBlock, PushedBlock)
    for name in ("pull_list", "pull_opaque", "push_list", "push_opaque", "push_extension"):
        assert "_block(buf, " in inspect.getsource(getattr(tls, name))
    assert "EPOCHS(" in inspect.getsource(connection.QuicConnection.__init__)


def test_epochs_are_those_of_aioquic() -> None:
    for kinds in ("IH01", "IH1", "01", "1"):
        assert epochs(kinds) == original_epochs(kinds)
        assert epochs(kinds) is epochs(kinds)
    assert {each: each.name for each in tls.Epoch}[tls.Epoch.ONE_RTT] == "ONE_RTT"


@given(
    st.sampled_from(ALGORITHMS),
    st.binary(min_size=1, max_size=150),
    st.sampled_from([b"quic key", b"derived", b"c hs traffic", b"finished"]),
    st.binary(max_size=64),
    st.integers(1, 64),
)
def test_keys_are_those_of_aioquic(
    algorithm: hashes.HashAlgorithm, secret: bytes, label: bytes, context: bytes, length: int
) -> None:
    derived = hkdf_expand_label(algorithm, secret, label, context, length)
    assert derived == original_hkdf_expand_label(algorithm, secret, label, context, length)


@pytest.mark.parametrize("capacity", [1, 2, 3])
def test_a_block_carries_its_length_and_is_read_to_its_end(capacity: int) -> None:
    buffer = Buffer(capacity=100)
    with PushedBlock(buffer, capacity):
        buffer.push_bytes(b"block")
    assert buffer.data == (5).to_bytes(capacity, "big") + b"block"
    reader = Buffer(data=buffer.data)
    with PulledBlock(reader, capacity) as length:
        assert reader.pull_bytes(length) == b"block"
    reader = Buffer(data=buffer.data)
    with pytest.raises(tls.AlertDecodeError), PulledBlock(reader, capacity):
        reader.pull_bytes(3)
    with pytest.raises(KeyError), PulledBlock(Buffer(data=buffer.data), capacity):
        raise KeyError
