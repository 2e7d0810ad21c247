# SPDX-License-Identifier: Apache-2.0
"""A policy and what the kernel can do -> the state that each device shall have, and what of the policy is lost.

Whatever cannot be kept is said: what was wanted, what the kernel answered, what is used, what is lost.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import msgspec

from qos.schema import did_you_mean
from qos.tc.capabilities import Capabilities, LinkFacts
from qos.tc.design.choices import (
    Choice,
    Note,
    Severity,
    chosen_classifier,
    chosen_engine,
    ingress_obstacle,
    link_warnings,
)
from qos.tc.design.classifier import RuleTable, rule_table
from qos.tc.design.engines import LOSSES, Queues, cake, ets, fq, htb, most_split
from qos.tc.design.nft import chain_name, early_flows, early_handles, ingress_loss, obstacle, ruleset
from qos.tc.design.packet_filters import flower_filters, u32_filters
from qos.tc.design.program import MOST_INSTRUCTIONS, instructions, program_name
from qos.tc.design.shape import Link, byte_rate, is_slow, longest_train
from qos.tc.kernel.qdisc_codec import canonical
from qos.tc.policy import Interface, LinkClass, LinkPolicy
from qos.tc.state import (
    CLSACT,
    EGRESS_HOOK,
    INGRESS_HOOK,
    OUR_FILTERS,
    OUR_MAJORS,
    Bpf,
    Clsact,
    Filter,
    Htb,
    LinkState,
    NetworkState,
    Qdisc,
    QdiscOptions,
    Redirect,
    handle_text,
    is_our_qdisc,
)
from qos.tc.tree import kind_of, root_of

__all__ = ["CannotKeepError", "Compiled", "Note", "compile_policy", "ifb_name"]

_ALL_PROTOCOLS = 0x0003
_CLSACT_QDISC = Qdisc(0xFFFF0000, CLSACT, Clsact())
_LONGEST_NAME = 15  # IFNAMSIZ, less its end


class Compiled(msgspec.Struct, frozen=True, kw_only=True):
    """What shall be in one namespace."""

    desired: NetworkState
    programs: dict[str, bytes]
    """The instructions of each classifier, by the name that its filter has; the nftables table's text, by its chain."""
    labels: dict[tuple[str, int], str]
    """(device, handle of a tc class or of its qdisc) -> the class's name."""
    notes: tuple[Note, ...]


class CannotKeepError(Exception):
    """A policy that cannot be applied here: a line for each reason, with its remedy."""


def ifb_name(interface: str) -> str:
    """The name of the IFB that queues what comes in at an interface."""
    name = f"ifb-{interface}"
    if len(name) <= _LONGEST_NAME:
        return name
    return f"{name[:10]}-{hashlib.sha256(interface.encode()).hexdigest()[:4]}"


def compile_policy(
    policy: LinkPolicy,
    netns: str | None,
    *,
    facts: Mapping[str, LinkFacts],
    capabilities: Capabilities,
    observed: NetworkState,
    missing_ok: bool = False,
) -> Compiled:
    """What the policy asks of this namespace. Raises CannotKeepError.

    missing_ok: whether an interface that is not there is a warning, because it may come.
    """
    compiling = _Compiling(policy, facts, capabilities, observed)
    for place, interface in enumerate(policy.interfaces):
        if interface.netns == netns:
            compiling.add(f"interfaces[{place}] {interface.name}", interface, missing_ok=missing_ok)
    if compiling.errors:
        raise CannotKeepError("\n".join(compiling.errors))
    text = ruleset(policy, compiling.early)
    table = {chain_name(text): text.encode()} if text else {}
    return Compiled(
        desired=NetworkState(netns=netns, links=tuple(compiling.links), table=chain_name(text)),
        programs=compiling.programs | table,
        labels=compiling.labels,
        notes=tuple(compiling.notes),
    )


class _Compiling:
    """One namespace's result as it grows."""

    def __init__(
        self, policy: LinkPolicy, facts: Mapping[str, LinkFacts], capabilities: Capabilities, observed: NetworkState
    ) -> None:
        self.classes = [each for each in policy.classes if each.share > 0 or each.default]
        self.facts, self.capabilities, self.observed = facts, capabilities, observed
        self.rules: RuleTable = rule_table(policy)
        self.links: list[LinkState] = []
        self.programs: dict[str, bytes] = {}
        self.labels: dict[tuple[str, int], str] = {}
        self.notes: list[Note] = []
        self.errors: list[str] = []
        self.early: dict[str, dict[str, int]] = {}
        self._early_flows = early_flows(policy)
        self._names: dict[tuple[int, ...], str] = {}

    def add(self, where: str, interface: Interface, *, missing_ok: bool) -> None:
        """One interface, and its IFB."""
        facts = self.facts.get(interface.name)
        if facts is None:
            text = f"no such interface{did_you_mean(interface.name, self.facts)}; `ip link` lists them"
            if missing_ok:
                self.notes.append(Note("warning", where, text))
            else:
                self.errors.append(f"{where}: {text}")
            return
        notes: list[Note] = [Note("warning", where, text) for text in link_warnings(interface, facts)]
        choice = chosen_engine(interface, facts, self.capabilities)
        notes += (Note(severity, where, text) for severity, text in choice.notes)
        self._early(where, interface, choice, notes)
        if choice.name == "marks":
            self.links.append(LinkState(name=interface.name))
        elif self._root_is_free(where, interface):
            self._shape(where, interface, facts, choice, notes)
        self._keep(interface, notes)

    def _early(self, where: str, interface: Interface, choice: Choice, notes: list[Note]) -> None:
        """Whether flows before NAT are seen on this device."""
        if not self._early_flows:
            return
        said = obstacle(interface, choice.name, lacks=self.capabilities.nftables, table=self.observed.table)
        if said is None:
            self.early[interface.name] = {}  # until it has queues
        else:
            severity, why = said
            notes.append(Note(severity, where, f"{self._early_flows}: not classified by addresses before NAT: {why}"))
        if interface.ingress is not None and choice.name != "marks":
            notes.append(Note("warning", where, ingress_loss(self._early_flows)))

    def _keep(self, interface: Interface, notes: list[Note]) -> None:
        self.notes += notes
        if interface.refuse_degraded:
            self.errors += (
                f"{each.where}: {each.text}; degrade: allow accepts that"
                for each in notes
                if each.severity == "degraded"
            )

    def _root_is_free(self, where: str, interface: Interface) -> bool:
        link = self.observed.link(interface.name)
        root = None if link is None else root_of(link)
        if root is None or is_our_qdisc(root) or interface.adopt:
            return True
        self.errors.append(
            f"{where}: its root qdisc {kind_of(root.options)} {handle_text(root.handle)} is not ours; say adopt: true "
            f"to replace it, or remove it: tc qdisc del dev {interface.name} root"
        )
        return False

    def _shape(self, where: str, interface: Interface, facts: LinkFacts, choice: Choice, notes: list[Note]) -> None:
        present = self.observed.link(interface.name)
        link = self._link(where, interface, interface.egress, facts, choice, notes)
        state, queues = self._device(where, interface.name, link, choice, notes)
        if queues.sharing and not choice.fell_back:
            text = LOSSES[choice.name].format(sharing=queues.sharing)
            notes.append(Note("degraded", where, f"engine {choice.name}: {text}"))
        if interface.name in self.early:
            self.early[interface.name] = early_handles(state.qdiscs[0].handle, queues.handles)
        ours = present is not None and any(map(is_our_qdisc, present.qdiscs))
        if choice.name != "cake":  # which cuts trains itself
            state = msgspec.structs.replace(state, gso_max_size=longest_train(link, ours=ours))
        if interface.ingress is not None:
            state = self._redirected(where, interface, facts, choice, state, notes)
        self.links.append(state)

    def _redirected(
        self,
        where: str,
        interface: Interface,
        facts: LinkFacts,
        choice: Choice,
        state: LinkState,
        notes: list[Note],
    ) -> LinkState:
        """The state with the redirection of what comes in, whose queues are on an IFB."""
        assert interface.ingress is not None
        name = ifb_name(interface.name)
        obstacle = ingress_obstacle(choice.name, self.capabilities)
        if obstacle:
            notes.append(Note("degraded", where, f"ingress is not shaped: {obstacle}"))
            return state
        if not self._ifb_is_ours(name, interface):
            self.errors.append(
                f"{where}: ingress needs the name {name}, and that device is not ours; rename or remove it"
            )
            return state
        link = self._link(where, interface, interface.ingress, facts, choice, notes)
        ifb, _ = self._device(f"{where} ingress", name, link, choice, notes)
        self.links.append(msgspec.structs.replace(ifb, ifb_for=interface.name))
        redirect = Filter(INGRESS_HOOK, OUR_FILTERS[0], _ALL_PROTOCOLS, 0, Redirect(name))
        later = sorted({each.pref for each in self._strangers_at_ingress(interface.name) if each.pref > redirect.pref})
        if later:
            text = (
                f"filters that are not ours, with pref {', '.join(map(str, later))} at its ingress hook, will see "
                f"nothing: packets leave for {name} at pref {redirect.pref}; give those that must see them a lower one"
            )
            notes.append(Note("warning", where, text))
        qdiscs = state.qdiscs
        if _CLSACT_QDISC not in qdiscs and not self._has_ingress(interface.name):
            qdiscs = (*qdiscs, _CLSACT_QDISC)
        return msgspec.structs.replace(state, qdiscs=qdiscs, filters=(*state.filters, redirect))

    def _link(
        self, where: str, interface: Interface, bits_per_s: int, facts: LinkFacts, choice: Choice, notes: list[Note]
    ) -> Link:
        """The link's numbers. CAKE cuts trains itself; what has no rate cannot be held up by them here."""
        rate = byte_rate(bits_per_s)
        cut = choice.name == "htb" and is_slow(rate)
        lacks = self.capabilities.lacks("tbf")
        if cut and lacks is not None:
            text = f"{lacks}; trains of packets go as one: one of 64 KiB holds this link for {65536e3 / rate:.1f} ms"
            _note(notes, "degraded", where, text)
        return Link(
            rate=rate,
            mtu=facts.mtu,
            overhead=interface.overhead,
            gso_max_size=facts.gso_max_size,
            split=cut and lacks is None and most_split(self.classes),
        )

    def _ifb_is_ours(self, name: str, interface: Interface) -> bool:
        known = self.observed.link(name)
        return name not in self.facts or (known is not None and known.ifb_for == interface.name)

    def _strangers_at_ingress(self, device: str) -> list[Filter]:
        link = self.observed.link(device)
        filters = () if link is None else link.filters
        return [each for each in filters if each.parent == INGRESS_HOOK and each.pref not in OUR_FILTERS]

    def _has_ingress(self, device: str) -> bool:
        """Whether somebody's `ingress` qdisc is where clsact would be; its hook for what comes in is the same."""
        link = self.observed.link(device)
        return link is not None and any(kind_of(each.options) == "ingress" for each in link.qdiscs)

    def _device(
        self, where: str, device: str, link: Link, choice: Choice, notes: list[Note]
    ) -> tuple[LinkState, Queues]:
        """The root with all below it, and the classifier."""
        classifier, lost = chosen_classifier(choice.name, self.capabilities, ingress=self._has_ingress(device))
        if lost:
            _note(notes, "degraded", where, lost)
        classes = self.classes
        major = OUR_MAJORS[0]
        queues = _queues(choice, link, classes, major, classified=classifier != "none")
        if self._moves_over(device, queues.qdiscs[0].options):
            major = OUR_MAJORS[1]
            queues = _queues(choice, link, classes, major, classified=classifier != "none")
        for text in queues.warnings:
            _note(notes, "warning", where, text)
        self.labels |= {(device, handle): name for handle, name in queues.labels.items()}
        qdiscs = tuple(Qdisc(each.handle, each.parent, canonical(each.options)) for each in queues.qdiscs)
        filters: tuple[Filter, ...] = ()
        if classifier == "bpf":
            qdiscs = (*qdiscs, _CLSACT_QDISC)
            filters = (Filter(EGRESS_HOOK, OUR_FILTERS[0], _ALL_PROTOCOLS, 1, self._program(where, queues, major)),)
        elif classifier != "none":
            filters = self._on_root(where, classifier, queues, major, notes)
        return LinkState(name=device, qdiscs=qdiscs, classes=queues.classes, filters=filters), queues

    def _moves_over(self, device: str, options: QdiscOptions) -> bool:
        """Whether the first major is taken by another root of ours, or the present root, under the second, may stay."""
        link = self.observed.link(device)
        present = None if link is None else root_of(link)
        if present is None or not is_our_qdisc(present):
            return False
        # A handle keeps its qdisc's kind, and an HTB root its options (EINVAL).
        same_kind = type(present.options) is type(options)
        stays = same_kind and (not isinstance(options, Htb) or canonical(options) == present.options)
        return stays == (present.handle >> 16 == OUR_MAJORS[1])

    def _program(self, where: str, queues: Queues, major: int) -> Bpf:
        key = (major, *queues.handles.values())
        if key not in self._names:
            program = instructions(self.rules, queues.handles, major=major)
            if len(program) // 8 > MOST_INSTRUCTIONS:
                self.errors.append(
                    f"{where}: flows make {len(program) // 8} BPF instructions, the kernel takes {MOST_INSTRUCTIONS}; "
                    "write fewer flows, or fewer ports in them"
                )
            self._names[key] = program_name(program)
            self.programs[self._names[key]] = program
        return Bpf(self._names[key])

    def _on_root(
        self, where: str, classifier: str, queues: Queues, major: int, notes: list[Note]
    ) -> tuple[Filter, ...]:
        make = flower_filters if classifier == "flower" else u32_filters
        found = make(self.rules, queues.handles, major << 16)
        if found.left_out:
            shown = ", ".join(found.left_out[:8]) + (", ..." if len(found.left_out) > 8 else "")
            _note(notes, "degraded", where, f"too much for {classifier}, so these are not classified: {shown}")
        return found.filters


def _note(notes: list[Note], severity: Severity, where: str, text: str) -> None:
    """Once: an interface and its IFB often have the same to say."""
    if all(each.text != text for each in notes):
        notes.append(Note(severity, where, text))


def _queues(choice: Choice, link: Link, classes: list[LinkClass], major: int, *, classified: bool) -> Queues:
    if choice.name == "cake":
        return cake(link, classes, major)
    if choice.name == "ets":
        return ets(link, classes, major, classified=classified)
    if choice.name == "fq":
        return fq(link, classes, major)
    return htb(link, classes, major, leaf=choice.leaf)
