# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

import pytest
from hypothesis import given
from hypothesis import strategies as st

from qos.classify import Policy, Rule, Verdict, classify, urgency_ranks
from qos.dscp import parse_dscp
from qos.traffic_class import ClassTable, TrafficClass

REALTIME, INTERACTIVE, BATCH, BACKGROUND = CLASSES = [
    TrafficClass(name=name, rank=rank, dscp=parse_dscp(dscp), deadline_s=1.0, queue_s=1.0)
    for rank, (name, dscp) in enumerate(
        [("realtime", "EF"), ("interactive", "AF21"), ("batch", "AF11"), ("background", "LE")]
    )
]
TABLE = ClassTable(CLASSES, INTERACTIVE)
EF = parse_dscp("EF")

STRANGER = "192.0.2.1"
MARKER = "10.1.0.1"
"""From dscp_from."""
CHOOSER = "10.2.0.1"
"""From class_from."""


@dataclass(frozen=True, kw_only=True)
class Asked:
    listener: str = "main"
    path: str = "/v2/models/magika/infer"
    model: str = "magika"
    client: str = STRANGER
    dscp: int = 0
    asked_class: str | None = None
    urgency: int | None = None


def policy(*rules: Rule, **max_class: TrafficClass) -> Policy:
    return Policy(
        TABLE,
        max_class=max_class or {"main": REALTIME, "sensors": REALTIME},
        rules=rules,
        dscp_from=[ip_network("10.1.0.0/16"), ip_network("fd00:1::/32")],
        class_from=[ip_network("10.2.0.0/16")],
    )


def judged(*rules: Rule, **asked) -> Verdict:
    return classify(Asked(**asked), policy(*rules))


# Nobody decides


def test_without_rule_and_wish_it_is_the_default_class():
    assert judged() == Verdict(INTERACTIVE, "default class", trusted=False)


def test_a_strangers_wishes_are_not_heeded_and_the_reason_says_so():
    for wish in ({"asked_class": "realtime"}, {"urgency": 0}):
        verdict = judged(**wish)
        assert verdict.traffic_class is INTERACTIVE
        assert verdict.why == "default class; what the client asked for is not trusted"
    assert judged(dscp=EF).traffic_class is INTERACTIVE


# A trusted client asks


def test_a_trusted_client_gets_the_class_it_names():
    assert judged(client=CHOOSER, asked_class="batch") == Verdict(BATCH, "a trusted client asked for it", trusted=True)


def test_the_class_goes_before_the_urgency():
    assert judged(client=CHOOSER, asked_class="batch", urgency=0).traffic_class is BATCH


@pytest.mark.parametrize(
    ("urgency", "expected"),
    list(enumerate([REALTIME, REALTIME, INTERACTIVE, INTERACTIVE, INTERACTIVE, BATCH, BATCH, BACKGROUND])),
)
def test_a_trusted_urgency_is_a_rank(urgency, expected):
    verdict = judged(client=CHOOSER, urgency=urgency)
    assert verdict.traffic_class is expected
    assert verdict.why == f"a trusted client's urgency {urgency}"


def test_a_class_that_does_not_exist_is_ignored_and_told():
    verdict = judged(client=CHOOSER, asked_class="gold")
    assert verdict.traffic_class is INTERACTIVE
    assert verdict.why.endswith("; no class is named 'gold'")
    assert judged(client=CHOOSER, asked_class="gold", urgency=0).traffic_class is REALTIME


def test_the_name_of_no_class_can_neither_forge_nor_flood_a_log_line():
    why = judged(client=CHOOSER, asked_class="\n" * 10_000).why
    assert "\n" not in why
    assert len(why) < 120


# The network asks


def test_an_inbound_mark_from_a_trusted_network_is_a_class():
    verdict = judged(client=MARKER, dscp=EF)
    assert verdict == Verdict(REALTIME, "inbound DSCP EF, trusted", trusted=False)


def test_a_mark_that_is_no_classs_is_the_default_class():
    assert judged(client=MARKER, dscp=parse_dscp("CS5")).traffic_class is INTERACTIVE


def test_of_two_classes_with_one_mark_the_first_gets_it():
    twin = TrafficClass(name="twin", rank=1, dscp=EF, deadline_s=1.0, queue_s=1.0)
    table = ClassTable([REALTIME, twin], twin)
    both = Policy(table, max_class={"main": REALTIME}, dscp_from=[ip_network("10.1.0.0/16")])
    assert classify(Asked(client=MARKER, dscp=EF), both).traffic_class is REALTIME


def test_what_a_client_asks_goes_before_its_mark():
    trusted_in_both = Policy(
        TABLE,
        max_class={"main": REALTIME},
        dscp_from=[ip_network("10.2.0.0/16")],
        class_from=[ip_network("10.2.0.0/16")],
    )
    asked = Asked(client=CHOOSER, dscp=EF, asked_class="batch")
    assert classify(asked, trusted_in_both).traffic_class is BATCH


# Rules


def test_the_first_rule_that_matches_decides():
    rules = Rule(traffic_class=BATCH, model="embed-*"), Rule(traffic_class=BACKGROUND, path="/v2/*")
    assert judged(*rules, model="embed-small") == Verdict(BATCH, "rules[0]: model embed-*", trusted=False, rule=0)
    assert judged(*rules) == Verdict(BACKGROUND, "rules[1]: path /v2/*", trusted=False, rule=1)
    assert judged(*rules, path="/v1/x").rule is None


def test_a_rule_goes_before_what_a_trusted_client_asks():
    verdict = judged(Rule(traffic_class=BATCH, model="magika"), client=CHOOSER, asked_class="realtime")
    assert (verdict.traffic_class, verdict.trusted) == (BATCH, True)


def test_all_conditions_of_a_rule_must_hold():
    rule = Rule(traffic_class=REALTIME, listener="sensors", path="/v2/*", model="m?", dscp=EF)
    fits = {"listener": "sensors", "path": "/v2/x", "model": "m1", "dscp": EF, "client": MARKER}
    assert judged(rule, **fits).why == "rules[0]: listener sensors, path /v2/*, model m?, dscp EF"
    for other in ({"listener": "main"}, {"path": "/v1/x"}, {"model": "m12"}, {"dscp": 0}, {"client": STRANGER}):
        assert judged(rule, **fits | other).rule is None


def test_patterns_know_case_and_match_the_whole():
    rule = Rule(traffic_class=BATCH, model="embed")
    assert judged(rule, model="embed").rule == 0
    assert judged(rule, model="Embed").rule is None
    assert judged(rule, model="embed-2").rule is None


def test_a_query_is_no_part_of_the_path():
    assert judged(Rule(traffic_class=BATCH, path="/v1/chat"), path="/v1/chat?stream=1").rule == 0


def test_a_mark_in_a_rule_is_believed_only_from_a_trusted_network():
    rule = Rule(traffic_class=REALTIME, dscp=EF)
    assert judged(rule, client=MARKER, dscp=EF).rule == 0
    assert judged(rule, client=STRANGER, dscp=EF).rule is None


# Ceilings


@pytest.mark.parametrize(
    ("rules", "asked"),
    [
        ((Rule(traffic_class=REALTIME, model="*"),), {}),
        ((), {"client": CHOOSER, "asked_class": "realtime"}),
        ((), {"client": CHOOSER, "urgency": 0}),
        ((), {"client": MARKER, "dscp": EF}),
    ],
)
def test_nothing_lifts_a_request_above_its_listener(rules, asked):
    verdict = classify(Asked(**asked), policy(*rules, main=BATCH))
    assert verdict.traffic_class is BATCH
    assert verdict.why.endswith("; held at batch, the max_class of listener main")


def test_the_default_class_is_held_as_well():
    assert classify(Asked(), policy(main=BACKGROUND)).traffic_class is BACKGROUND


def test_a_ceiling_lifts_nobody():
    assert classify(Asked(client=CHOOSER, asked_class="background"), policy(main=REALTIME)).traffic_class is BACKGROUND


# Clients


@pytest.mark.parametrize("client", ["10.1.2.3", "::ffff:10.1.2.3", "fd00:1::5", "fd00:1::5%eth0"])
def test_addresses_in_a_trusted_network(client):
    assert judged(client=client, dscp=EF).traffic_class is REALTIME


@pytest.mark.parametrize("client", ["10.3.0.1", "fd00:2::5", "", "unix", "10.1.2", "10.1.0.1, 10.2.0.1"])
def test_addresses_in_none(client):
    verdict = judged(client=client, dscp=EF, asked_class="realtime")
    assert (verdict.traffic_class, verdict.trusted) == (INTERACTIVE, False)


def test_more_clients_than_are_remembered_are_judged_alike():
    many = policy()
    clients = [f"10.2.{n >> 8}.{n & 255}" for n in range(5_000)]
    for client in [*clients, *clients[:10]]:
        assert classify(Asked(client=client, asked_class="batch"), many).traffic_class is BATCH
    assert many._trust.cache_info().currsize == 4096


def test_a_listener_nobody_configured_is_a_bug_that_shows():
    with pytest.raises(KeyError):
        judged(listener="nowhere")


# Over everything


@given(st.integers(1, 50).flatmap(lambda count: st.tuples(st.integers(0, count - 1), st.just(count))))
def test_urgencies_spread_over_the_ranks(default_and_count):
    default, count = default_and_count
    ranks = urgency_ranks(default, count)
    assert len(ranks) == 8
    assert (ranks[0], ranks[3], ranks[7]) == (0, default, count - 1)
    assert list(ranks) == sorted(ranks)
    for urgency, rank in enumerate(ranks):
        exact = default * urgency / 3 if urgency < 3 else default + (count - 1 - default) * (urgency - 3) / 4
        assert abs(rank - exact) <= 0.5


FACTS = st.builds(
    Asked,
    listener=st.sampled_from(["main", "sensors"]),
    path=st.sampled_from(["", "/v2/models/magika/infer", "/v1/chat?x"]) | st.text(max_size=20),
    model=st.sampled_from(["", "magika", "embed-1"]) | st.text(max_size=20),
    client=st.sampled_from([STRANGER, MARKER, CHOOSER, "", "::1"]),
    dscp=st.integers(0, 63),
    asked_class=st.none() | st.sampled_from([each.name for each in CLASSES]) | st.text(max_size=20),
    urgency=st.none() | st.integers(0, 7),
)
RULES = st.lists(
    st.builds(
        Rule,
        traffic_class=st.sampled_from(CLASSES),
        listener=st.none() | st.sampled_from(["main", "sensors"]),
        path=st.none() | st.sampled_from(["/v2/*", "*", "[", "/v1/chat"]),
        model=st.none() | st.sampled_from(["magika", "embed-*", "?*"]),
        dscp=st.none() | st.integers(0, 63),
    ),
    max_size=4,
)


@given(FACTS, RULES, st.sampled_from(CLASSES))
def test_whatever_comes_gets_one_class_not_above_the_ceiling_and_a_reason_in_one_line(facts, rules, ceiling):
    verdict = classify(facts, policy(*rules, main=ceiling, sensors=ceiling))
    assert verdict.traffic_class in CLASSES
    assert verdict.traffic_class.rank >= ceiling.rank
    assert len(verdict.why.splitlines()) == 1
    assert verdict.trusted == (facts.client == CHOOSER)


@given(FACTS, RULES)
def test_a_stranger_gains_nothing_by_asking(facts, rules):
    stranger = Asked(**{**vars(facts), "client": STRANGER})
    silent = Asked(**{**vars(stranger), "asked_class": None, "urgency": None, "dscp": 0})
    judge = policy(*rules)
    assert classify(stranger, judge).traffic_class is classify(silent, judge).traffic_class
