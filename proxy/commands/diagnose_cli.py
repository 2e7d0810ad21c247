# SPDX-License-Identifier: Apache-2.0
"""The command `inferlane diagnose`: how a running gateway keeps its promises, and what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from proxy.commands.terminal import FAILED, MISUSED, AsJson, expecting, load_config, print_json, print_parts

__all__ = ["diagnose", "register"]

_ADMIN = "http://127.0.0.1:9433"
Where = Annotated[str, typer.Argument(metavar="[CONF|URL]", help="The gateway's YAML file, or its admin address.")]


def register(app: typer.Typer) -> None:
    """Make it a command of `app`."""
    app.command()(diagnose)


def diagnose(where: Where = _ADMIN, as_json: AsJson = False) -> None:
    """Tell how each class's promise was spent in the last minutes, what breaks it and what to change.

    Exit code 1 where a promise is broken.
    """
    config = None if "://" in where else load_config(Path(where))
    from proxy.commands.diagnose_client import DiagnoseError, address_in, address_of, ask
    from proxy.commands.diagnose_report import parts

    with expecting(ValueError, code=MISUSED):
        host, port = address_of(where) if config is None else address_in(config)
    with expecting(DiagnoseError, code=FAILED):
        report = ask(host, port)
    if as_json:
        print_json(report)
    else:
        print_parts(*parts(report))
    if not report.holds:
        raise typer.Exit(FAILED)
