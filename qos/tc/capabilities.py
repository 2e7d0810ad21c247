# SPDX-License-Identifier: Apache-2.0
"""What a kernel can do, and what a link is: the facts that a plan is made from."""

from __future__ import annotations

import msgspec

__all__ = ["CONFIG_NAMES", "Capabilities", "LinkFacts", "config_for"]

CONFIG_NAMES = {
    "htb": "CONFIG_NET_SCH_HTB",
    "cake": "CONFIG_NET_SCH_CAKE",
    "ets": "CONFIG_NET_SCH_ETS",
    "fq": "CONFIG_NET_SCH_FQ",
    "fq_codel": "CONFIG_NET_SCH_FQ_CODEL",
    "bfifo": "CONFIG_NET_SCH_FIFO",
    "tbf": "CONFIG_NET_SCH_TBF",
    "clsact": "CONFIG_NET_SCH_INGRESS",
    "u32": "CONFIG_NET_CLS_U32",
    "flower": "CONFIG_NET_CLS_FLOWER",
    "matchall": "CONFIG_NET_CLS_MATCHALL",
    "bpf": "CONFIG_NET_CLS_BPF",
    "mirred": "CONFIG_NET_ACT_MIRRED",
    "skbedit": "CONFIG_NET_ACT_SKBEDIT",
    "ifb": "CONFIG_IFB",
}
"""What a kernel is built with (=m or =y) to have each kind."""


def config_for(kind: str, said: str) -> str:
    """What a kernel that said this about a kind lacks; empty where that would not help, or nobody knows."""
    return "" if _denied(said) else CONFIG_NAMES.get(kind, "")


def _denied(said: str) -> bool:
    """Whether the kernel has it, and this process may not use it: the remedy is said then."""
    return "CAP_" in said


class Capabilities(msgspec.Struct, frozen=True, kw_only=True):
    """Answers of one kernel in one namespace. Each maps a kind to "" where it works, else to what the kernel said."""

    kernel: str
    """As `uname -r`."""
    qdiscs: dict[str, str]
    classifiers: dict[str, str]
    actions: dict[str, str]
    ifb: str
    clsact: str
    per_packet_priority: bool
    """Whether sendmsg takes SO_PRIORITY (Linux 6.14)."""
    fq_bands: bool = False
    """Whether fq has bands by packet priority (Linux 6.7)."""
    nftables: str = ""
    """Why no nftables table can be made, with the remedy; "" where nothing is known to be in the way."""

    def lacks(self, kind: str) -> str | None:
        """None where the kernel has this kind, else why not, with the config option that gives it."""
        said = {**self.qdiscs, **self.classifiers, **self.actions, "ifb": self.ifb, "clsact": self.clsact}.get(kind)
        if said == "":
            return None
        if said is not None and _denied(said):
            return f"{kind}: {said}"
        option = config_for(kind, said or "")
        remedy = f"; {option}=m gives it" if option else ""
        return f"{kind}: not in this kernel ({self.kernel}: {said or 'not asked'}){remedy}"


class LinkFacts(msgspec.Struct, frozen=True, kw_only=True):
    """One device as the kernel shows it."""

    name: str
    index: int
    up: bool
    mtu: int
    tx_queues: int
    gso_max_size: int
    speed: int | None = None
    """Bits per second that the link negotiated; None where it says nothing (veth, IFB, virtual machines)."""
    alias: str = ""
    kind: str = ""
    """`ifb`, `veth`, ...; empty for hardware."""
    managed_by: str = ""
    """NetworkManager or systemd-networkd, where one of them manages traffic control on it."""
