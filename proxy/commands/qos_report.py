# SPDX-License-Identifier: Apache-2.0
"""What `inferlane qos` prints about plans, changes and kernels: texts for people, documents for programs."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from rich.table import Table

from qos.tc.capabilities import Capabilities, config_for
from qos.tc.change.ledger import LastRollback, Pending
from qos.tc.change.making import Changed, interrupted, undone
from qos.tc.change.scope import Target
from qos.tc.reconcile.commands import describe, symbol, tc_commands
from qos.tc.reconcile.steps import NO_LOSS, Step
from qos.units import format_duration

__all__ = [
    "changed_document",
    "changed_text",
    "notices",
    "pending_document",
    "plan_document",
    "plan_text",
    "probe_document",
    "probe_table",
    "step_lines",
]

_SYMBOLS = {"+": "to add", "~": "to change in place", "!": "to replace", "-": "to remove"}


def plan_text(targets: Sequence[Target], *, apply_with: str) -> str:
    """Each step with its commands and what it can lose. apply_with: what to type next."""
    lines: list[str] = []
    for each in targets:
        if each.steps or each.notes:
            lines += [f"{place(each.netns)}:"]
        lines += [f"  {note.severity}: {note.where}: {note.text}" for note in each.notes]
        for step in each.steps:
            lines += [f"  {line}" for line in step_lines(step, each)]
    counted = Counter(symbol(step) for each in targets for step in each.steps)
    if not counted:
        return "\n".join([*lines, "nothing to do: the kernel has all that this config asks"])
    total = ", ".join(f"{counted[sign]} {words}" for sign, words in _SYMBOLS.items() if counted[sign])
    return "\n".join([*lines, f"{total}; nothing is changed yet: {apply_with}"])


def step_lines(step: Step, target: Target) -> list[str]:
    """One step: what it is, the commands that would do the same, what it can lose."""
    lines = [describe(step, target.labels), *(f"    {command}" for command in _commands(step, target))]
    if step.loss.packets is None or (step.loss.packets == 0 and step.loss != NO_LOSS):
        lines.append(f"    loses {step.loss.text}")
    elif step.loss.packets:
        lines.append(f"    loses {step.loss.text}: now {step.loss.packets} packets")
    return lines


def plan_document(targets: Sequence[Target]) -> dict[str, Any]:
    """The same for programs."""
    return {
        "changes": sum(len(each.steps) for each in targets),
        "namespaces": [
            {
                "netns": each.netns,
                "notes": _notes(each),
                "steps": [
                    {
                        "symbol": symbol(step),
                        "verb": step.verb.value,
                        "device": step.device,
                        "text": describe(step, each.labels)[2:],
                        "commands": _commands(step, each),
                        "loses": {"packets": step.loss.packets, "text": step.loss.text},
                    }
                    for step in each.steps
                ],
            }
            for each in targets
        ],
    }


def changed_text(changed: Changed, now: float) -> str:
    """What became of an apply, and what is left to do. now: seconds of the clock of deadlines."""
    lines = [f"{note.severity}: {note.where}: {note.text}" for each in changed.targets for note in each.notes]
    if changed.pending is None:
        if changed.steps:
            lines.append(f"change {changed.id}: {_steps(changed.steps)} made and read back; it is confirmed")
        else:
            lines.append("nothing to do: the kernel has all that this config asks; it is confirmed")
        return "\n".join(lines)
    left = format_duration(math.ceil(seconds_left(changed.pending, now)))
    lines.append(
        f"change {changed.id}: {_steps(changed.steps)} made and read back"
        if changed.targets
        else f"change {changed.id}: waits longer"
    )
    lines.append(f"it is put back in {left}, unless you say before: inferlane qos confirm")
    return "\n".join(lines)


def _steps(count: int) -> str:
    return "1 step" if count == 1 else f"{count} steps"


def changed_document(changed: Changed, now: float) -> dict[str, Any]:
    """The same for programs."""
    return {
        "id": changed.id,
        "steps": changed.steps,
        "pending": None if changed.pending is None else pending_document(changed.pending, now),
        "notes": [note | {"netns": each.netns} for each in changed.targets for note in _notes(each)],
    }


def pending_document(pending: Pending, now: float) -> dict[str, Any]:
    """A change that waits for its confirmation, or was interrupted."""
    return {
        "id": pending.id,
        "interrupted": not pending.done,
        "seconds_left": None if pending.deadline is None else round(seconds_left(pending, now), 1),
    }


def notices(pending: Pending | None, last: LastRollback | None, now: float) -> list[str]:
    """What happened, or waits to happen, while nobody looked."""
    lines = []
    if last is not None:
        lines.append(undone(last))
    if pending is None:
        return lines
    left_s = seconds_left(pending, now)
    if pending.done and left_s > 0:
        left = format_duration(math.ceil(left_s))
        lines.append(
            f"change {pending.id} waits: it is put back in {left}, unless you say before: inferlane qos confirm"
        )
    elif pending.done:
        lines.append(
            f"change {pending.id} was not confirmed in time and is being put back; else: inferlane qos rollback"
        )
    elif pending.deadline is None or left_s > 0:
        lines.append(interrupted(pending))
    else:
        lines.append(f"{interrupted(pending)}; its watcher is putting it back")
    return lines


def seconds_left(pending: Pending, now: float) -> float:
    """Until it is put back; 0 where that time has come."""
    return max(0.0, (pending.deadline or now) - now)


def probe_table(netns: str | None, found: Capabilities) -> Table:
    """What one kernel can do."""
    table = Table(title=f"kernel {found.kernel}, {place(netns)}", title_justify="left")
    for column in ("kind", "works", "what the kernel said", "what gives it"):
        table.add_column(column)
    for kind, said in _answers(found):
        option = config_for(kind, said) if said else ""
        table.add_row(kind, "no" if said else "yes", said, f"{option}=m" if option else "")
    table.add_row(
        "priority of each packet",
        "yes" if found.per_packet_priority else "no",
        "",
        _since(found.per_packet_priority, "6.14"),
    )
    if not found.qdiscs.get("fq"):
        table.add_row("bands of fq", "yes" if found.fq_bands else "no", "", _since(found.fq_bands, "6.7"))
    return table


def probe_document(netns: str | None, found: Capabilities) -> dict[str, Any]:
    """The same for programs: "" where a kind works, else what the kernel said."""
    return {
        "netns": netns,
        "kernel": found.kernel,
        "kinds": dict(_answers(found)),
        "per_packet_priority": found.per_packet_priority,
        "fq_bands": found.fq_bands,
    }


def place(netns: str | None) -> str:
    """A namespace in a sentence."""
    return "in this namespace" if netns is None else f"in namespace {netns}"


def _commands(step: Step, target: Target) -> list[str]:
    return tc_commands(step, target.netns, target.programs)


def _answers(found: Capabilities) -> Iterable[tuple[str, str]]:
    yield from found.qdiscs.items()
    yield from found.classifiers.items()
    yield from found.actions.items()
    yield from (("ifb", found.ifb), ("clsact", found.clsact), ("nftables", found.nftables))


def _since(works: bool, version: str) -> str:
    return "" if works else f"Linux {version}"


def _notes(target: Target) -> list[dict[str, str]]:
    return [{"severity": each.severity, "where": each.where, "text": each.text} for each in target.notes]
