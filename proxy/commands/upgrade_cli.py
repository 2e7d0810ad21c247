# SPDX-License-Identifier: Apache-2.0
"""The command that replaces a running gateway by what is on disk now, and waits until that serves: upgrade."""

from __future__ import annotations

from typing import Annotated

import typer

from proxy.commands.terminal import FAILED, MISUSED, AsJson, Conf, expecting, load_config, print_json

__all__ = ["register", "upgrade"]

WAIT = "20m"
"""Longer than a gateway gives its new workers to start."""


def register(app: typer.Typer) -> None:
    """Make it a command of `app`."""
    app.command()(upgrade)


def upgrade(
    conf: Conf,
    wait: Annotated[str, typer.Option(metavar="TIME", help="How long to wait for it to serve.")] = WAIT,
    as_json: AsJson = False,
) -> None:
    """Start what is on disk now beside the running gateway, and let it take over; no request fails because of it.

    Where it cannot start, the running gateway goes on as it was, and this says why.
    """
    admin = load_config(conf).admin
    from proxy.commands.control_client import ControlError
    from proxy.commands.upgrade_client import ask_upgrade
    from qos.units import parse_duration

    with expecting(ValueError, code=MISUSED):
        wait_s = parse_duration(wait)
    with expecting(ControlError, code=FAILED):
        document = ask_upgrade(admin, wait_s=wait_s)
    if as_json:
        print_json(document)
    elif document["state"] == "done":
        typer.echo(document["detail"])
    else:
        typer.echo(f"inferlane: the gateway goes on as it was: {document['detail']}", err=True)
    if document["state"] != "done":
        raise typer.Exit(FAILED)
