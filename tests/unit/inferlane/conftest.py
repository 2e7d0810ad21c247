# SPDX-License-Identifier: Apache-2.0
"""What the SDK's tests share: a certificate, and one question with its answer."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from time import monotonic

import numpy as np
import pytest

from inferlane import oip
from inferlane.messages import EncodedRequest
from inferlane.target import parse_target
from inferlane.transports.quic import Trust
from proxy.certificate import development_certificate


@pytest.fixture(scope="session")
def pair(tmp_path_factory) -> tuple[Path, Path]:
    """A certificate for loopback, and its key."""
    return development_certificate(tmp_path_factory.mktemp("state"))


@pytest.fixture
def trust(pair) -> Trust:
    return Trust.load(pair[0], insecure=False, server_name=None)


@pytest.fixture
def ask():
    """Builds requests as the client hands them to a transport."""

    def build(body: bytes = b"{}", *, request_id: int = 7, **fields: object) -> EncodedRequest:
        given = {
            "request_id": request_id,
            "model": "magika",
            "version": "",
            "class_name": "realtime",
            "json_length": None,
            "started": monotonic(),
            "timeout_s": 30.0,
        }
        return EncodedRequest(body=body, **{**given, **fields})

    return build


@dataclass(frozen=True)
class Question:
    """A model's inputs, and a body that answers them."""

    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    body: bytes
    json_length: int


@pytest.fixture
def question() -> Question:
    outputs = {"target_label": np.array([[0.25, 0.75]], dtype=np.float32)}
    body, json_length = oip.encode_reply("magika", "1", outputs, binary=True)
    return Question({"bytes": np.arange(8, dtype=np.int32).reshape(1, 8)}, outputs, body, json_length)


@pytest.fixture
def target_of():
    """host and port -> Target."""
    return lambda port, scheme="https", host="127.0.0.1": parse_target(f"{scheme}://{host}:{port}")
