# SPDX-License-Identifier: Apache-2.0
"""`inferlane qos ...` as a person types it, against this machine's kernel, in namespaces of the test's own."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest

from proxy.config.loading import load
from qos.tc.change import making
from qos.tc.change.ledger import Baseline, Confirmed, LastRollback, Ledger, Pending
from qos.tc.change.lock import LOCKS, lock_file
from qos.tc.change.site import Site
from tests.fakes.namespaces import Host, alone
from tests.fakes.programs import until

pytestmark = pytest.mark.needs_root

CONFIG = """\
listeners: [{{name: main, bind: ["127.0.0.1:0"], accept: [udp]}}]
pools: [{{name: m, model: m, endpoints: [{{oip: "http://127.0.0.1:9"}}]}}]
classes:
  - {{name: realtime, dscp: EF, deadline: 1s}}
  - {{name: interactive, dscp: AF21, deadline: 2s, default: true}}
interfaces: [{{name: eth0, netns: {netns}, egress: {egress}{more}}}]
"""
# Dies, or stands still, before the Nth step of an apply.
APPLIER = """\
import os, signal, sys, time
from functools import partial
from pathlib import Path
from proxy.config.loading import load
from qos.tc.change import making
from qos.tc.change.ledger import Ledger
from qos.tc.change.lock import LOCKS, lock_file
from qos.tc.change.site import Site
from qos.tc.change.watcher import arm

conf, folder, ends_at, confirm_s, how = sys.argv[1:]
ledger, steps = Ledger(Path(folder, "qos")), []

def before(step):
    steps.append(step)
    if len(steps) == int(ends_at) and how == "die":
        os.kill(os.getpid(), signal.SIGKILL)
    elif len(steps) == int(ends_at):
        print("holding", flush=True)
        time.sleep(600)

site = Site(
    ledger=ledger, lock_of=partial(lock_file, folder=LOCKS), arm=partial(arm, ledger, locks=LOCKS), before=before
)
making.apply(site, load(conf).link_policy(), confirm_s=float(confirm_s) or None)
print(len(steps))
"""


@dataclass(frozen=True, slots=True)
class Place:
    """A namespace, a config about it, and a state directory."""

    host: Host
    folder: Path

    @property
    def conf(self) -> Path:
        return self.folder / "gateway.yaml"

    @property
    def ledger(self) -> Ledger:
        return Ledger(self.folder / "state" / "qos")

    @property
    def site(self) -> Site:
        return Site(ledger=self.ledger, lock_of=partial(lock_file, folder=LOCKS))

    def wants(self, egress: str, more: str = "") -> None:
        self.conf.write_text(CONFIG.format(netns=self.host.name, egress=egress, more=more))

    def qos(self, *arguments: str | Path, code: int = 0, prefix: tuple[str, ...] = ()) -> str:
        """What the command said; with another code than 0, on stderr, too."""
        done = subprocess.run(
            [*prefix, sys.executable, "-m", "proxy", "qos", *map(str, arguments), "--state-dir", self.folder / "state"],
            capture_output=True,
            text=True,
            check=False,
            timeout=60,
        )
        assert done.returncode == code, f"{arguments}: code {done.returncode}: {done.stderr or done.stdout}"
        assert "Traceback" not in done.stderr
        return done.stdout + done.stderr

    def applier(self, ends_at: int, *, confirm_s: float = 0, how: str = "die") -> subprocess.Popen[str]:
        arguments = [self.conf, self.folder / "state", ends_at, confirm_s, how]
        return subprocess.Popen(
            [sys.executable, "-c", APPLIER, *map(str, arguments)], stdout=subprocess.PIPE, text=True
        )

    def killed(self, ends_at: int, *, confirm_s: float = 0) -> bool:
        """Whether an apply had so many steps, and was killed."""
        with self.applier(ends_at, confirm_s=confirm_s) as process:
            process.communicate(timeout=60)
        assert process.returncode in (0, -signal.SIGKILL)
        return process.returncode != 0

    def seen(self) -> list[str]:
        """All qdiscs, devices and their longest trains, as tc and ip print them."""
        links = self.host.ip("-d -o link show")
        devices = [" ".join(re.findall(r"^\d+: (\S+):|(gso_max_size \d+)", line)[0]) for line in links.splitlines()]
        sizes = re.findall(r"gso_max_size \d+", links)
        return [*self.host.tc("qdisc show").splitlines(), *sorted(devices), *sizes]


@pytest.fixture
def place(tmp_path) -> Iterator[Place]:
    with alone("tcc") as host:
        made = Place(host, tmp_path)
        made.wants("20mbit")
        yield made


def test_planned_applied_confirmed_changed_and_released(place):
    before = place.seen()

    planned = place.qos("plan", place.conf, code=3)
    assert f"tc -n {place.host.name} qdisc add dev eth0 root handle 51a: htb default 0x24" in planned
    assert place.seen() == before
    applied = place.qos("apply", place.conf, "--confirm", "60s")
    assert re.search(r"it is put back in (1m|\d\ds), unless you say before: inferlane qos confirm", applied)
    assert "51a:16" in place.host.tc("class show dev eth0")
    assert "nothing to do" in place.qos("plan", place.conf)
    assert "is confirmed" in place.qos("confirm")
    place.wants("30mbit")
    changes = json.loads(place.qos("plan", place.conf, "--json", code=3))
    assert {step["symbol"] for each in changes["namespaces"] for step in each["steps"]} == {"~"}
    assert "it is confirmed" in place.qos("apply", place.conf)
    assert "rate 30Mbit" in place.host.tc("class show dev eth0")
    assert "stands again" in place.qos("rollback")
    assert "rate 20Mbit" in place.host.tc("class show dev eth0")
    assert "all that was made is removed" in place.qos("release")
    assert place.seen() == before
    assert "nothing is known" in place.qos("release")


def test_without_a_confirmation_the_watcher_puts_it_back_and_everybody_is_told(place):
    before = place.seen()
    place.qos("apply", place.conf, "--confirm", "5s")
    assert place.seen() != before

    last = until(lambda: place.ledger.read(LastRollback), "the watcher")

    until(lambda: True if place.ledger.read(Pending) is None else None, "the end of what was pending")
    assert place.seen() == before
    told = f"change {last.id} was put back at {last.at}, because nobody confirmed it within 5 s"
    assert told in place.qos("status")
    assert told in place.qos("plan", place.conf, code=3)
    assert told in place.qos("confirm", code=1)
    place.qos("apply", place.conf)
    assert told not in place.qos("status")


def test_killed_before_any_step_it_can_be_undone_and_done_again(place):
    before, policy = place.seen(), load(place.conf).link_policy()
    step = 1
    while place.killed(step):
        if place.ledger.read(Confirmed) is None:
            assert "is undone" in making.roll_back(place.site)
            assert place.seen() == before, f"undone after step {step}"
            assert place.killed(step)
        making.apply(place.site, policy)
        assert [each.steps for each in making.survey(place.site, policy)] == [()]
        assert place.ledger.read(Pending) is None
        making.release(place.site)
        assert place.seen() == before, f"done again after step {step}"
        step += 1
    assert step > 10


def test_what_was_interrupted_is_told_by_the_next_command(place):
    assert place.killed(6)
    for verb, code in ((("plan", place.conf), 3), (("status", "--over", "10ms"), 0), (("confirm",), 1)):
        told = place.qos(*verb, code=code)
        assert "an apply was interrupted" in told
        assert "`inferlane qos rollback` puts back what was, or apply again" in told
    place.qos("apply", place.conf)
    assert "interrupted" not in place.qos("status", "--over", "10ms")


def test_killed_before_any_step_the_watcher_puts_back_what_was(tmp_path):
    with ExitStack() as until_the_end:
        places: list[tuple[Place, list[str]]] = []
        for step in range(1, 100):
            (tmp_path / str(step)).mkdir()
            place = Place(until_the_end.enter_context(alone("tcw")), tmp_path / str(step))
            place.wants("20mbit")
            before = place.seen()
            if not place.killed(step, confirm_s=3):
                break
            places.append((place, before))
        for place, before in places[1:]:
            last = until(lambda ledger=place.ledger: ledger.read(LastRollback), "the watcher")
            until(lambda ledger=place.ledger: True if ledger.read(Pending) is None else None, "the books")
            assert last.failure is None
            assert place.seen() == before
        # Before the first step of all nobody watches yet, and nothing is changed.
        assert places[0][0].seen() == places[0][1]
    assert len(places) >= 10


def test_the_second_of_two_is_told_who_is_at_it(place):
    with place.applier(3, how="wait") as first:
        try:
            assert first.stdout is not None and first.stdout.readline() == "holding\n"
            told = place.qos("apply", place.conf, code=1)
        finally:
            first.kill()
    assert re.search(rf"inferlane qos apply \(process {first.pid}\) is changing traffic control here", told)
    place.qos("rollback")


def test_a_plan_file_is_applied_as_it_was_read_or_not_at_all(place):
    file = place.folder / "plan.json"
    place.qos("plan", place.conf, "--out", file, code=3)
    place.host.tc("qdisc add dev eth0 clsact")
    assert "the kernel's state moved since this plan was made" in place.qos("apply", file, code=1)
    place.qos("plan", place.conf, "--out", file, code=3)
    assert "it is confirmed" in place.qos("apply", file)
    assert "another policy was confirmed" in place.qos("apply", file, code=1)
    place.wants("30mbit")
    assert "gateway.yaml changed since this plan was made" in place.qos("apply", file, code=1)


def test_what_was_there_before_us_is_there_after_us(place):
    place.host.tc("qdisc add dev eth0 root handle 7: pfifo limit 77")
    place.host.tc("qdisc add dev eth0 clsact")
    place.host.ip("link set dev eth0 gso_max_size 32000")
    before = place.seen()

    assert "root qdisc pfifo 7: is not ours; say adopt: true" in place.qos("apply", place.conf, code=1)
    assert place.seen() == before
    place.wants("20mbit", ", adopt: true")
    place.qos("apply", place.conf)
    assert "pfifo" not in place.host.tc("qdisc show dev eth0 root")
    place.qos("release")

    assert place.seen() == before


def test_status_shows_what_passes_and_what_drifted(place):
    place.qos("apply", place.conf)
    place.host.ip("neigh add 10.77.1.9 lladdr 02:00:00:00:00:09 dev eth0")
    with place.host.socket() as sender:
        sender.setsockopt(socket.IPPROTO_IP, socket.IP_TOS, 46 << 2)
        for _ in range(7):
            sender.sendto(b"x" * 100, ("10.77.1.9", 9))

    found = json.loads(place.qos("status", "--json", "--over", "10ms"))

    realtime = next(each for each in found["classes"] if each["traffic_class"] == "realtime")
    assert (realtime["packets"], realtime["bytes"], realtime["mark"]) == (7, 7 * 142, "EF")
    assert (realtime["rate"], realtime["ceiling"], realtime["handle"]) == (10_000_000, 20_000_000, "51a:16")
    assert found["pending"] is None and [each["steps"] for each in found["drift"]] == [[]]
    place.host.tc("class change dev eth0 parent 51a:1 classid 51a:16 htb rate 1mbit ceil 2mbit")
    assert "not as promised; `inferlane qos apply` would:" in place.qos("status", "--over", "10ms")
    place.qos("apply", place.conf)
    assert "all is as promised" in place.qos("status", "--over", "10ms")


def test_who_may_not_is_told_so(place):
    without = ("setpriv", "--bounding-set=-net_admin", "--inh-caps=-net_admin")
    for verb in (("apply", place.conf), ("plan", place.conf), ("release",)):
        told = place.qos(*verb, code=1, prefix=without)
        assert "CAP_NET_ADMIN" in told and told.count("\n") == 1


def test_a_misspelt_namespace_is_not_made(place):
    place.conf.write_text(place.conf.read_text().replace(place.host.name, "tcc-nowhere"))
    for verb in ("plan", "apply", "probe"):
        arguments = [sys.executable, "-m", "proxy", "qos", verb, str(place.conf)]
        done = subprocess.run(arguments, capture_output=True, text=True, check=False, timeout=60)
        assert done.returncode == 1
        assert "tcc-nowhere" in done.stderr and "`ip netns list` prints" in done.stderr
        assert done.stderr.count("\n") == 1
    assert not Path("/run/netns/tcc-nowhere").exists()


def test_bad_books_and_places_are_named_and_nothing_is_touched(place):
    place.qos("apply", place.conf)
    before = place.seen()
    file = place.ledger.file(Confirmed)
    file.write_bytes(file.read_bytes()[:-40])
    for verb in (("plan", place.conf), ("apply", place.conf), ("status",), ("confirm",), ("rollback",), ("release",)):
        told = place.qos(*verb, code=1)
        assert f"{file}: damaged" in told and "move the file away" in told and told.count("\n") == 1
    assert place.seen() == before
    place.ledger.file(Baseline).unlink()
    file.unlink()
    place.qos("release", place.conf)
    assert "htb" not in place.host.tc("qdisc show")


def test_a_state_directory_that_cannot_be_written_is_named(place):
    before = place.seen()
    (place.folder / "state").write_text("")
    told = place.qos("apply", place.conf, code=1)
    assert f"{place.folder}/state" in told and told.count("\n") == 1
    assert place.seen() == before


def test_a_confirmation_without_or_after_its_time(place):
    assert "nothing waits for a confirmation" in place.qos("confirm", code=1)
    assert "there is nothing to go back to" in place.qos("rollback", code=1)
    place.qos("apply", place.conf, "--confirm")
    waiting = place.ledger.read(Pending)
    assert waiting is not None and waiting.confirm_s == 120
    assert f"change {waiting.id} waits for its confirmation" in place.qos("apply", place.conf, code=1)
    assert "is undone" in place.qos("rollback")
