# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec
import pytest

from qos.tc.capabilities import Capabilities
from qos.tc.design.choices import chosen_classifier, chosen_engine, ingress_obstacle, link_warnings
from tests.fakes.kernels import FULL, SMALL, link_facts
from tests.fakes.link_policies import policy_of


def interface(**given):
    return policy_of(given).interfaces[0]


def without(*kinds: str, kernel: Capabilities = FULL) -> Capabilities:
    def less(table: dict[str, str]) -> dict[str, str]:
        return {kind: "unknown" if kind in kinds else said for kind, said in table.items()}

    return msgspec.structs.replace(
        kernel,
        qdiscs=less(kernel.qdiscs),
        classifiers=less(kernel.classifiers),
        actions=less(kernel.actions),
        ifb="unknown" if "ifb" in kinds else kernel.ifb,
        clsact="unknown" if "clsact" in kinds else kernel.clsact,
        fq_bands="bands" not in kinds,
    )


@pytest.mark.parametrize("engine", ["auto", "htb", "cake", "ets", "fq", "marks"])
def test_a_full_kernel_gives_what_was_asked(engine):
    choice = chosen_engine(interface(engine=engine), link_facts(), FULL)
    assert choice.name == ("htb" if engine == "auto" else engine)
    assert (choice.notes, choice.fell_back, choice.leaf) == ((), False, choice.leaf)


def test_htb_without_fq_codel_says_what_is_lost():
    choice = chosen_engine(interface(), link_facts(), SMALL)
    assert (choice.name, choice.leaf) == ("htb", "bfifo")
    ((severity, text),) = choice.notes
    assert severity == "warning"
    assert "CONFIG_NET_SCH_FQ_CODEL=m gives it; using bfifo: classes and rates hold" in text


@pytest.mark.parametrize(
    ("asked", "missing", "used"),
    [
        ("cake", ("cake",), "htb"),
        ("auto", ("htb",), "ets"),
        ("htb", ("htb", "ets"), "fq"),
        ("fq", ("bands",), "htb"),
        ("auto", ("htb", "ets", "bands"), "marks"),
    ],
)
def test_the_next_best_is_used_and_everything_said(asked, missing, used):
    choice = chosen_engine(interface(engine=asked), link_facts(), without(*missing))
    assert (choice.name, choice.fell_back) == (used, True)
    (severity, text), *_ = choice.notes
    assert severity == "degraded"
    assert f"; using {used}: " in text
    assert "{" not in text
    assert all(f"{kind}: " in text for kind in missing if kind != "bands")


@pytest.mark.parametrize(
    ("queues", "egress", "engine", "used"),
    [
        (8, "10gbit", "auto", "marks"),
        (8, "9.9gbit", "auto", "htb"),
        (1, "10gbit", "auto", "htb"),
        (8, "10gbit", "htb", "htb"),
    ],
)
def test_many_queues_at_10_gbit_are_left_alone_unless_asked(queues, egress, engine, used):
    choice = chosen_engine(interface(egress=egress, engine=engine), link_facts(tx_queues=queues), FULL)
    assert choice.name == used
    if used == "marks":
        ((severity, text),) = choice.notes
        assert severity == "warning" and "say engine: htb" in text


@pytest.mark.parametrize(
    ("engine", "missing", "ingress", "used", "words"),
    [
        ("htb", (), False, "bpf", ""),
        ("htb", ("bpf",), False, "flower", "VLAN"),
        ("htb", (), True, "flower", "an ingress qdisc, not ours, is in its place; using flower"),
        ("ets", ("clsact", "flower"), False, "u32", "flower: not in this kernel"),
        ("htb", ("bpf", "flower", "u32"), False, "none", "all are in the default one"),
        ("cake", ("bpf",), False, "none", "CAKE reads the marks by its own table"),
        ("fq", ("clsact",), False, "none", "packets keep the priorities of their senders"),
    ],
)
def test_the_classifier_is_the_best_that_is_there(engine, missing, ingress, used, words):
    kind, lost = chosen_classifier(engine, without(*missing), ingress=ingress)
    assert kind == used
    assert words in lost and bool(lost) == (used != "bpf")


@pytest.mark.parametrize(
    ("engine", "missing", "words"),
    [
        ("htb", (), ""),
        ("cake", ("matchall",), ""),
        ("htb", ("matchall", "u32"), "u32: "),
        ("htb", ("ifb",), "CONFIG_IFB=m gives it"),
        ("htb", ("mirred",), "mirred: "),
        ("ets", (), "ets keeps no rate"),
        ("fq", (), "fq keeps no rate"),
    ],
)
def test_what_is_in_the_way_of_what_comes_in(engine, missing, words):
    found = ingress_obstacle(engine, without(*missing))
    assert words in found and bool(found) == bool(words)


@pytest.mark.parametrize(
    ("given", "facts", "words"),
    [
        ({}, {"up": False}, "it is down; what is made holds when it comes up: ip link set eth0 up"),
        ({}, {"managed_by": "NetworkManager"}, "NetworkManager manages it"),
        ({"egress": "2gbit"}, {"speed": 10**9}, "say overhead: ethernet and egress: 1gbit"),
        ({"egress": "990mbit"}, {"speed": 10**9}, "say overhead: ethernet and egress: 1gbit"),
        ({"egress": "2gbit", "overhead": "ethernet"}, {"speed": 10**9}, "say egress: 1gbit"),
    ],
)
def test_what_is_odd_about_a_link(given, facts, words):
    (warning,) = link_warnings(interface(**given), link_facts(**facts))
    assert words in warning


@pytest.mark.parametrize(
    "given",
    [{"egress": "980mbit"}, {"egress": "1gbit", "overhead": "ethernet"}, {"egress": "2gbit", "engine": "marks"}],
)
def test_what_fits_a_link_of_1_gbit(given):
    assert link_warnings(interface(**given), link_facts(speed=10**9)) == []
