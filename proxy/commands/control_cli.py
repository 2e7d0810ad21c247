# SPDX-License-Identifier: Apache-2.0
"""The commands that look at and change the endpoints of a running gateway: endpoints, drain, undrain."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxy.commands.terminal import FAILED, AsJson, Conf, expecting, load_config, print_json, print_parts

if TYPE_CHECKING:
    from rich.table import Table

__all__ = ["drain", "endpoints", "register", "undrain"]

PoolName = Annotated[str, typer.Argument(metavar="POOL", help="The pool's name.")]
EndpointName = Annotated[str, typer.Argument(metavar="ENDPOINT", help="Its name, as `inferlane endpoints` has it.")]


def register(app: typer.Typer) -> None:
    """Make them commands of `app`."""
    for each in (endpoints, drain, undrain):
        app.command()(each)


def endpoints(conf: Conf, as_json: AsJson = False) -> None:
    """Show every endpoint of the running gateway: its state, its load, how soon it would answer."""
    admin = load_config(conf).admin
    from proxy.commands.control_client import ControlError, ask_pools

    with expecting(ControlError, code=FAILED):
        document = ask_pools(admin)
    if as_json:
        print_json(document)
    else:
        print_parts(*(_table(each) for each in document["pools"]))


def drain(conf: Conf, pool: PoolName, endpoint: EndpointName, as_json: AsJson = False) -> None:
    """Give an endpoint nothing new; it finishes what it has. For as long as the gateway runs, or until undrain."""
    _set(conf, pool, endpoint, draining=True, as_json=as_json)


def undrain(conf: Conf, pool: PoolName, endpoint: EndpointName, as_json: AsJson = False) -> None:
    """Give a drained endpoint requests again."""
    _set(conf, pool, endpoint, draining=False, as_json=as_json)


def _set(conf: Conf, pool: str, endpoint: str, *, draining: bool, as_json: bool) -> None:
    admin = load_config(conf).admin
    from proxy.commands.control_client import ControlError, set_draining

    with expecting(ControlError, code=FAILED):
        document = set_draining(admin, pool, endpoint, draining=draining)
    if as_json:
        print_json(document)
    else:
        typer.echo(f"{document['name']} of pool {pool}: {document['state']}, {document['in_flight']} in flight")


def _table(pool: dict[str, Any]) -> Table:
    from rich.table import Table

    title = f"pool {pool['name']}{'' if pool['ready'] else ', not ready'}"
    table = Table(title=title, title_justify="left")
    for column in ("endpoint", "zone", "state"):
        table.add_column(column)
    for column in ("in flight", "slots", "predicted", "oldest"):
        table.add_column(column, justify="right")
    for each in pool["endpoints"]:
        counts = (str(each["in_flight"]), str(each["slots"]))
        times = (_time(each["predicted_ms"]), _time(each["oldest_ms"]))
        table.add_row(each["name"], each["zone"] or "-", each["state"], *counts, *times)
    return table


def _time(milliseconds: float | None) -> str:
    if milliseconds is None:
        return "-"
    return f"{milliseconds:.3g} ms" if milliseconds < 1000 else f"{milliseconds / 1000:.3g} s"
