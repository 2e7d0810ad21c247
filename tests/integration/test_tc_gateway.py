# SPDX-License-Identifier: Apache-2.0
"""Traffic control under a running gateway: kept, repaired, counted, left or released; and who may do what."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import msgspec
import pytest
from prometheus_client.parser import text_string_to_metric_families

from proxy.privileges import Capability
from qos.tc.change.ledger import Ledger, Pending
from tests.fakes.namespaces import Host, joined
from tests.fakes.programs import PATIENCE_S, Program, running, until

pytestmark = pytest.mark.needs_root

CONFIG = """\
listeners: [{name: main, bind: ["127.0.0.1:0"], tls: development, max_class: realtime}]
pools: [{name: all, model: "*", endpoints: [{oip: "http://127.0.0.1:9"}]}]
interfaces: [{name: eth0, egress: 20mbit}]
admin: {bind: "127.0.0.1:0"}
"""
NET_ADMIN, BPF = 1 << Capability.NET_ADMIN, 1 << Capability.BPF


@dataclass(frozen=True, slots=True)
class Gateway:
    """A gateway in a namespace."""

    host: Host
    program: Program

    def page(self, path: str) -> str:
        address = self.program.event("admin_listening")["address"]

        def fetch() -> str:
            with urllib.request.urlopen(f"http://{address}{path}", timeout=PATIENCE_S) as page:
                return str(page.read().decode())

        return self.host.call(fetch)

    def metric(self, name: str, **labels: str) -> float:
        """The sum of its samples with these labels."""
        return sum(
            sample.value
            for family in text_string_to_metric_families(self.page("/metrics"))
            for sample in family.samples
            if sample.name == f"inferlane_link_{name}" and labels.items() <= sample.labels.items()
        )

    def reaches(self, name: str, value: float, **labels: str) -> None:
        self.program.waited_for(lambda: self.metric(name, **labels) == value or None, f"{name} {value}")

    def helper(self) -> int:
        """The process id of the child that keeps traffic control."""
        return self.program.waited_for(lambda: next(iter(children(self.program.pid, HELPER)), None), "the helper")

    def serving(self) -> list[int]:
        """The process ids of the data plane: the supervisor and its worker."""
        workers = children(self.program.pid, WORKER)
        assert workers
        return [self.program.pid, *workers]

    def shaped(self) -> bool:
        return "htb 51a:" in self.host.tc("qdisc show dev eth0")


@dataclass(frozen=True, slots=True)
class Place:
    """Where one starts: two hosts on a link, a config and its state."""

    host: Host
    peer: Host
    folder: Path

    @property
    def state(self) -> Path:
        return self.folder / "state"

    def config(self, text: str = CONFIG) -> Path:
        conf = self.folder / "gateway.yaml"
        conf.write_text(text)
        return conf

    def qos(self, command: str, text: str = CONFIG) -> str:
        """`inferlane qos ...` there."""
        conf = f" {self.config(text)}" if command.split()[0] in ("apply", "plan") else ""
        return self.host.run(f"{sys.executable} -m proxy qos {command}{conf} --state-dir {self.state}")

    @contextmanager
    def gateway(self, text: str = CONFIG, *, before: str = "") -> Iterator[Gateway]:
        command = f"{before} {sys.executable} -m proxy run {self.config(text)} --state-dir {self.state}"
        log = self.folder / "gateway.log"
        with running(self.host.command(command), log) as program:
            yield Gateway(self.host, program)


@pytest.fixture
def place(tmp_path: Path) -> Iterator[Place]:
    with joined("keep") as (host, peer):
        yield Place(host, peer, tmp_path)


HELPER, WORKER = "qos.tc.keep.keeper", "proxy.supervise.worker"


def children(pid: int, module: str) -> list[int]:
    """Those that run this module. Of /proc/N/stat the fourth field, behind the name in parentheses, is the parent."""
    found = []
    for each in Path("/proc").glob("[0-9]*/stat"):
        try:
            parent = int(each.read_text().rpartition(")")[2].split()[1])
            command = each.with_name("cmdline").read_text().split("\0")
        except OSError:
            continue
        if parent == pid and module in command:
            found.append(int(each.parent.name))
    return found


def capabilities(pid: int) -> list[dict[str, int]]:
    """The capability sets of every thread."""
    threads = []
    for status in Path(f"/proc/{pid}/task").glob("*/status"):
        lines = (line.partition(":") for line in status.read_text().splitlines())
        threads.append({name: int(value, 16) for name, _, value in lines if name.startswith("Cap")})
    assert threads
    return threads


def gone(pid: int) -> bool | None:
    return None if Path(f"/proc/{pid}").exists() else True


def test_what_was_confirmed_is_made_watched_and_counted(place: Place) -> None:
    place.qos("apply")
    place.host.tc("qdisc del dev eth0 root")  # as after a reboot
    with place.gateway() as gateway:
        assert gateway.program.event("traffic_control_made")["interface"] == "eth0"
        kept = gateway.program.event("traffic_control_kept")
        assert kept["in_force"] == ["eth0"]
        gateway.reaches("in_force", 1, interface="eth0")
        assert gateway.shaped()
        with place.host.socket() as sender:
            sender.setsockopt(0, 1, 46 << 2)  # IPPROTO_IP, IP_TOS: EF
            for _ in range(10):
                sender.sendto(bytes(1000), (place.peer.v4, 9))
        gateway.reaches("packets_total", 10, **{"class": "realtime", "direction": "egress"})
        assert gateway.metric("bytes_total", **{"class": "realtime"}) >= 10 * 1028
        assert gateway.metric("bytes_total", **{"class": "batch"}) == 0
        assert gateway.metric("rate_bytes_per_second", **{"class": "realtime"}) == 20_000_000 / 8 / 4
        assert gateway.metric("ceiling_bytes_per_second", **{"class": "realtime"}) == 20_000_000 / 8
        assert (gateway.metric("unattended"), gateway.metric("repairs_total")) == (0, 0)
    assert gateway.program.event("traffic_control_ended")["released"] is False


def test_the_data_plane_has_no_right_over_the_network_and_the_helper_has(place: Place) -> None:
    place.qos("apply")
    with place.gateway() as gateway:
        gateway.reaches("in_force", 1)
        for sets in chain.from_iterable(map(capabilities, gateway.serving())):
            assert all(mask & (NET_ADMIN | BPF) == 0 for mask in sets.values()), sets
        for sets in capabilities(gateway.helper()):
            assert sets["CapEff"] & (NET_ADMIN | BPF) == NET_ADMIN | BPF


def test_what_others_change_is_repaired_until_they_insist(place: Place) -> None:
    text = CONFIG + "safety: {repairs_per_10m: 2}\n"
    place.qos("apply", text)
    with place.gateway(text) as gateway:
        gateway.reaches("in_force", 1)
        place.host.tc("class change dev eth0 parent 51a:1 classid 51a:16 htb rate 1mbit ceil 1mbit")
        repaired = gateway.program.event("traffic_control_repaired")
        assert "realtime" in repaired["detail"]
        assert "rate 5Mbit" in place.host.tc("class show dev eth0 classid 51a:16")
        place.host.tc("qdisc del dev eth0 root")
        gateway.reaches("repairs_total", 2)
        assert gateway.shaped()
        place.host.tc("qdisc del dev eth0 root")
        contested = gateway.program.event("traffic_control_contested")
        assert (contested["level"], gateway.shaped()) == ("error", False)
        gateway.reaches("in_force", 0)
        assert gateway.page("/readyz")


def test_an_interface_that_was_made_anew_or_renamed_is_shaped_again(place: Place) -> None:
    text = CONFIG + "safety: {repairs_per_10m: 0}\n"
    place.qos("apply", text)
    with place.gateway(text) as gateway:
        gateway.reaches("in_force", 1)
        place.host.ip("link del eth0")
        assert gateway.program.event("interface_missing")["interface"] == "eth0"
        gateway.reaches("in_force", 0)
        place.host.ip("link add eth9 type veth peer name peer9")
        place.host.ip("link set eth9 name eth0")
        gateway.reaches("in_force", 1)
        assert gateway.program.events("interface_back") and gateway.shaped()
        assert len(gateway.program.events("traffic_control_made")) == 1
        place.host.ip("link set eth0 name eth1")
        gateway.reaches("in_force", 0)
        place.host.ip("link set eth1 name eth0")
        gateway.reaches("in_force", 1)
        assert gateway.shaped()
        assert len(gateway.program.events("traffic_control_made")) == 1  # a name takes nothing along
        assert not gateway.program.events("traffic_control_contested")


def test_a_helper_that_is_killed_leaves_a_gateway_that_goes_on_and_says_so(place: Place) -> None:
    place.qos("apply")
    with place.gateway() as gateway:
        gateway.reaches("in_force", 1)
        os.kill(gateway.helper(), signal.SIGKILL)
        unattended = gateway.program.event("traffic_control_unattended")
        assert (unattended["level"], "exit code -9" in unattended["detail"]) == ("error", True)
        gateway.reaches("unattended", 1)
        gateway.reaches("in_force", 0)
        assert "true" in gateway.page("/readyz")
        assert gateway.shaped()


def test_a_helper_does_not_outlive_its_gateway(place: Place) -> None:
    text = CONFIG + "safety: {on_exit: release}\n"
    place.qos("apply", text)
    with place.gateway(text) as gateway:
        gateway.reaches("in_force", 1)
        helper = gateway.helper()
        gateway.program.kill()
        until(lambda: gone(helper), "the helper's end")
    assert not gateway.shaped()


@pytest.mark.parametrize(("on_exit", "shaped"), [("keep", True), ("release", False)])
def test_at_the_end_it_stays_or_goes_as_configured(place: Place, on_exit: str, shaped: bool) -> None:
    text = CONFIG + f"safety: {{on_exit: {on_exit}}}\n"
    before = place.host.tc("qdisc show dev eth0"), place.host.ip("-d link show eth0")
    place.qos("apply", text)
    with place.gateway(text) as gateway:
        gateway.reaches("in_force", 1)
        helper = gateway.helper()
    assert gateway.program.event("traffic_control_ended")["released"] is not shaped
    assert gone(helper)
    assert gateway.shaped() is shaped
    if not shaped:
        assert (place.host.tc("qdisc show dev eth0"), place.host.ip("-d link show eth0")) == before
        with place.gateway(text) as gateway:
            gateway.reaches("in_force", 1)


def test_a_second_gateway_that_cannot_start_takes_nothing_along(place: Place) -> None:
    text = CONFIG.replace("127.0.0.1:0", "127.0.0.1:4433", 1) + "safety: {on_exit: release, drift: report}\n"
    place.qos("apply", text)
    with place.gateway(text) as gateway:
        gateway.reaches("in_force", 1)
        # The one finds the doors taken before its helper is there, the other has one that leaves again.
        broken = CONFIG.replace("tls: development", "tls: {cert: gone.pem, key: gone.pem}")
        for config, said in ((text, b"Address already in use"), (broken, b"traffic_control_left")):
            command = f"{sys.executable} -m proxy run {place.config(config)} --state-dir {place.state}"
            second = subprocess.run(place.host.command(command), capture_output=True, timeout=PATIENCE_S, check=False)
            assert second.returncode == 2
            assert said in second.stderr
            assert gateway.shaped()
    assert not gateway.shaped()


def test_a_config_that_was_not_confirmed_waits(place: Place) -> None:
    with place.gateway() as gateway:
        assert "inferlane qos apply" in gateway.program.event("traffic_control_not_confirmed")["detail"]
        assert not gateway.shaped()
        place.qos("apply")
        gateway.program.signal(signal.SIGHUP)
        gateway.program.event("traffic_control_kept")
        conf = place.config(CONFIG.replace("20mbit", "30mbit"))
        gateway.program.signal(signal.SIGHUP)
        assert "it waits for inferlane qos apply" in gateway.program.event("traffic_control_differs")["detail"]
        assert "rate 20Mbit" in place.host.tc("class show dev eth0")
        place.qos("apply", conf.read_text())
        gateway.program.signal(signal.SIGHUP)
        gateway.program.waited_for(lambda: gateway.program.events("traffic_control_kept")[1:] or None, "the new one")
        assert "rate 30Mbit" in place.host.tc("class show dev eth0")


def test_a_change_that_waits_is_left_alone_and_undone_when_nobody_else_does(place: Place) -> None:
    place.qos("apply")
    place.qos("apply --confirm 20m", CONFIG.replace("20mbit", "30mbit"))
    ledger = Ledger(place.state / "qos")
    with place.gateway() as gateway:
        gateway.program.event("traffic_control_hands_off")
        place.host.tc("qdisc del dev eth0 root")
        gateway.program.signal(signal.SIGHUP)
        gateway.program.waited_for(lambda: gateway.program.events("reloaded") or None, "a reload")
        assert not gateway.shaped()
        waits = ledger.read(Pending)
        assert waits is not None
        ledger.write(msgspec.structs.replace(waits, boot_id="another boot"))
        gateway.program.signal(signal.SIGHUP)
        gateway.program.event("traffic_control_reverted")
        gateway.reaches("in_force", 1)
        assert ledger.read(Pending) is None
        assert "rate 20Mbit" in place.host.tc("class show dev eth0")


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_without_the_right_there_are_marks_only_and_the_gateway_runs(place: Place) -> None:
    place.qos("apply")
    with place.gateway(before="setpriv --bounding-set -net_admin --inh-caps -net_admin") as gateway:
        unattended = gateway.program.event("traffic_control_unattended")
        assert unattended["level"] == "warning" and "CAP_NET_ADMIN is missing" in unattended["detail"]
        assert children(gateway.program.pid, HELPER) == []
        assert (gateway.metric("unattended"), "true" in gateway.page("/readyz")) == (1, True)


def test_without_interfaces_there_is_no_helper(place: Place) -> None:
    with place.gateway(CONFIG.replace("interfaces:", "# interfaces:")) as gateway:
        assert "inferlane_link" not in gateway.page("/metrics")
        assert children(gateway.program.pid, HELPER) == []
        for sets in chain.from_iterable(map(capabilities, gateway.serving())):
            assert sets["CapEff"] & (NET_ADMIN | BPF) == 0


@pytest.mark.skipif(shutil.which("setpriv") is None, reason="setpriv (util-linux) is not installed")
def test_two_ambient_capabilities_as_in_the_unit_are_enough(place: Place) -> None:
    """`noroot`: user 0 has the rights of any other user, and still reads a checkout that is root's alone."""
    place.qos("apply")
    place.host.tc("qdisc del dev eth0 root")
    caps = "-all,+net_admin,+bpf"
    sets = f"--bounding-set {caps} --inh-caps {caps} --ambient-caps {caps}"
    with place.gateway(before=f"setpriv --securebits +noroot {sets} --no-new-privs") as gateway:
        gateway.program.event("traffic_control_made")
        gateway.reaches("in_force", 1)
        assert "bpf" in place.host.tc("filter show dev eth0 egress")
        place.host.tc("qdisc del dev eth0 root")
        gateway.program.event("traffic_control_repaired")
        for has in chain.from_iterable(map(capabilities, gateway.serving())):
            assert (has["CapPrm"], has["CapEff"], has["CapAmb"], has["CapInh"]) == (0, 0, 0, 0)
        for has in capabilities(gateway.helper()):
            assert has["CapEff"] == NET_ADMIN | BPF


def test_the_helper_refuses_nonsense_and_goes_on(place: Place) -> None:
    """Whoever takes the gateway over can ask, and end: nothing more."""
    place.qos("apply")
    ours, its = socket.socketpair()
    with ours, its:
        ours.settimeout(PATIENCE_S)
        command = f"{sys.executable} -m qos.tc.keep.keeper --fd {its.fileno()} --state-dir {place.state}"
        helper = subprocess.Popen(place.host.command(command), pass_fds=[its.fileno()])
        its.close()
        ours.sendall(b'{"do":"delete","device":"eth0"}\n\xff\n' + b"x" * 10_000 + b'\n{"do":"status"}\n')
        heard: list[dict[str, Any]] = []
        with ours.makefile("rb") as lines:
            for line in lines:
                heard.append(msgspec.json.decode(line))
                if sum(each["event"] == "refused" for each in heard) == 3 and heard[-1]["event"] == "status":
                    break
        assert "htb 51a:" in place.host.tc("qdisc show dev eth0")
        ours.sendall(b'{"do":"stop"}\n')
        assert helper.wait(PATIENCE_S) == 0
