# SPDX-License-Identifier: Apache-2.0
"""Link policies for tests: four classes on one interface, unless said otherwise."""

from __future__ import annotations

from typing import Any

from qos.settings import BUILT_IN_CLASSES
from qos.tc.policy import LinkPolicy, link_policy
from qos.tc.settings import FlowSettings, InterfaceSettings, SafetySettings

__all__ = ["policy_of"]


def policy_of(
    *interfaces: dict[str, Any], flows: tuple[dict[str, Any], ...] = (), classes: Any = BUILT_IN_CLASSES
) -> LinkPolicy:
    """The policy of these interfaces; none: `eth0` at 20 Mbit/s in our own namespace."""
    return link_policy(
        classes,
        [InterfaceSettings.model_validate({"name": "eth0", "egress": "20mbit"} | each) for each in interfaces or ({},)],
        [FlowSettings.model_validate(each) for each in flows],
        SafetySettings(),
    )
