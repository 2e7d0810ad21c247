# SPDX-License-Identifier: Apache-2.0
"""SIGHUP: the config file is read again, and what may change while requests run takes effect, all of it at once.

Classes, rules, trust, max_class and logging change here. Sockets, pools, workers and the admin address are what a
gateway is made of: they wait for an upgrade or a restart, as a whole. Traffic control waits for `inferlane qos apply`.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import structlog

from proxy.config.checks import too_many_shared
from proxy.config.loading import Config, ConfigError, load
from proxy.config.settings import ListenerSettings
from qos.classify import Policy

__all__ = ["Merged", "Reloadable", "merge", "refused", "reload", "taken_up", "with_ceilings"]

_LIVE = ("classes", "rules", "trust", "log")
_FIXED = ("pools", "admin", "workers")
_KERNEL = ("flows", "safety", "interfaces")
_log = structlog.get_logger("inferlane.reload")


@dataclass(frozen=True, slots=True, kw_only=True)
class Merged:
    """What a gateway runs with from now on."""

    config: Config
    policy: Policy
    """Of that config: a thousand rules take a second to prepare, and that is no work for the loop."""
    changed: tuple[str, ...]
    """Sections that take effect."""
    restart: tuple[str, ...]
    """Sections that do not: the running gateway goes on with what it was started with."""


def merge(running: Config, read: Config, *, helped: bool = True) -> Merged:
    """The new where it can be, the old where it must. ValueError where the two cannot go together.

    helped: whether there is a helper that keeps interfaces, though the config that runs may have none any more.
    """
    listeners = _listeners(running, read)
    update = {name: getattr(read, name) for name in (*_LIVE, *_KERNEL)} | {"listeners": listeners}
    unkept = bool(read.interfaces) and not helped
    if unkept:
        del update["interfaces"]  # nobody keeps any: the helper can be started at the start only
    if running.workers != 1 and (wrong := too_many_shared(len(read.classes))):
        raise ValueError(wrong)
    config = running.model_copy(update=update)
    changed = [name for name in (*_LIVE, *_KERNEL, "listeners") if getattr(config, name) != getattr(running, name)]
    waiting = [name for name in _FIXED if getattr(read, name) != getattr(running, name)] + ["interfaces"] * unkept
    if set(map(_fixed, read.listeners)) != set(map(_fixed, running.listeners)):
        waiting.insert(0, "listeners")
    return Merged(config=config, policy=config.policy(), changed=tuple(changed), restart=tuple(waiting))


def with_ceilings(config: Config, ceilings: Mapping[str, str | None]) -> Config:
    """The config with these max_class, by listener."""
    changed = tuple(
        each.model_copy(update={"max_class": ceilings.get(each.name, each.max_class)}) for each in config.listeners
    )
    return config.model_copy(update={"listeners": changed})


class Reloadable(Protocol):
    """As much of a gateway as a reload needs."""

    @property
    def config(self) -> Config:
        """What it runs with."""
        ...

    def use(self, merged: Merged) -> None:
        """Change over at once."""
        ...


async def reload(conf: Path, gateway: Reloadable, *, helped: bool = True) -> bool:
    """Read the file and change over. Whatever is wrong is in the log, and all stays as it was."""
    try:
        # A long file takes seconds to parse, and requests do not wait.
        merged = await asyncio.to_thread(_read, conf, gateway.config, helped=helped)
    except (ConfigError, ValueError) as error:
        refused(conf, error)
        return False
    gateway.use(merged)
    taken_up(conf, merged)
    return True


def refused(conf: Path, error: Exception) -> None:
    """Say in the log why nothing changes."""
    problems = [str(each) for each in error.problems] if isinstance(error, ConfigError) else [f"{conf}: {error}"]
    _log.error("reload_failed", problems=problems, detail=_STAYS)


def taken_up(conf: Path, merged: Merged) -> None:
    """Say in the log what has changed, and what has not."""
    if merged.restart:
        detail = f"{', '.join(merged.restart)} changed in {conf} and needs a restart; it stays as it was until then"
        _log.warning("needs_restart", sections=list(merged.restart), detail=detail)
    _log.info("reloaded", changed=list(merged.changed))


def _read(conf: Path, running: Config, *, helped: bool) -> Merged:
    return merge(running, load(conf), helped=helped)


_STAYS = "the config that ran before stays"


def _listeners(running: Config, read: Config) -> tuple[ListenerSettings, ...]:
    """The doors that are open, each with the max_class that the file gives it now."""
    ceilings = {each.name: each.max_class for each in read.listeners}
    names = {each.name for each in read.classes}
    listeners = []
    for each in running.listeners:
        ceiling = ceilings.get(each.name, each.max_class)
        if ceiling is not None and ceiling not in names:
            raise ValueError(
                f"listener {each.name} stays open until a restart, and its max_class {ceiling} is no more; "
                "restart the gateway, or leave that class in"
            )
        listeners.append(each.model_copy(update={"max_class": ceiling}))
    return tuple(listeners)


def _fixed(listener: ListenerSettings) -> ListenerSettings:
    return listener.model_copy(update={"max_class": None})
