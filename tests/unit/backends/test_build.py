# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import pytest

from backends.build import build
from backends.local.onnx import OnnxBackend
from backends.picker import least_in_flight, round_robin
from backends.pool_settings import PoolSettings
from backends.remote.datagram import DatagramBackend
from backends.remote.oip import OipBackend


@pytest.fixture
def model(tmp_path):
    """A file with a model's name; nothing is loaded before start."""
    file = tmp_path / "magika" / "model.onnx"
    file.parent.mkdir()
    file.touch()
    return file


def pool_of(*endpoints: dict[str, object], **more: object) -> PoolSettings:
    return PoolSettings.model_validate({"name": "p", "model": "*", "endpoints": endpoints} | more)


def test_each_kind_of_endpoint(model):
    settings = pool_of(
        {"onnx": str(model)},
        {"onnx": str(model), "slots": 2, "batch": {"max_size": 8}},
        {"oip": "http://10.20.0.5:8000"},
        {"oip": "https://triton.example/team", "slots": 8, "tls": {"ca": str(model)}},
        {"datagram": "10.20.0.6:4434"},
        {"datagram": "[fd00::6]:4434", "slots": 3},
    )
    endpoints = build([settings]).pools[0].endpoints
    assert [(each.name, type(each.backend), each.slots) for each in endpoints] == [
        ("onnx:magika/model.onnx", OnnxBackend, 1),
        ("onnx:magika/model.onnx#2", OnnxBackend, 16),
        ("oip:10.20.0.5:8000", OipBackend, 16),
        ("oip:triton.example/team", OipBackend, 8),
        ("datagram:10.20.0.6:4434", DatagramBackend, 16),
        ("datagram:[fd00::6]:4434", DatagramBackend, 3),
    ]


def test_names_are_unique_in_a_pool_only():
    same = {"oip": "http://10.20.0.5:8000"}
    routes = build([pool_of(same, same, same), pool_of(same)])
    assert [[each.name for each in pool.endpoints] for pool in routes.pools] == [
        ["oip:10.20.0.5:8000", "oip:10.20.0.5:8000#2", "oip:10.20.0.5:8000#3"],
        ["oip:10.20.0.5:8000"],
    ]


@pytest.mark.parametrize(("pick", "picker"), [("round_robin", round_robin), ("least_in_flight", least_in_flight)])
def test_routes_and_picking(pick, picker):
    here, there = {"oip": "http://here:1"}, {"oip": "http://there:1"}
    routes = build([pool_of(here, there, name="a", model=("m", "n-*"), pick=pick), pool_of(here, name="b", model="m2")])
    assert [routes.pool_for(model).name for model in ("m", "n-1", "m2")] == ["a", "a", "b"]
    pool = routes.pools[0]
    pool.endpoints[0].take()
    pool.endpoints[0].take()
    assert pool.pick() is pool.endpoints[picker(pool.endpoints, 0)]


def test_a_gateway_that_only_forwards_loads_no_onnx_runtime():
    program = """
import sys
from backends.build import build
from backends.pool_settings import PoolSettings
build([PoolSettings.model_validate({"name": "p", "model": "*", "endpoints": ({"oip": "http://localhost:1"},)})])
sys.exit("onnxruntime" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0
