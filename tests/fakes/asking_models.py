# SPDX-License-Identifier: Apache-2.0
"""Requests for models as their backends get them, without a door before them."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from backends.body import Body
from backends.messages import Request
from inferlane.oip import encode_request
from qos.timeline import Timeline
from qos.traffic_class import TrafficClass

CLASS = TrafficClass(name="interactive", rank=1, dscp=18, deadline_s=30.0, queue_s=30.0)


def request_of(inputs: Mapping[str, Any], *, binary: bool = True, model: str = "ünfug/名") -> Request:
    """With these tensors."""
    body, json_length = encode_request(inputs, binary=binary, request_id="r1")
    return asked(body, json_length, model=model)


def asked(body: bytes, json_length: int | None = None, *, model: str = "m", version: str = "") -> Request:
    """With this body."""
    now = time.monotonic()
    return Request(
        request_id="r1",
        model=model,
        version=version,
        traffic_class=CLASS,
        deadline=now + CLASS.deadline_s,
        body=Body.of(body),
        json_length=json_length,
        timeline=Timeline(now),
    )
