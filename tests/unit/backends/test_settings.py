# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from backends.pool_settings import PoolSettings
from backends.settings import (
    AdaptiveSettings,
    BatchSettings,
    CaSettings,
    DatagramSettings,
    OipSettings,
    OnnxSettings,
    OpenAiSettings,
    SecretSettings,
    parse_host_port,
)
from qos.schema import Reading

FILE = Reading(Path("/etc/inferlane"))


def pool(**changes) -> PoolSettings:
    written = {"name": "p", "model": "m", "endpoints": ({"oip": "http://a"},)} | changes
    return PoolSettings.model_validate(written, context=FILE)


def endpoint(**written):
    (found,) = pool(endpoints=(written,)).endpoints
    return found


def refusal(call, **written) -> str:
    with pytest.raises(ValidationError) as refused:
        call(**written)
    first, *_ = refused.value.errors()  # behind it pydantic says that the list around it is short of valid items
    return first["msg"]


# Endpoints


def test_an_endpoints_key_tells_its_kind():
    assert endpoint(oip="https://a:8000", slots=8, tls={"ca": "ca.pem"}) == OipSettings(
        oip="https://a:8000", slots=8, tls=CaSettings(ca=Path("/etc/inferlane/ca.pem"))
    )
    assert endpoint(datagram="10.20.0.6:4434") == DatagramSettings(datagram="10.20.0.6:4434")
    assert endpoint(openai="http://a", priority="vllm") == OpenAiSettings(openai="http://a", priority="vllm")
    assert endpoint(
        onnx="m.onnx", providers=("cuda", "cpu"), batch={"max_size": 16, "max_wait": "2ms"}
    ) == OnnxSettings(
        onnx=Path("/etc/inferlane/m.onnx"), providers=("cuda", "cpu"), batch=BatchSettings(max_size=16, max_wait=0.002)
    )


def test_an_onnx_endpoint_runs_on_the_cpu_without_batching():
    found = endpoint(onnx="m.onnx")
    assert (found.providers, found.batch, found.slots) == (("cpu",), BatchSettings(max_size=1, max_wait=0.0), None)


def test_settings_made_in_python_are_endpoints_too():
    oip = OipSettings(oip="http://a")
    assert pool(endpoints=(oip,)).endpoints == (oip,)


@pytest.mark.parametrize(
    ("written", "key", "message"),
    [
        ({"udp": "a:1", "slots": 1}, "udp", "not available yet; an endpoint has one of the keys onnx, oip, openai"),
        ({"onnx": "m", "oip": "http://a"}, "oip", "onnx stands here already"),
    ],
)
def test_an_endpoint_of_no_kind_or_two_is_refused_at_the_key(written, key, message):
    with pytest.raises(ValidationError) as refused:
        endpoint(**written)
    error, *_ = refused.value.errors()
    assert error["loc"] == ("endpoints", 0)
    assert error["ctx"]["key"] == key
    assert message in error["msg"]


def test_a_misspelt_kind_is_recognised():
    assert "did you mean datagram?" in refusal(endpoint, datagrm="a:1")
    assert "names nobody to ask; an endpoint has one of the keys" in refusal(endpoint)


@pytest.mark.parametrize("slots", [0, 65537])
def test_slots_have_bounds(slots):
    assert "equal to" in refusal(endpoint, oip="http://a", slots=slots)


def test_slots_may_follow_the_latency_within_bounds():
    assert endpoint(oip="http://a", slots="adaptive").slots == AdaptiveSettings(floor=1, ceiling=256)
    assert endpoint(datagram="a:1", slots={"floor": 2, "ceiling": 8}).slots == AdaptiveSettings(floor=2, ceiling=8)
    assert "allowed: a number, adaptive, or a mapping" in refusal(endpoint, oip="http://a", slots="many")
    assert "floor is above the ceiling" in refusal(endpoint, oip="http://a", slots={"floor": 9, "ceiling": 8})


def test_a_models_own_places_are_a_number():
    assert "valid integer" in refusal(endpoint, onnx="m", slots="adaptive")


def test_a_key_is_in_the_environment_or_in_a_file():
    assert endpoint(oip="http://a", key={"env": "KEY"}).key == SecretSettings(env="KEY")
    assert endpoint(oip="http://a", key={"file": "k"}).key == SecretSettings(file=Path("/etc/inferlane/k"))
    assert "one of the keys env, file" in refusal(endpoint, oip="http://a", key={})
    assert "one of the keys env, file" in refusal(endpoint, oip="http://a", key={"env": "A", "file": "b"})


def test_a_priority_field_is_one_that_is_known():
    assert "allowed: vllm, triton" in refusal(endpoint, openai="http://a", priority="high")


@pytest.mark.parametrize(("written", "key"), [({"onnx": "m"}, "key"), ({"datagram": "a:1"}, "tls")])
def test_what_a_kind_cannot_do_is_said(written, key):
    assert "Extra inputs are not permitted" in refusal(endpoint, **written, **{key: {}})


@pytest.mark.parametrize("provider", ["gpu", "CPU", "openvino"])
def test_providers_are_checked_against_our_own_list(provider):
    assert "allowed: cpu, cuda, tensorrt" in refusal(endpoint, onnx="m", providers=(provider,))


# Addresses


@pytest.mark.parametrize(
    "url",
    [
        "http://a",
        "https://triton.lan:8000",
        "http://10.20.0.5:8000/",
        "http://[fd00:20::5]:8000",
        "http://host/base/path",
        "http://my_service:80",
    ],
)
def test_urls_of_servers(url):
    assert endpoint(oip=url).oip == url


@pytest.mark.parametrize(
    "url",
    [
        "",
        "a:8000",
        "ftp://a",
        "http://",
        "http:///x",
        "http://a:0",
        "http://a:99999",
        "http://a:b",
        "http://[::1",
        "http://[v1.x]",
        "http://10.20.0.256",
        "http://user@a",
        "http://a?x",
        "http://a#x",
        "http://a b",
        "http://a\n",
        "http://a\tb",
        "http://-a",
        "http://ä",
    ],
)
def test_what_is_no_servers_url(url):
    message = refusal(endpoint, oip=url)
    assert "is not a server's URL; write it as http://10.20.0.5:8000 or https://host:8000" in message


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("10.20.0.6:4434", ("10.20.0.6", 4434)),
        ("[fd00:20::6]:4434", ("fd00:20::6", 4434)),
        ("host.lan:1", ("host.lan", 1)),
        ("localhost:0", ("localhost", 0)),
    ],
)
def test_host_and_port(text, address):
    assert parse_host_port(text) == address


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a", "is not host:port; write 127.0.0.1:4434 or [::1]:4434"),
        (":1", "is not host:port"),
        ("a:", "is not host:port"),
        ("::1:4434", "is not host:port"),
        ("a:-1", "is not host:port"),
        ("a:123456", "is not host:port"),
        ("a:65536", "port 65536 is beyond 65535"),
        ("[10.0.0.1]:1", "is not an IPv6 address"),
        ("[::g]:1", "is not an IPv6 address"),
        ("10.0.0.256:1", "is neither a host's name nor an IPv4 address"),
        ("a b:1", "is neither a host's name nor an IPv4 address"),
        ("a..b:1", "is neither a host's name nor an IPv4 address"),
    ],
)
def test_what_is_no_host_and_port(text, message):
    with pytest.raises(ValueError, match=r"host|port|address") as refused:
        parse_host_port(text)
    assert message in str(refused.value)


@given(st.text(alphabet="[]:.%-a1", max_size=20) | st.text())
def test_any_text_is_an_address_or_a_value_error(text):
    try:
        host, port = parse_host_port(text)
    except ValueError:
        return
    assert host
    assert 0 <= port <= 65535


def test_nothing_can_be_sent_to_port_0():
    assert "port 0 is nowhere to send to" in refusal(endpoint, datagram="10.20.0.6:0")
