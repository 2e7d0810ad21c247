# SPDX-License-Identifier: Apache-2.0
"""The simulator is right where theory knows the answer; what decides keeps its bounds in short runs of cases."""

from __future__ import annotations

import random
import xml.etree.ElementTree as ElementTree
from itertools import pairwise

import pytest

from benchmarks.sim.antagonists import hot_sets
from benchmarks.sim.cases.moving import d5, d5b
from benchmarks.sim.cases.overload import overload
from benchmarks.sim.cases.queueing import cobham, d9
from benchmarks.sim.cases.sinkhole import d10
from benchmarks.sim.cases.table import CASES
from benchmarks.sim.cases.telemetry import d11
from benchmarks.sim.endpoints import pool_of
from benchmarks.sim.events import Events
from benchmarks.sim.figures import Finding, quantile
from benchmarks.sim.pickers import COSTS, by_cost
from benchmarks.sim.plot import Axis, line_plot
from benchmarks.sim.policies import Clients, PeakEwma, RoundRobin, TwoChoices
from benchmarks.sim.servers import FailingServer, SharedServer, SlotServer
from benchmarks.sim.service import lognormal_by_quantiles, poisson, power_tail, replay, truncated_normal

SEED = 1


def missed(finding: Finding) -> list[str]:
    return [f"{row.what}: {row.ours}, bound {row.bound}" for row in finding.rows if row.kept is False]


def test_events_happen_in_their_order_and_time_stands_where_it_was_told_to():
    events, seen = Events(), []
    events.at(2.0, lambda: seen.append("late"))
    events.at(1.0, lambda: seen.append("first"))
    events.at(1.0, lambda: events.after(0.5, lambda: seen.append("what came of the second")))
    events.at(9.0, lambda: seen.append("never"))
    events.run(until=5.0)
    assert seen == ["first", "what came of the second", "late"]
    assert events.now == 5.0


def test_a_slot_server_serves_one_after_the_other_and_a_cancelled_one_frees_its_slot():
    events, ends = Events(), {}
    server = SlotServer(events, slots=1)
    running = server.begin(10.0, lambda: ends.setdefault("cancelled", events.now))
    server.begin(1.0, lambda: ends.setdefault("next", events.now))
    queued = server.begin(1.0, lambda: ends.setdefault("left the queue", events.now))
    events.at(2.0, lambda: (server.cancel(running), server.cancel(queued)))
    events.run()
    assert ends == {"next": 3.0}
    assert server.in_flight == 0


def test_a_shared_server_is_slower_by_what_shares_its_cores():
    events, ends = Events(), {}
    server = SharedServer(events, cores=1.0)
    server.begin(1.0, lambda: ends.setdefault("short", events.now))
    server.begin(2.0, lambda: ends.setdefault("long", events.now))
    events.run()
    # Half speed until the short one has had its second, then alone.
    assert ends == {"short": pytest.approx(2.0), "long": pytest.approx(3.0)}
    assert server.accounts == (2, pytest.approx(3.0))


def test_antagonists_slow_down_what_is_in_flight():
    events, ends = Events(), []
    server = SharedServer(events, cores=1.0)
    server.begin(1.0, lambda: ends.append(events.now))
    events.at(0.5, lambda: setattr(server, "cores", 0.25))
    events.run()
    assert ends == [pytest.approx(0.5 + 0.5 / 0.25)]


def test_no_hot_set_keeps_a_backend_of_the_one_before():
    sets = hot_sets(10, 6, random.Random(SEED))
    assert all(len(each) in (2, 3) for each in sets)
    assert not any(one & other for one, other in pairwise(sets))


def test_distributions_have_the_quantiles_they_are_named_by():
    rng = random.Random(SEED)
    service = lognormal_by_quantiles(0.05, 0.15)
    drawn = [service(rng) for _ in range(20_000)]
    assert quantile(drawn, 0.9) == pytest.approx(0.05, rel=0.05)
    assert quantile(drawn, 0.99) == pytest.approx(0.15, rel=0.1)
    tail = power_tail(0.001, ((0.01, 0.02), (0.07, 0.001)))
    drawn = [tail(rng) for _ in range(50_000)]
    assert quantile(drawn, 0.98) == pytest.approx(0.01, rel=0.05)
    assert quantile(drawn, 0.999) == pytest.approx(0.07, rel=0.3)
    assert min(truncated_normal(1.0)(rng) for _ in range(100)) == 0.0


def test_arrivals_come_at_their_rate_or_as_the_trace_says():
    events, seen = Events(), []
    poisson(
        events, lambda now: 100.0 if now < 50.0 else 0.0, lambda: seen.append(events.now), random.Random(1), until=99.0
    )
    events.run()
    assert len(seen) == pytest.approx(5000, rel=0.05)
    assert max(seen) < 51.0
    events, seen = Events(), []
    replay(events, (0.25, 3.0), lambda: seen.append(events.now))
    events.run()
    assert seen == [0.25, 3.0]


@pytest.mark.parametrize("rule", [RoundRobin, TwoChoices])
def test_a_rule_spreads_evenly_over_alike_servers(rule):
    events, rng = Events(), random.Random(SEED)
    servers = [SlotServer(events, 4) for _ in range(4)]
    clients = Clients(events, servers, [rule(servers, rng)], rng)
    poisson(events, lambda _: 10.0, lambda: clients.send((0.1,), lambda *_: None), rng, until=200.0)
    events.run()
    assert min(clients.sent) > 0.8 * max(clients.sent)


def test_a_pickers_cost_decides_among_the_cold_ones():
    pool = pool_of((f"s{index}" for index in range(10)), slots=8, pick=by_cost(COSTS["prediction x (1 + in flight)"]))
    for index, endpoint in enumerate(pool.endpoints):
        endpoint.prediction.observe(0.1 if index else 0.04, 0.0)
    taken = []
    for _ in range(4):
        endpoint = pool.pick(0.0)
        assert endpoint is not None
        endpoint.take(0.0)
        taken.append(endpoint.name)
    # The fast one is hot with more than the ninth of ten has; where it is not, two of it are less than one of another.
    assert taken == ["s0", "s1", "s0", "s2"]


def test_a_rule_that_believes_fast_failures_falls_into_the_sinkhole():
    events, rng = Events(), random.Random(SEED)
    servers = [FailingServer(events, 0.001), SlotServer(events, 4)]
    clients = Clients(events, servers, [PeakEwma(servers, rng)], rng)
    poisson(events, lambda _: 10.0, lambda: clients.send((0.1,), lambda *_: None), rng, until=20.0)
    events.run()
    assert clients.sent[0] > 0.9 * sum(clients.sent)


def test_the_formula_is_cobhams():
    high, low, first_come = cobham(0.9, 0.2, 2.0)
    assert (high, low, first_come) == (
        pytest.approx(1.0976, abs=1e-3),
        pytest.approx(10.976, abs=1e-2),
        pytest.approx(9),
    )


@pytest.mark.parametrize(
    ("case", "scale"),
    [
        pytest.param(d9, 0.2, id="D9"),
        pytest.param(d5, 0.3, id="D5"),
        pytest.param(d5b, 0.5, id="D5b"),
        pytest.param(d10, 0.5, id="D10"),
        pytest.param(d11, 0.1, id="D11"),
        pytest.param(overload, 0.25, id="overload"),
    ],
)
def test_a_short_run_of_the_case_keeps_its_bounds(case, scale):
    finding = case(SEED, scale)
    assert any(row.kept for row in finding.rows)
    assert missed(finding) == []


def test_a_run_with_the_same_seed_is_the_same():
    assert d11(3, 0.02).document() == d11(3, 0.02).document()
    assert d10(3, 0.05).document() == d10(3, 0.05).document()


def test_a_missed_bound_is_told():
    finding = Finding(case="X", title="", set_up="")
    finding.tell("for information", "1", "2")
    assert finding.kept
    finding.judge("share", "0", "1", "0", False)
    assert not finding.kept
    assert finding.document()["rows"][1]["kept"] is False


def test_every_case_of_the_command_is_a_function():
    assert list(CASES) == ["d1", "d2", "d5", "d5b", "d7", "d8", "d9", "d10", "d11", "d14", "overload"]


def test_a_plot_is_well_formed_and_has_every_line():
    text = line_plot(
        "a < b", Axis("load"), Axis("ms", logarithmic=True), {"ours": [(0.5, 1.0), (1.0, 250.0)], "peer": [(0.5, 3.0)]}
    )
    root = ElementTree.fromstring(text)
    assert len(root.findall("{http://www.w3.org/2000/svg}polyline")) == 2
    words = [each.text for each in root.iter("{http://www.w3.org/2000/svg}text")]
    assert {"a < b", "load", "ms", "ours", "peer", "100"} <= set(words)
