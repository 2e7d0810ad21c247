# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.config.errors import key_path
from proxy.config.link_checks import link_faults, link_warnings
from proxy.config.positions import parse
from proxy.config.settings import Config
from qos.settings import ClassSettings, LinkSettings
from qos.tc.design.compile import ifb_name
from qos.tc.settings import InterfaceSettings


def faults(text: str) -> list[tuple[str, str]]:
    return [(key_path(each.path), each.message) for each in link_faults(parse(text).plain())]


def classes(*links: str) -> str:
    """Classes a, b, c with these links; the last is the default one."""
    marks = ("EF", "AF21", "LE")
    said = [
        f"{{name: {name}, dscp: {mark}, default: {str(place == len(links) - 1).lower()}, link: {{{link}}}}}"
        for place, (name, mark, link) in enumerate(zip("abc", marks, links, strict=False))
    ]
    return f"classes: [{', '.join(said)}]"


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        classes("share: 30%", "share: 70%"),
        classes("share: 30%", ""),
        classes("share: 30%, ceiling: 30%", "share: 20%", "ceiling: 50%"),
        classes("share: 33.333%", "share: 33.333%", "share: 33.334%"),
        f"{classes('share: 1%', '')}\ninterfaces: [{{name: eth0, egress: 800kbit, ingress: 1gbit}}]",
        "interfaces: [{name: eth0, egress: 1mbit}, {name: eth1}, {name: eth0, netns: other}]",
        "interfaces: [{name: eth0, ingress: 1mbit}, {name: ifb-eth0, netns: other, ingress: 1mbit}]",
        "interfaces: [{name: eth0}, {name: ifb-eth0}]",
        "flows: [{class: batch, proto: udp, sport: [5000], dport: ['1-9']}, {class: batch, dscp: EF}]",
        "flows: [{class: batch, src: 10.0.0.0/8, dst: 192.0.2.0/24, before_nat: true}]",
        "classes: [{name: a, dscp: EF}, {name: b, dscp: EF, link: {police: 1mbit}}]",
        "classes: [{name: a, dscp: EF}, {name: b, dscp: EF, default: true, link: {share: 1%}}]",
        "classes: [{name: a, dscp: EF}, {name: b, dscp: EF, link: {share: 1%}}]\nflows: [{class: b, proto: tcp}]",
        "classes: [{name: a, dscp: EF, link: {share: 60%}}, {name: b, dscp: EF, link: {police: 1mbit}}, 5]",
        "classes: [{name: a, dscp: EF, link: {share: 60%}}, {name: b, dscp: LE, link: {share: big}}]",
    ],
)
def test_what_fits_together_has_no_faults(text):
    assert faults(text) == []


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        (
            classes("share: 60%", "share: 30%", "share: 30%"),
            "classes[2].link.share",
            "the shares to here add up to 120%; at most 100%",
        ),
        (
            classes("share: 60%", "share: 40%", ""),
            "classes[1].link.share",
            "the shares add up to 100%, and nothing is left for c, which say none; lower one of them",
        ),
        (
            classes("share: 60%, ceiling: 50%", ""),
            "classes[0].link.ceiling",
            "less than its share: 60% is guaranteed; at least that much",
        ),
        (
            classes("share: 20%", "ceiling: 30%", "share: 20%"),
            "classes[1].link.ceiling",
            "less than its share: 60% is what the others leave it, as it says no share; at least that much",
        ),
        (
            f"{classes('share: 1%', '')}\ninterfaces: [{{name: eth0, egress: 799kbit}}]",
            "interfaces[0].egress",
            "1% of it is 7.99kbit for a; a class needs at least 8kbit",
        ),
        (
            "interfaces: [{name: eth0, egress: 1mbit, ingress: 31kbit}]",
            "interfaces[0].ingress",
            "25% of it is 7.75kbit for realtime; a class needs at least 8kbit",
        ),
        (
            "classes: [{name: a, dscp: EF}, {name: b, dscp: EF, link: {queue: 1ms}}]",
            "classes[1].link",
            "no packet on a link can be told to be of this class: the mark EF is a's, which is served before it, and "
            "no flow names it; give it another dscp, or remove share, ceiling and queue",
        ),
        (
            "interfaces: [{name: eth0}, {name: eth1}, {name: eth0}]",
            "interfaces[2].name",
            "interfaces[0] is about this interface already; once is enough",
        ),
        (
            "interfaces: [{name: eth0, ingress: 1mbit}, {name: ifb-eth0}]",
            "interfaces[0].ingress",
            "it would be shaped on ifb-eth0, a name that interfaces[1] takes, too; rename one",
        ),
        (
            "flows: [{class: bulk, proto: tcp}]",
            "flows[0].class",
            "no class is named 'bulk'; allowed: realtime, interactive, batch, background",
        ),
        (
            "flows: [{class: batch, dport: [53]}]",
            "flows[0].dport",
            "ports of which protocol? give proto: udp or proto: tcp",
        ),
        (
            "flows: [{class: batch}]",
            "flows[0]",
            "no condition, so it is all traffic there is; give proto, src, dst, sport, dport or dscp",
        ),
        (
            "flows: [{class: batch, src: 10.0.0.0/8, dst: 'fd00::/8'}]",
            "flows[0].dst",
            "IPv6, and src is IPv4; no packet is both",
        ),
        (
            "flows: [{class: batch, proto: udp, before_nat: true}]",
            "flows[0].before_nat",
            "without effect: only addresses are translated; give src or dst",
        ),
        (
            f"flows: [{{class: batch, proto: udp, sport: {list(range(1, 200))}}}]",
            "flows[0].sport",
            "199 ports and ranges; at most 128, write a flow for the others",
        ),
    ],
)
def test_what_does_not_fit_together_is_told_where_it_can_be_mended(text, key, message):
    assert faults(text) == [(key, message)]


def test_two_long_names_never_share_an_ifb_silently():
    seen: dict[str, str] = {}
    pair = next((seen[ifb], name) for name in LONG_NAMES if (ifb := ifb_name(name)) in seen or seen.update({ifb: name}))
    text = ", ".join(f"{{name: {name}, ingress: 1mbit}}" for name in pair)
    ((key, message),) = faults(f"interfaces: [{text}]")
    assert key == "interfaces[1].ingress"
    assert message == f"it would be shaped on {ifb_name(pair[0])}, a name that interfaces[0] takes, too; rename one"


LONG_NAMES = [f"interface{number:06}" for number in range(3000)]


def test_more_classes_than_a_handle_can_count():
    many = ", ".join(f"{{name: c{place}, dscp: EF}}" for place in range(4096))
    assert faults(f"classes: [{many}]") == []
    (found,) = faults(f"classes: [{many}]\ninterfaces: [{{name: eth0}}]")
    assert found == ("classes", "4096 classes; at most 4095 where interfaces are shaped")


_SCALARS = (
    st.none() | st.booleans() | st.integers(-2, 70000) | st.sampled_from(["30%", "EF", "eth0", "10.0.0.0/8", "x"])
)
_KEYS = [
    "name",
    "dscp",
    "default",
    "link",
    "class",
    "proto",
    "src",
    "dst",
    "sport",
    "share",
    "ceiling",
    "egress",
    "netns",
]


def _mapping(values: st.SearchStrategy[Any]) -> st.SearchStrategy[dict[str, Any]]:
    return st.dictionaries(st.sampled_from([*_KEYS, "ingress", "before_nat"]), values, max_size=6)


_VALUES = st.recursive(_SCALARS, lambda inner: st.lists(inner, max_size=3).map(tuple) | _mapping(inner), max_leaves=12)


@given(
    st.dictionaries(
        st.sampled_from(["classes", "interfaces", "flows"]), st.lists(_mapping(_VALUES)).map(tuple) | _VALUES
    )
)
def test_whatever_a_file_holds_is_looked_at_without_failing(config):
    list(link_faults(config))


# Warnings


def config_of(
    *links: LinkSettings | None, max_class: str | None = "a", egress: int = 20 * 10**6, **more: Any
) -> Config:
    return Config.model_validate(
        {
            "classes": tuple(
                ClassSettings(name=name, dscp=dscp, deadline=1.0, default=place == len(links) - 1, link=link)
                for place, (name, dscp, link) in enumerate(zip("abc", (46, 18, 1), links, strict=False))
            ),
            "interfaces": (
                InterfaceSettings(name="eth1", egress=10**9),
                InterfaceSettings(name="eth0", egress=egress),
            ),
            "listeners": ({"name": "main", "bind": ("127.0.0.1:4433",), "max_class": max_class},),
            "pools": ({"name": "p", "model": "m", "endpoints": ({"oip": "http://127.0.0.1:1"},)},),
        }
        | more
    )


def test_a_class_that_may_send_more_than_its_share_is_told_with_its_numbers_on_the_slowest_link():
    (warning,) = link_warnings(config_of(LinkSettings(share=0.3), None))
    assert key_path(warning.path) == "interfaces[1].egress"
    assert warning.message == (
        "a is guaranteed 6mbit of it (30%) and may send 20mbit (ceiling 100%): nothing limits what listener main may "
        "carry of it, and above its share it takes what lower classes would borrow; give it the share it needs and "
        "write its ceiling: the same number holds it there, and bursts then wait for that rate; 100% says that this is "
        "meant"
    )


@pytest.mark.parametrize(
    "config",
    [
        config_of(LinkSettings(share=0.3, ceiling=0.3), None),
        config_of(LinkSettings(share=0.3, ceiling=1.0), None),
        config_of(LinkSettings(share=0.3), None, max_class=None),
        config_of(LinkSettings(share=0.3), None, interfaces=()),
        config_of(LinkSettings(share=0.3)),
    ],
    ids=[
        "held to its share",
        "meant",
        "no listener carries it",
        "nothing is shaped",
        "nobody is above the default class",
    ],
)
def test_what_cannot_take_more_than_was_meant_is_no_warning(config):
    assert list(link_warnings(config)) == []
