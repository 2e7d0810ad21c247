# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from pydantic import ValidationError

from qos.schema import Reading
from qos.tc.settings import OVERHEADS, FlowSettings, InterfaceSettings, SafetySettings

FILE = Reading(Path("/etc/inferlane"))


def read(kind, **written):
    return kind.model_validate(written, context=FILE)


def refusal(kind, **written):
    with pytest.raises(ValidationError) as refused:
        read(kind, **written)
    (error,) = refused.value.errors()
    return error["msg"]


def test_an_interface_needs_a_name_and_a_rate():
    assert read(InterfaceSettings, name="eth0", egress="940mbit") == InterfaceSettings(name="eth0", egress=940 * 10**6)


@pytest.mark.parametrize("name", ["", "a" * 16, "..", "a/b", "a:b", "a b", "a\n"])
def test_what_no_device_is_called(name):
    assert "is not an interface's name; allowed: 1 to 15 characters" in refusal(
        InterfaceSettings, name=name, egress="1mbit"
    )


@pytest.mark.parametrize("name", ["", "-x", "a/b", "../x", "x" * 65])
def test_what_no_namespace_is_called(name):
    message = refusal(InterfaceSettings, name="eth0", egress="1mbit", netns=name)
    assert "is not a namespace's name; `ip netns list` prints them" in message


@pytest.mark.parametrize("rate", ["7.999kbit", "400.1gbit"])
def test_rates_that_no_link_has(rate):
    assert "at least 8kbit and at most 400gbit" in refusal(InterfaceSettings, name="eth0", egress=rate)


@pytest.mark.parametrize(
    ("written", "size"), [*OVERHEADS.items(), ("38B", 38), ("0B", 0), ("256B", 256)], ids=lambda value: str(value)
)
def test_overhead_is_a_word_or_bytes(written, size):
    assert read(InterfaceSettings, name="eth0", egress="1mbit", overhead=written).overhead == size


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (
            "ethernt",
            "is not known; did you mean ethernet?; allowed: none, ethernet, vlan, or bytes a packet such as 38B",
        ),
        (38, "38 has no unit; write 38B, or one of none, ethernet, vlan"),
        ("257B", "less than or equal to 256"),
        ("38", "38 has no unit"),
    ],
)
def test_what_is_no_overhead(written, message):
    assert message in refusal(InterfaceSettings, name="eth0", egress="1mbit", overhead=written)


@pytest.mark.parametrize("key", ["engine", "degrade"])
def test_words_of_a_fixed_list(key):
    assert "is not known" in refusal(InterfaceSettings, name="eth0", egress="1mbit", **{key: "tbf"})


@pytest.mark.parametrize(
    ("written", "ports"), [(53, (53, 53)), ("53", (53, 53)), ("5010-5020", (5010, 5020)), (65535, (65535, 65535))]
)
def test_a_port_or_a_range(written, ports):
    assert read(FlowSettings, **{"class": "a", "dport": (written,)}).dport == (ports,)


@pytest.mark.parametrize(
    ("written", "message"),
    [
        (0, "allowed: 1 to 65535, a range from low to high"),
        (65536, "allowed: 1 to 65535"),
        ("9-5", "a range from low to high"),
        ("http", 'write 5000 or "5010-5020"'),
        ("1-2-3", "is not a port"),
        (True, "true is not a port"),
        (5.0, "5.0 is not a port"),
        ((), "a list is not a port"),
        ((1, 2), "a list is not a port"),
        ("9" * 40, "is not a port"),
    ],
)
def test_what_is_no_port(written, message):
    assert message in refusal(FlowSettings, **{"class": "a", "sport": (written,)})


@pytest.mark.parametrize("mark", ["CS6", "CS7"])
def test_no_flow_is_told_by_the_marks_of_network_control(mark):
    assert "is network control" in refusal(FlowSettings, **{"class": "a", "dscp": mark})


@pytest.mark.parametrize(
    ("written", "message"),
    [
        ({"confirm": "4s"}, "at least 5s and at most 1440m"),
        ({"drift": "ignore"}, "allowed: off, report, repair"),
        ({"repairs_per_10m": -1}, "greater than or equal to 0"),
        ({"on_failure": "shaped"}, "allowed: unshaped"),
        ({"on_exit": "stay"}, "allowed: keep, release"),
    ],
)
def test_what_safety_does_not_know(written, message):
    assert message in refusal(SafetySettings, **written)


def test_python_gives_a_range_as_it_is():
    assert FlowSettings.model_validate({"class": "a", "sport": ((1, 9),)}).sport == ((1, 9),)
