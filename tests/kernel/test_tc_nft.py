# SPDX-License-Identifier: Apache-2.0
"""Flows before NAT in every engine that can tell where they went, and beside every classifier."""

from __future__ import annotations

import msgspec
import pytest

from qos.tc.capabilities import Capabilities
from qos.tc.kernel.probe import probe
from tests.fakes.link_policies import policy_of
from tests.fakes.namespaces import alone
from tests.fakes.shaped_link import datagrams, shaped_link

EF = 46


@pytest.fixture(scope="module")
def capabilities() -> Capabilities:
    with alone("nft") as host:
        return probe(host.name)


@pytest.mark.parametrize("missing", [(), ("bpf",), ("bpf", "flower")])
@pytest.mark.parametrize("engine", ["htb", "cake", "ets"])
def test_what_nftables_classified_stays_so_whatever_its_mark_says(
    capabilities: Capabilities, engine: str, missing: tuple[str, ...]
) -> None:
    lacking = capabilities.classifiers | dict.fromkeys(missing, "TC classifier not found")
    with shaped_link("nft") as link:
        policy = policy_of(
            {"engine": engine},
            flows=tuple(
                {"class": "batch", "src": f"{address}/{bits}", "proto": "udp", "dport": (5000,), "before_nat": True}
                for address, bits in ((link.host.v4, 32), (link.host.v6, 128))
            ),
        )
        link.shape(policy, msgspec.structs.replace(capabilities, classifiers=lacking))
        for version in (4, 6):
            (found,) = link.classes_of(lambda: datagrams(link.host, link.other, EF, port=5000, version=version))  # noqa: B023
            assert "batch" in found
            if engine == "htb" or not missing:
                (found,) = link.classes_of(lambda: datagrams(link.host, link.other, EF, version=version))  # noqa: B023
                assert "batch" not in found
        link.unshape()
        assert "inferlane" not in link.host.run("nft list tables")
