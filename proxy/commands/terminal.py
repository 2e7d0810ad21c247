# SPDX-License-Identifier: Apache-2.0
"""What all commands share: their common options, how a config is loaded, how errors, tables and JSON are told."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import TYPE_CHECKING, Annotated, Any

import typer

from proxy.state import state_directory

if TYPE_CHECKING:
    from proxy.config.loading import Config

__all__ = [
    "FAILED",
    "MISUSED",
    "PENDING",
    "AsJson",
    "Conf",
    "StateDir",
    "expecting",
    "load_config",
    "print_json",
    "print_parts",
    "read_config",
    "state_folder",
    "terminable",
    "warn",
]

FAILED, MISUSED, PENDING = 1, 2, 3
"""Exit codes: it did not work; bad usage or config; `qos plan` found changes to make."""
_FILE_WIDTH = 200

Conf = Annotated[Path, typer.Argument(metavar="CONF", help="The gateway's YAML file.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON for programs.")]
StateDir = Annotated[
    Path | None,
    typer.Option(
        "--state-dir",
        metavar="DIR",
        help="Where certificates and policies are kept; default: $STATE_DIRECTORY, or the system's.",
    ),
]


def load_config(conf: Path, *, tell_warnings: bool = False) -> Config:
    """The verified config; its errors are told and end the command."""
    return read_config(conf, tell_warnings=tell_warnings)[0]


def read_config(conf: Path, *, tell_warnings: bool = False) -> tuple[Config, str]:
    """The same, and the file's text, for whoever hands it on."""
    from proxy.config.loading import ConfigError, load_text, read_text

    try:
        text = read_text(conf)
        config, warnings = load_text(text, conf)
    except ConfigError as error:
        typer.echo(str(error), err=True)  # its lines begin with file:line:column, which editors follow
        raise typer.Exit(MISUSED) from None
    for each in warnings if tell_warnings else ():
        typer.echo(f"{each} (a warning)", err=True)
    return config, text


def state_folder(chosen: Path | None) -> Path:
    """Where state is kept."""
    return state_directory(chosen, environ=os.environ, root=os.geteuid() == 0)


@contextmanager
def expecting(*errors: type[Exception], code: int) -> Iterator[None]:
    """These are told in one line; anything else is a bug and shows its traceback."""
    try:
        yield
    except errors as error:
        warn(_line(error))
        raise typer.Exit(code) from None


@contextmanager
def terminable() -> Iterator[None]:
    """SIGTERM unwinds the block as ^C does, so that it leaves nothing behind."""
    here = os.getpid()

    def stop(number: int, frame: FrameType | None) -> None:
        if os.getpid() != here:
            os._exit(128 + number)  # a forked child must not unwind its parent's block
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def warn(text: str) -> None:
    """A line beside the output."""
    typer.echo(f"inferlane: {text}", err=True)


def print_parts(*parts: object) -> None:
    """Text and tables, as wide as the terminal, or as needed in a file."""
    from rich.console import Console

    console = Console(width=None if sys.stdout.isatty() else _FILE_WIDTH, highlight=False)
    for part in parts:
        console.print(part)


def print_json(document: Any) -> None:
    """A document for programs."""
    import msgspec

    typer.echo(msgspec.json.format(msgspec.json.encode(document)))  # numbers that JSON lacks become null


def _line(error: Exception) -> str:
    if not isinstance(error, OSError) or error.strerror is None:
        return str(error)
    return error.strerror if error.filename is None else f"{error.filename}: {error.strerror}"
