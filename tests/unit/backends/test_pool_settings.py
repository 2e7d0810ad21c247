# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path
from typing import get_args

import pytest
from pydantic import ValidationError

from backends.choosing.picker import PICKERS
from backends.pool_settings import DiscoverySettings, HealthSettings, Pick, PoolSettings, ProbeSettings, RetrySettings
from backends.settings import OipSettings
from qos.schema import Reading

FILE = Reading(Path("/etc/inferlane"))


def pool(**changes) -> PoolSettings:
    written = {"name": "p", "model": "m", "endpoints": ({"oip": "http://a"},)} | changes
    return PoolSettings.model_validate(written, context=FILE)


def refusal(**written) -> str:
    with pytest.raises(ValidationError) as refused:
        pool(**written)
    return refused.value.errors()[0]["msg"]


def test_a_pool_as_the_file_writes_it():
    assert pool() == PoolSettings(
        name="p",
        model=("m",),
        pick="least_latency",
        health=HealthSettings(failures=5, failure_rate=0.5, eject=5.0, max_ejected=0.5, probe=None),
        retry=RetrySettings(most=2, budget=0.2),
        endpoints=(OipSettings(oip="http://a", slots=None, tls=None),),
    )


def test_a_model_is_a_name_or_a_list():
    assert pool(model="llama-*").model == ("llama-*",)
    assert pool(model=("a", "b*")).model == ("a", "b*")


def test_every_way_to_pick_that_is_allowed_exists():
    assert set(get_args(Pick)) == set(PICKERS)
    assert "allowed: least_latency, round_robin, least_in_flight" in refusal(pick="fastest")


def test_a_pool_has_somebody_to_ask():
    assert "at least 1 item" in refusal(model=())
    assert "at least 1 item" in refusal(endpoints=())
    with pytest.raises(ValidationError, match="at least one endpoint is needed, or endpoints_from"):
        PoolSettings.model_validate({"name": "p", "model": "m"}, context=FILE)
    written = {"name": "p", "model": "m", "endpoints_from": {"file": "more.yaml"}}
    found = PoolSettings.model_validate(written, context=FILE)
    assert found.endpoints_from == DiscoverySettings(file=Path("/etc/inferlane/more.yaml"), every=2.0)


def test_probes_ask_as_the_endpoints_kind_does_unless_told():
    assert pool(health={"probe": {}}).health.probe == ProbeSettings(kind=None, every=2.0, timeout=1.0, failures=2)
    assert pool(health={"probe": {"kind": "http", "path": "/up"}}).health.probe.path == "/up"
    assert "pattern" in refusal(health={"probe": {"kind": "http", "path": "up"}})


@pytest.mark.parametrize("every", ["50ms", "1500m"])
def test_nobody_asks_too_often_or_never(every):
    assert "at least 100ms and at most 1440m" in refusal(health={"probe": {"every": every}})
