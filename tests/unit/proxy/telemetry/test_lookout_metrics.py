# SPDX-License-Identifier: Apache-2.0
"""Probes and look-ups, counted."""

from __future__ import annotations

from types import SimpleNamespace

from proxy.telemetry.lookout_metrics import discovery_families, probe_families


def test_probes_are_told_by_pool_and_how_they_ended():
    (probes,) = probe_families(SimpleNamespace(counts={("digits", True): 7, ("digits", False): 2}))
    assert (probes.name, probes.counts) == ("inferlane_probes", True)
    assert dict(probes.samples) == {("digits", "ok"): 7, ("digits", "failed"): 2}


def test_look_ups_that_told_nothing_are_told_by_pool_and_source():
    (failures,) = discovery_families(SimpleNamespace(failures={("digits", "name"): 3}))
    assert (failures.name, failures.counts) == ("inferlane_discovery_failures", True)
    assert dict(failures.samples) == {("digits", "name"): 3}
