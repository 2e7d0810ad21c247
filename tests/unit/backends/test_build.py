# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import subprocess
import sys

import pytest

from backends.build import build, endpoint_of
from backends.choosing.health import HealthRules
from backends.choosing.picker import PICKERS
from backends.local.onnx import OnnxBackend
from backends.messages import Api
from backends.pool_settings import PoolSettings
from backends.remote.datagram import DatagramBackend
from backends.remote.oip import OipBackend
from backends.remote.openai import OpenAiBackend
from backends.remote.served import ServedModel
from backends.settings import DatagramSettings, OipSettings, OpenAiSettings
from qos.limit import AdaptiveLimit


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
        {"openai": "http://vllm:8000", "priority": "vllm", "slots": 64},
        {"datagram": "10.20.0.6:4434"},
        {"datagram": "[fd00::6]:4434", "slots": 3},
    )
    endpoints = build([settings]).pools[0].endpoints
    assert [(each.name, type(each.backend), each.slots) for each in endpoints] == [
        ("onnx:magika/model.onnx", OnnxBackend, 1),
        ("onnx:magika/model.onnx#2", OnnxBackend, 16),
        ("oip:10.20.0.5:8000", OipBackend, 16),
        ("oip:triton.example/team", OipBackend, 8),
        ("openai:vllm:8000", OpenAiBackend, 64),
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


@pytest.mark.parametrize("pick", PICKERS)
def test_routes_and_picking(pick):
    here, there = {"oip": "http://here:1"}, {"oip": "http://there:1"}
    routes = build([pool_of(here, there, name="a", model=("m", "n-*"), pick=pick), pool_of(here, name="b", model="m2")])
    assert [routes.pool_for(model).name for model in ("m", "n-1", "m2")] == ["a", "a", "b"]
    first, second = routes.pools[0].endpoints
    first.take(0.0)
    assert routes.pools[0].pick(0.0) is (first if pick == "round_robin" else second)


def test_least_latency_unless_told_otherwise():
    assert pool_of({"oip": "http://here:1"}).pick == "least_latency"


def test_slots_that_follow_the_latency():
    bounds = {"floor": 2, "ceiling": 32}
    settings = pool_of({"oip": "http://a:1", "slots": "adaptive"}, {"openai": "http://b:1", "slots": bounds})
    first, second = build([settings]).pools[0].endpoints
    assert isinstance(first.limit, AdaptiveLimit)
    assert isinstance(second.limit, AdaptiveLimit)
    assert 2 <= second.slots <= 32


def test_zones_and_health_are_the_pool_s():
    settings = pool_of(
        {"oip": "http://cloud:1", "zone": "cloud"},
        {"oip": "http://edge:1", "zone": "edge"},
        zones=("edge", "cloud"),
        health={"failures": 9, "eject": "30s"},
    )
    pool = build([settings]).pools[0]
    assert [each.zone for each in pool.endpoints] == ["cloud", "edge"]
    assert {each.health.rules for each in pool.endpoints} == {HealthRules(failures=9, eject_s=30.0)}
    assert pool.pick(0.0) is pool.endpoints[1]


def test_names_that_are_looked_up_and_lists_join_later(tmp_path):
    (tmp_path / "more.yaml").touch()
    settings = pool_of(
        {"openai": "http://vllm.example:8000", "resolve": "5s"},
        {"openai": "http://10.0.0.1:8000"},
        endpoints_from={"file": str(tmp_path / "more.yaml")},
    )
    pool = build([settings]).pools[0]
    assert [each.name for each in pool.endpoints] == ["openai:10.0.0.1:8000"]
    pool.replace([])
    assert pool.api is Api.OPENAI


@pytest.mark.parametrize(
    ("settings", "address", "name"),
    [
        (OipSettings(oip="https://triton.example/team"), "10.0.0.1", "oip:triton.example/team@10.0.0.1"),
        (OpenAiSettings(openai="http://vllm.example:8000"), "fd00::7", "openai:vllm.example:8000@fd00::7"),
        (DatagramSettings(datagram="far.example:4434"), "fd00::7", "datagram:far.example:4434@fd00::7"),
        (DatagramSettings(datagram="far.example:4434"), "10.0.0.1", "datagram:far.example:4434@10.0.0.1"),
    ],
)
def test_an_address_of_a_name_is_an_endpoint_of_its_own(settings, address, name):
    assert endpoint_of(settings, (), address=address).name == name
    assert endpoint_of(settings, {name, f"{name}#2"}, address=address).name == f"{name}#3"


def test_a_datagram_endpoint_is_sent_to_at_its_address():
    far = DatagramSettings(datagram="far.example:4434")
    assert "[fd00::7]:4434" in repr(endpoint_of(far, (), address="fd00::7").backend)
    assert "10.0.0.1:4434" in repr(endpoint_of(far, (), address="10.0.0.1").backend)


def test_a_gateway_that_only_forwards_loads_no_onnx_runtime():
    program = """
import sys
from backends.build import build
from backends.pool_settings import PoolSettings
build([PoolSettings.model_validate({"name": "p", "model": "*", "endpoints": ({"oip": "http://localhost:1"},)})])
sys.exit("onnxruntime" in sys.modules)
"""
    assert subprocess.run([sys.executable, "-c", program], check=False).returncode == 0


def test_a_model_that_another_process_runs_is_the_same_endpoint_at_a_socket(model, tmp_path):
    batched = {"onnx": str(model), "slots": 2, "batch": {"max_size": 8}}
    settings = pool_of({"oip": "http://10.20.0.5:8000"}, batched, {"onnx": str(model)})
    endpoints = build([settings], {("p", 1): tmp_path / "0.sock"}).pools[0].endpoints
    assert [(each.name, type(each.backend), each.slots) for each in endpoints] == [
        ("oip:10.20.0.5:8000", OipBackend, 16),
        ("onnx:magika/model.onnx", ServedModel, 16),
        ("onnx:magika/model.onnx#2", OnnxBackend, 1),
    ]
