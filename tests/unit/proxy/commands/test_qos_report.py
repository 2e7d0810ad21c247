# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io
import json

import pytest
from msgspec.structs import replace
from rich.console import Console

from proxy.commands import qos_report
from qos.settings import BUILT_IN_CLASSES
from qos.tc.change import making
from qos.tc.change.ledger import LastRollback
from tests.fakes.link_policies import policy_of
from tests.fakes.tc_site import OLD_KERNEL, FakePlace

SLOW, FAST = policy_of(), policy_of({"egress": "50mbit"})


@pytest.fixture
def place(tmp_path):
    return FakePlace(tmp_path)


def shown(part) -> str:
    output = io.StringIO()
    Console(file=output, width=200).print(part)
    return output.getvalue()


def test_a_plan_shows_each_step_its_command_and_its_loss(place):
    lines = qos_report.plan_text(making.survey(place.site, SLOW), apply_with="do it").splitlines()

    assert lines[0] == "in this namespace:"
    assert any(line.startswith("  warning: interfaces[0] eth0: fq_codel: not in this kernel") for line in lines)
    root = lines.index("      tc qdisc add dev eth0 root handle 51a: htb default 0x24")
    assert lines[root - 1].startswith("  + eth0 root 51a:")
    assert lines[-1].endswith("1 to change in place; nothing is changed yet: do it")


def test_a_step_that_loses_packets_says_so(place):
    making.apply(place.site, SLOW)
    place.kernel.devices["eth0"].waiting[0x51A0030] = 7
    first, *others = BUILT_IN_CLASSES
    moved = (first.model_copy(update={"default": True}), *(e.model_copy(update={"default": False}) for e in others))
    text = qos_report.plan_text(making.survey(place.site, policy_of(classes=moved)), apply_with="x")
    assert "  ! eth0 root 51b:" in text
    root = "what is sent while the kernel changes the root, about 1 ms"
    assert f"      loses what waits in it, and {root}: now 7 packets" in text
    assert "      loses what waits in its class's first queue\n" in text
    place.kernel.devices["eth0"].waiting.clear()
    text = qos_report.plan_text(making.survey(place.site, policy_of(classes=moved)), apply_with="x")
    assert f"      loses {root}\n" in text
    assert ", 1 to replace" in text


def test_an_empty_plan_says_so(place):
    making.apply(place.site, SLOW)
    assert qos_report.plan_text(making.survey(place.site, SLOW), apply_with="x").splitlines()[-1] == (
        "nothing to do: the kernel has all that this config asks"
    )
    assert qos_report.plan_text([], apply_with="x") == "nothing to do: the kernel has all that this config asks"


def test_a_plan_is_a_document_for_programs(place):
    found = json.loads(json.dumps(qos_report.plan_document(making.survey(place.site, SLOW))))
    (namespace,) = found["namespaces"]
    assert found["changes"] == len(namespace["steps"]) > 5
    assert namespace["netns"] is None and namespace["notes"][0]["where"] == "interfaces[0] eth0"
    step = next(each for each in namespace["steps"] if "root 51a:" in each["text"])
    assert (step["symbol"], step["verb"], step["device"]) == ("+", "add", "eth0")
    assert step["commands"] == ["tc qdisc add dev eth0 root handle 51a: htb default 0x24"]
    assert step["loses"] == {"packets": 0, "text": "what is sent while the kernel changes the root, about 1 ms"}


def test_what_became_of_a_change(place):
    waiting = making.apply(place.site, SLOW, confirm_s=120)
    text = qos_report.changed_text(waiting, place.now + 0.5)
    assert text.splitlines()[-2:] == [
        f"change {waiting.id}: {waiting.steps} steps made and read back",
        "it is put back in 2m, unless you say before: inferlane qos confirm",
    ]
    document = qos_report.changed_document(waiting, place.now + 20)
    assert (document["id"], document["steps"]) == (waiting.id, waiting.steps)
    assert document["pending"] == {"id": waiting.id, "interrupted": False, "seconds_left": 100.0}
    assert document["notes"][0]["netns"] is None
    again = making.apply(place.site, SLOW, confirm_s=50)
    assert f"change {waiting.id}: waits longer\nit is put back in 50s" in qos_report.changed_text(again, place.now)

    making.confirm(place.site)
    made = making.apply(place.site, FAST)
    assert qos_report.changed_text(made, 0).endswith(f"{made.steps} steps made and read back; it is confirmed")
    assert qos_report.changed_document(made, 0)["pending"] is None
    nothing = making.apply(place.site, FAST)
    assert qos_report.changed_text(nothing, 0).splitlines()[-1].startswith("nothing to do: ")


def test_what_happened_while_nobody_looked(place):
    pending = making.apply(place.site, SLOW, confirm_s=120).pending
    last = LastRollback(id="b2", at="noon", why="nobody confirmed it within 5 s", failure=None)
    told = qos_report.notices

    assert told(None, None, 0) == []
    assert told(None, last, 0) == ["change b2 was put back at noon, because nobody confirmed it within 5 s"]
    (failed,) = told(None, replace(last, failure="no such device"), 0)
    assert failed.endswith("and could not: no such device")
    assert told(pending, None, place.now) == [
        f"change {pending.id} waits: it is put back in 2m, unless you say before: inferlane qos confirm"
    ]
    assert "was not confirmed in time and is being put back" in told(pending, None, place.now + 121)[0]
    dead = replace(pending, done=False)
    assert told(dead, None, place.now) == [making.interrupted(dead)]
    assert told(replace(dead, deadline=None), None, place.now) == [making.interrupted(dead)]
    assert told(dead, None, place.now + 121)[0].endswith("its watcher is putting it back")


def test_what_a_kernel_can_do():
    text = shown(qos_report.probe_table("a", OLD_KERNEL))
    assert "kernel 6.1.0-test, in namespace a" in text
    lines = {line.split("│")[1].strip(): line for line in text.splitlines() if line.startswith("│")}
    assert "no" in lines["cake"] and "CONFIG_NET_SCH_CAKE=m" in lines["cake"]
    assert "yes" in lines["htb"] and "CONFIG" not in lines["htb"]
    assert "Linux 6.14" in lines["priority of each packet"]
    assert "bands of fq" not in lines
    fq = replace(OLD_KERNEL, qdiscs={"fq": ""})
    assert "Linux 6.7" in shown(qos_report.probe_table(None, fq))
    document = json.loads(json.dumps(qos_report.probe_document(None, OLD_KERNEL)))
    assert document["kinds"]["htb"] == "" != document["kinds"]["cake"]


def test_a_table_is_shown_as_a_command_that_can_be_copied(place):
    early = {"class": "batch", "src": "10.0.0.0/8", "before_nat": True}
    lines = qos_report.plan_text(making.survey(place.site, policy_of(flows=(early,))), apply_with="x").splitlines()
    first = lines.index("      nft -f - <<'EOF'")
    assert lines[first - 1].startswith("  + nftables table inet inferlane: classify_")
    assert "EOF" in lines, "not indented: a shell looks for it at the beginning of a line"
    assert any('ip saddr 10.0.0.0/8 meta priority set 51a:30 accept comment "1 of 1"' in each for each in lines[first:])
