# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import dataclass
from ipaddress import ip_network

import pytest
from pydantic import ValidationError

from qos.classify import classify
from qos.dscp import parse_dscp
from qos.settings import (
    BUILT_IN_CLASSES,
    ClassSettings,
    GateSettings,
    LinkSettings,
    RuleSettings,
    TrustSettings,
    WhenSettings,
    class_table,
    policy,
)


@dataclass(frozen=True, kw_only=True)
class Asked:
    listener: str = "main"
    path: str = "/"
    model: str = "magika"
    client: str = "10.0.0.1"
    dscp: int = 0
    asked_class: str | None = None
    urgency: int | None = None


def test_the_built_in_classes():
    table = class_table(BUILT_IN_CLASSES)
    told = [(each.name, each.rank, each.dscp, each.deadline_s, each.queue_s) for each in table]
    assert told == [
        ("realtime", 0, parse_dscp("EF"), 0.05, 0.02),
        ("interactive", 1, parse_dscp("AF21"), 2.0, 2.0),
        ("batch", 2, parse_dscp("AF11"), 30.0, 30.0),
        ("background", 3, parse_dscp("LE"), 600.0, 600.0),
    ]
    assert table.default.name == "interactive"


def test_a_class_as_the_file_writes_it():
    written = {"name": "realtime", "dscp": "EF", "deadline": "50ms", "default": True, "gate": {"queue": "20ms"}}
    assert ClassSettings.model_validate(written) == ClassSettings(
        name="realtime", dscp=46, deadline=0.05, default=True, gate=GateSettings(queue=0.02)
    )


@pytest.mark.parametrize("deadline", ["0s", "72m"])
def test_a_deadline_the_wire_cannot_tell_is_refused(deadline):
    with pytest.raises(ValidationError, match="longer than 0 and at most 71m"):
        ClassSettings.model_validate({"name": "a", "dscp": "EF", "deadline": deadline})


def test_the_queue_may_be_no_wait_at_all_and_is_the_deadline_where_nothing_is_said():
    classes = [
        ClassSettings(name="a", dscp=0, deadline=1.0, default=True, gate=GateSettings(queue=0.0)),
        ClassSettings(name="b", dscp=0, deadline=1.0),
    ]
    assert [each.queue_s for each in class_table(classes)] == [0.0, 1.0]


def test_the_only_class_is_the_default_one():
    assert class_table([ClassSettings(name="a", dscp=0, deadline=1.0)]).default.name == "a"


@pytest.mark.parametrize("defaults", [(False, False), (True, True)])
def test_of_several_exactly_one_is_the_default(defaults):
    classes = [
        ClassSettings(name=name, dscp=0, deadline=1.0, default=default)
        for name, default in zip("ab", defaults, strict=True)
    ]
    with pytest.raises(ValueError, match="exactly one class says default: true"):
        class_table(classes)


@pytest.mark.parametrize("path", ["/v1/*", "*", "?", "[/]x"])
def test_paths_that_can_match(path):
    assert WhenSettings(path=path).path == path


@pytest.mark.parametrize("path", ["v1/*", ""])
def test_a_path_that_can_match_nothing_is_refused(path):
    with pytest.raises(ValidationError, match="begin it with / or"):
        WhenSettings(path=path)


def test_rules_trust_and_ceilings_become_one_policy():
    rule = RuleSettings.model_validate({"when": {"model": "embed-*", "listener": "lan"}, "class": "realtime"})
    trust = TrustSettings(dscp_from=(ip_network("10.1.0.0/16"),), class_from=(ip_network("10.2.0.0/16"),))
    judge = policy(class_table(BUILT_IN_CLASSES), [rule], trust, {"lan": "realtime", "main": None})
    assert classify(Asked(listener="lan", model="embed-1"), judge).traffic_class.name == "realtime"
    assert classify(Asked(listener="lan", client="10.2.0.1", asked_class="batch"), judge).traffic_class.name == "batch"
    assert classify(Asked(listener="lan", client="10.1.0.1", dscp=46), judge).traffic_class.name == "realtime"
    held = classify(Asked(listener="main", client="10.1.0.1", dscp=46), judge)
    assert held.traffic_class is judge.classes.default


def test_a_policy_of_unknown_classes_is_refused():
    rule = RuleSettings.model_validate({"when": {"model": "a"}, "class": "gold"})
    with pytest.raises(ValueError, match="no class is named 'gold'"):
        policy(class_table(BUILT_IN_CLASSES), [rule], TrustSettings(), {"main": None})


def test_the_kernels_side_of_a_class_as_the_file_writes_it():
    written = {"share": "30%", "ceiling": "50%", "queue": "20ms", "police": "1mbit"}
    assert LinkSettings.model_validate(written) == LinkSettings(share=0.3, ceiling=0.5, queue=0.02, police=10**6)
    assert LinkSettings() == LinkSettings(share=None, ceiling=1.0, queue=0.1, police=None)


@pytest.mark.parametrize("queue", ["0.999ms", "10.001s"])
def test_a_queue_of_a_link_has_its_bounds(queue):
    with pytest.raises(ValidationError, match="at least 1ms and at most 10s"):
        LinkSettings.model_validate({"queue": queue})


def test_the_link_says_what_a_class_polices_and_the_table_its_priorities():
    link = LinkSettings(share=0.3, police=10**6)
    table = class_table(
        [
            ClassSettings(name="a", dscp=46, deadline=1.0, link=link),
            ClassSettings(name="b", dscp=18, deadline=1.0, default=True),
            ClassSettings(name="c", dscp=10, deadline=1.0),
            ClassSettings(name="d", dscp=1, deadline=1.0),
        ]
    )
    assert [(each.priority, each.police) for each in table] == [(6, 10**6), (4, None), (0, None), (2, None)]
