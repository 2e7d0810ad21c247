# SPDX-License-Identifier: Apache-2.0
"""What the parts of a config must not say about one another. Reads the plain values, so that it works on half a config.

Each check passes over what is not there or of a wrong type: that is said by the settings' own types already. Those
about links are in `link_checks`, about pools in `pool_checks`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from itertools import chain

from backends.ledger.layout import RANKS
from proxy.config.errors import Fault, unknown_name
from proxy.config.link_checks import link_faults
from proxy.config.pool_checks import pool_faults
from proxy.config.positions import Path
from proxy.config.settings import TRANSPORTS, Bind
from proxy.config.tables import Table, duration, names, parsed, repeated, tables, texts
from qos.units import format_duration, parse_share

__all__ = ["cross_faults", "too_many_shared"]


def cross_faults(config: Table) -> Iterator[Fault]:
    """Everything that is wrong between parts."""
    return chain.from_iterable(check(config) for check in _CHECKS)


def _same_names(config: Table) -> Iterator[Fault]:
    for section in ("classes", "listeners", "pools"):
        yield from repeated(
            ((*path, *rest), name) for path, table in tables(config, section) for rest, name in texts(table, "name")
        )


def _same_models(config: Table) -> Iterator[Fault]:
    """The second would never be asked."""
    return repeated(
        ((*path, *rest), model) for path, pool in tables(config, "pools") for rest, model in texts(pool, "model")
    )


def _same_addresses(config: Table) -> Iterator[Fault]:
    addresses = (
        ((*path, *rest), address)
        for path, listener in tables(config, "listeners")
        for rest, address in texts(listener, "bind")
        if not address.endswith(":0")  # a free one each time
    )
    return repeated(addresses)


def _one_default(config: Table) -> Iterator[Fault]:
    items = config.get("classes")
    if not isinstance(items, tuple) or not all(isinstance(item, dict) for item in items):
        return
    said = [item.get("default", False) for item in items]
    if not all(isinstance(each, bool) for each in said):
        return
    places = [place for place, each in enumerate(said) if each]
    for place in places[1:]:
        yield Fault(
            ("classes", place, "default"), f"classes[{places[0]}] is the default class already; only one can be"
        )
    if len(items) > 1 and not places:
        yield Fault(("classes",), "no class is the default one; add default: true to one of them")


def _shared_classes(config: Table) -> Iterator[Fault]:
    if config.get("workers", 1) != 1 and (wrong := too_many_shared(len(list(tables(config, "classes"))))):
        yield Fault(("classes",), wrong)


def too_many_shared(classes: int) -> str:
    """Why so many are too many for several workers; empty: they are not."""
    remedy = "leave some out, or set workers: 1"
    return f"{classes} classes; several workers can keep the order of {RANKS}: {remedy}" if classes > RANKS else ""


def _queues(config: Table) -> Iterator[Fault]:
    for path, table in tables(config, "classes"):
        gate = table.get("gate")
        deadline = duration(table.get("deadline"))
        queue = duration(gate.get("queue")) if isinstance(gate, dict) else None
        if deadline is not None and queue is not None and queue > deadline:
            until = format_duration(deadline)
            yield Fault((*path, "gate", "queue"), f"longer than the deadline, which ends every wait; at most {until}")


def _gate_shares(config: Table) -> Iterator[Fault]:
    """More than there is cannot be promised."""
    promised = 0.0
    for path, table in tables(config, "classes"):
        gate = table.get("gate")
        share = parsed(parse_share, gate.get("share")) if isinstance(gate, dict) else None
        promised += share or 0.0
        if share is not None and promised > 1 + 1e-9:
            yield Fault(
                (*path, "gate", "share"), f"with it {promised:.0%} of a pool's places are promised; at most 100%"
            )
            return


def _rules(config: Table) -> Iterator[Fault]:
    classes, listeners = names(config, "classes"), names(config, "listeners")
    for path, rule in tables(config, "rules"):
        name, when = rule.get("class"), rule.get("when")
        if isinstance(name, str) and classes and name not in classes:
            yield Fault((*path, "class"), unknown_name("class", name, classes))
        if when == {}:
            yield Fault(
                (*path, "when"), 'no condition; give listener, path, model or dscp, for every request path: "*"'
            )
        listener = when.get("listener") if isinstance(when, dict) else None
        if isinstance(listener, str) and listeners and listener not in listeners:
            yield Fault((*path, "when", "listener"), unknown_name("listener", listener, listeners))


def _ceilings(config: Table) -> Iterator[Fault]:
    classes = names(config, "classes")
    for path, listener in tables(config, "listeners"):
        name = listener.get("max_class")
        if isinstance(name, str) and classes and name not in classes:
            yield Fault((*path, "max_class"), unknown_name("class", name, classes))


def _certificates(config: Table) -> Iterator[Fault]:
    for path, listener in tables(config, "listeners"):
        accept = listener.get("accept", TRANSPORTS)
        over_quic = [each for each in accept if each in TRANSPORTS and each != "udp"] if type(accept) is tuple else []
        if over_quic and "tls" not in listener:
            remedy = "give cert and key, or tls: development on loopback, or accept: [udp] alone"
            yield Fault((*path, "tls"), f"missing, and {', '.join(over_quic)} cannot be accepted without it; {remedy}")
        if listener.get("tls") == "development":
            yield from _beyond_loopback(path, listener)


def _beyond_loopback(path: Path, listener: Table) -> Iterator[Fault]:
    """A certificate that nobody can check belongs on no network."""
    for rest, address in texts(listener, "bind"):
        try:
            loopback = Bind.parse(address).loopback
        except ValueError:
            continue
        if not loopback:
            message = f"tls: development is for loopback; give cert and key, or bind 127.0.0.1 or [::1], not {address}"
            yield Fault((*path, *rest), message)


_CHECKS: tuple[Callable[[Table], Iterator[Fault]], ...] = (
    _same_names,
    _same_models,
    _same_addresses,
    _one_default,
    _shared_classes,
    _queues,
    _gate_shares,
    _rules,
    _ceilings,
    _certificates,
    pool_faults,
    link_faults,
)
