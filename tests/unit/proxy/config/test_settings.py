# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from proxy.config.settings import AdminSettings, Bind, Config, ListenerSettings, LogSettings, TlsFiles
from qos.classify import classify
from qos.schema import Reading
from qos.settings import BUILT_IN_CLASSES, TrustSettings
from tests.fakes.walk import arrival

FILE = Reading(Path("/etc/inferlane"))


def listener(**changes) -> ListenerSettings:
    written = {"name": "main", "bind": ("127.0.0.1:4433",), "tls": "development"} | changes
    return ListenerSettings.model_validate(written, context=FILE)


def config(**changes) -> Config:
    written = {
        "listeners": ({"name": "main", "bind": ("127.0.0.1:4433",), "tls": "development"},),
        "pools": ({"name": "p", "model": "m", "endpoints": ({"oip": "http://a"},)},),
    }
    return Config.model_validate(written | changes, context=FILE)


def refusal(call, **written) -> str:
    with pytest.raises(ValidationError) as refused:
        call(**written)
    (error,) = refused.value.errors()
    return error["msg"]


# Workers


@pytest.mark.parametrize(("written", "workers"), [({}, 1), ({"workers": 64}, 64), ({"workers": "auto"}, "auto")])
def test_one_worker_unless_it_says_so(written, workers):
    assert config(**written).workers == workers


@pytest.mark.parametrize("workers", [0, 65, -1, True, 2.0, "2", "many", None, []])
def test_what_is_no_number_of_workers(workers):
    assert refusal(config, workers=workers).endswith("is not a number of processes; allowed: 1 to 64, or auto")


# Addresses


@pytest.mark.parametrize("text", ["127.0.0.1:4433", "0.0.0.0:0", "[::1]:4433", "[::]:65535", "[fe80::1%eth0]:1"])
def test_an_address_is_written_as_it_is_read(text):
    assert str(Bind.parse(text)) == text


def test_brackets_are_of_the_text_and_not_of_the_host():
    assert Bind.parse("[::1]:4433") == Bind("::1", 4433)


@pytest.mark.parametrize(
    ("text", "remedy"),
    [
        ("localhost:4433", "'localhost' is a name; write 127.0.0.1 or [::1]"),
        ("gateway.lan:4433", "write an IP address, such as 127.0.0.1, 0.0.0.0 or [::]"),
        ("::1:4433", "write 127.0.0.1:4434 or [::1]:4434"),
        ("4433", "write 127.0.0.1:4434 or [::1]:4434"),
        ("127.0.0.1:70000", "beyond 65535"),
    ],
)
def test_what_is_no_address_is_refused_with_the_way_to_write_one(text, remedy):
    with pytest.raises(ValueError, match=r"write|beyond") as refused:
        Bind.parse(text)
    assert remedy in str(refused.value)


def test_loopback_is_what_only_this_machine_can_reach():
    loopback = ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1"]
    beyond = ["0.0.0.0:1", "[::]:1", "10.0.0.1:1"]
    assert [Bind.parse(text).loopback for text in loopback + beyond] == [True] * 3 + [False] * 3


# Listeners


def test_a_listener_has_all_transports_and_the_default_class_unless_it_says_so():
    assert listener() == ListenerSettings(
        name="main",
        bind=(Bind("127.0.0.1", 4433),),
        accept=frozenset({"h3", "stream", "datagram", "udp", "h1"}),
        tls="development",
        max_class=None,
        max_body=64 << 20,
    )


def test_a_certificate_is_two_files_beside_the_config():
    assert listener(tls={"cert": "cert.pem", "key": "/k/key.pem"}).tls == TlsFiles(
        cert=Path("/etc/inferlane/cert.pem"), key=Path("/k/key.pem")
    )


@pytest.mark.parametrize("tls", ["dev", 5, True, ("development",)])
def test_tls_is_nothing_else(tls):
    assert "allowed: development, or a mapping with cert and key" in refusal(listener, tls=tls)


def test_what_is_accepted_is_a_list_of_known_transports():
    assert listener(accept=("udp", "h3")).accept == {"udp", "h3"}
    assert "allowed: h3, stream, datagram, udp, h1" in refusal(listener, accept=("h2",))
    assert "did you mean stream?" in refusal(listener, accept=("streem",))
    assert "valid frozenset" in refusal(listener, accept="h3")
    assert "at least 1 item" in refusal(listener, accept=())


@pytest.mark.parametrize("size", ["0B", "4GiB"])
def test_a_body_is_as_long_as_the_wire_can_tell(size):
    assert "equal to" in refusal(listener, max_body=size)


# The whole


def test_what_is_not_said_has_its_default():
    found = config()
    assert found.version == 1
    assert found.classes == BUILT_IN_CLASSES
    assert found.rules == ()
    assert found.trust == TrustSettings(dscp_from=(), class_from=())
    assert found.admin == AdminSettings(bind=Bind("127.0.0.1", 9433))
    assert found.log == LogSettings(format="json", level="info")


@pytest.mark.parametrize("version", [2, "1", True, 1.0])
def test_there_is_one_version(version):
    assert "is not a version of this file's format; allowed: 1" in refusal(config, version=version)


def test_a_config_is_frozen_and_can_be_compared():
    found = config()
    assert found == config()
    assert hash(found) == hash(config())
    with pytest.raises(ValidationError, match="frozen"):
        found.version = 1


def test_the_policy_knows_the_ceiling_of_every_listener():
    listeners = (
        {"name": "main", "bind": ("127.0.0.1:1",), "tls": "development"},
        {"name": "lan", "bind": ("127.0.0.1:2",), "tls": "development", "max_class": "realtime"},
    )
    policy = config(listeners=listeners, trust={"class_from": ("127.0.0.0/8",)}).policy()
    given = [
        classify(arrival(listener=name, client="127.0.0.1", asked_class="realtime"), policy).traffic_class.name
        for name in ("main", "lan")
    ]
    assert given == ["interactive", "realtime"]
