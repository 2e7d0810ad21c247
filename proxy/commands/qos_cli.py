# SPDX-License-Identifier: Apache-2.0
"""The commands `inferlane qos ...`: traffic control planned, made, confirmed, undone, watched.

Exit codes as everywhere, and 3 where `plan` finds changes to make. What happened while nobody looked, such as a change
that its watcher put back, is told on stderr by every command until the next change stands.
"""

from __future__ import annotations

import time
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperCommand

from proxy.commands.terminal import (
    FAILED,
    MISUSED,
    PENDING,
    AsJson,
    Conf,
    StateDir,
    expecting,
    load_config,
    print_json,
    print_parts,
    state_folder,
    terminable,
    warn,
)

if TYPE_CHECKING:
    from proxy.commands.qos_status import Reading
    from qos.tc.change.plan_file import Planned
    from qos.tc.change.scope import Target
    from qos.tc.change.site import Site
    from qos.tc.policy import LinkPolicy

__all__ = ["app", "with_time"]

app = typer.Typer(
    name="qos",
    help="Traffic control on this machine: what each class is promised on a link, made in the kernel.",
    no_args_is_help=True,
)

_LARGEST_PLAN = 256 * 2**20
MaybeConf = Annotated[Path | None, typer.Argument(metavar="[CONF]", help="The gateway's YAML file.")]


class _OptionalTime(TyperCommand):
    """`--confirm` alone is `--confirm` with the config's time."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        return super().parse_args(ctx, with_time(args))


def with_time(arguments: list[str]) -> list[str]:
    """The arguments with an empty time behind a `--confirm` that has none."""
    filled: list[str] = []
    for place, argument in enumerate(arguments):
        filled.append(argument)
        following = arguments[place + 1 : place + 2]
        # A time begins with its number; a file of such a name can be written ./5.yaml.
        if argument == "--confirm" and not (following and following[0][:1].isdecimal()):
            filled.append("")
    return filled


@app.command()
def probe(conf: MaybeConf = None, as_json: AsJson = False) -> None:
    """Tell what this kernel can do, in each namespace that the config names; a throw-away IFB is tried on."""
    names = [None] if conf is None else list(dict.fromkeys(each.netns for each in _policy(conf).interfaces))
    from proxy.commands import qos_report
    from qos.tc.kernel.probe import probe as probed

    with _telling():
        found = [(each, probed(each)) for each in names]
    if as_json:
        print_json([qos_report.probe_document(*each) for each in found])
    else:
        print_parts(*(qos_report.probe_table(*each) for each in found))


@app.command()
def plan(
    conf: Conf,
    out: Annotated[Path | None, typer.Option(metavar="FILE", help="Keep it there, for `qos apply FILE`.")] = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show what `apply` would do: each step, the tc command that does the same, the packets it can lose."""
    policy = _policy(conf)
    from proxy.commands import qos_report
    from qos.tc.change import making

    site = _site(state_dir)
    with _telling():
        _notice(site)
        targets = making.survey(site, policy)
        if out is not None:
            _write(out, _planned(site, conf, policy, targets))
    if as_json:
        print_json(qos_report.plan_document(targets))
    else:
        apply_with = f"inferlane qos apply {out or conf} --confirm"
        typer.echo(qos_report.plan_text(targets, apply_with=apply_with))
    if any(each.steps for each in targets):
        raise typer.Exit(PENDING)


@app.command(cls=_OptionalTime)
def apply(
    plan_or_conf: Annotated[Path, typer.Argument(metavar="CONF|PLAN", help="A config, or a file of `plan --out`.")],
    confirm: Annotated[
        str | None,
        typer.Option(
            metavar="[TIME]", help="Put it back after this time unless `confirm` comes; without one: safety.confirm."
        ),
    ] = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Make the kernel keep the config's promises: all of them or, where one step fails, none."""
    planned, policy = _given(plan_or_conf)
    from proxy.commands import qos_report
    from qos.tc.change import making

    with expecting(ValueError, code=MISUSED):
        confirm_s = policy.safety.confirm_s if confirm == "" else _seconds(confirm)
    site = _site(state_dir)
    with _telling():
        _tell_undone(site)
        changed = making.apply(site, policy, confirm_s=confirm_s, planned=planned)
    if as_json:
        print_json(qos_report.changed_document(changed, site.boot_clock()))
    else:
        typer.echo(qos_report.changed_text(changed, site.boot_clock()))


@app.command()
def confirm(state_dir: StateDir = None) -> None:
    """Keep the change that waits for it."""
    from qos.tc.change import making

    with _telling():
        kept = making.confirm(_site(state_dir))
    typer.echo(f"change {kept.id} is confirmed; it stands after a restart, too")


@app.command()
def rollback(state_dir: StateDir = None) -> None:
    """Undo the change that waits or was interrupted; else go back to the policy before the confirmed one."""
    from qos.tc.change import making

    with _telling():
        typer.echo(making.roll_back(_site(state_dir)))


@app.command()
def release(conf: MaybeConf = None, state_dir: StateDir = None) -> None:
    """Remove all that was made here and nothing else. CONF: where the state directory is lost."""
    policy = None if conf is None else _policy(conf)
    from qos.tc.change import making

    with _telling():
        steps = making.release(_site(state_dir), policy)
    if steps is None:
        typer.echo("nothing is known to have been made here; if the state was lost, name the config: release CONF")
    else:
        typer.echo(f"all that was made is removed, in {steps} steps" if steps else "nothing of ours was there")


@app.command()
def status(
    conf: MaybeConf = None,
    over: Annotated[str, typer.Option(metavar="TIME", help="Between the two readings that a rate is made of.")] = "1s",
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Show what passes each class beside what it was promised, and what differs; default: the policy that stands."""
    given = None if conf is None else _policy(conf)
    from proxy.commands import qos_report, qos_status
    from qos.tc.change import making

    over_s = _over(over)
    site = _site(state_dir)
    with _telling():
        books = site.books()
        _notice(site)
        stands = books.pending or books.confirmed
        policy = given if given is not None or stands is None else stands.policy
        targets = [] if policy is None else making.survey(site, policy)
        readings = _readings(site, targets, over_s)
    if policy is None:
        found = []
    else:
        found = [qos_status.rows(each, policy, its, over_s) for each, its in zip(targets, readings, strict=True)]
    if as_json:
        document = qos_status.status_document(targets, [row for rows in found for row in rows])
        waiting = None if books.pending is None else qos_report.pending_document(books.pending, site.boot_clock())
        print_json(document | {"confirmed": books.confirmed_id, "pending": waiting})
    elif policy is None:
        typer.echo("no policy stands: `inferlane qos apply CONF` makes one")
    else:
        typer.echo(f"policy of {conf}" if stands is None or given else f"policy {stands.id}")
        for target, its in zip(targets, found, strict=True):
            print_parts(*qos_status.link_tables(target, its))


@app.command()
def selftest(
    conf: MaybeConf = None,
    flood: Annotated[str, typer.Option(metavar="KIND", help="udp, train (UDP in trains, GSO) or tcp.")] = "udp",
    as_json: AsJson = False,
) -> None:
    """Prove on this kernel that the classes hold: a link of its own in namespaces, full, with and without a plan."""
    from proxy.commands import qos_selftest
    from qos.selftest.lab import LabError
    from qos.selftest.trial import KINDS, TrialError, try_classes
    from qos.tc.policy import built_in_policy

    if flood not in KINDS:
        warn(f"inferlane: {flood!r} is no flood; allowed: {', '.join(KINDS)}")
        raise typer.Exit(MISUSED)
    policy = built_in_policy() if conf is None else _policy(conf)
    with _telling(), expecting(LabError, TrialError, code=FAILED), terminable():
        trial = try_classes(policy, kind=flood, tell=warn)
    if as_json:
        print_json(qos_selftest.document(trial))
    else:
        print_parts(qos_selftest.table(trial), *qos_selftest.verdict_lines(trial))
    if not trial.verdict.holds:
        raise typer.Exit(FAILED)


def _policy(conf: Path) -> LinkPolicy:
    config = load_config(conf)
    if not config.interfaces:
        warn(f"{conf} names no interfaces: there is nothing to shape")
    return config.link_policy()


def _given(path: Path) -> tuple[Planned | None, LinkPolicy]:
    """A plan that was kept, and still is what its config asks; or a config."""
    from qos.tc.change.plan_file import PlanFileError, planned_of

    planned = None
    with expecting(OSError, PlanFileError, code=MISUSED), path.open("rb") as opened:
        planned = planned_of(opened.read(_LARGEST_PLAN), str(path))
    if planned is None:
        return None, _policy(path)
    if _policy(Path(planned.conf)).digest != planned.policy.digest:
        warn(f"{planned.conf} changed since this plan was made; look at a new one: {planned.remedy}")
        raise typer.Exit(FAILED)
    return planned, planned.policy


def _planned(site: Site, conf: Path, policy: LinkPolicy, targets: list[Target]) -> bytes:
    from qos.tc.change.plan_file import Planned, seen
    from qos.tc.reconcile.commands import describe

    return Planned(
        conf=str(conf.absolute()),
        policy=policy,
        confirmed=site.books().confirmed_id,
        seen=tuple(seen(each.observed, each.desired) for each in targets),
        steps=tuple(describe(step, each.labels) for each in targets for step in each.steps),
    ).encoded()


def _write(file: Path, content: bytes) -> None:
    with expecting(OSError, code=FAILED):
        file.write_bytes(content)


def _seconds(text: str | None) -> float | None:
    from qos.units import parse_duration

    if text is None:
        return None
    seconds = parse_duration(text)
    if not 5 <= seconds <= 24 * 3600:
        raise ValueError(f"--confirm {text}: a time to confirm is at least 5s and at most 1440m")
    return seconds


def _site(state_dir: Path | None) -> Site:
    from qos.tc.change.ledger import Ledger
    from qos.tc.change.lock import lock_file, lock_folder
    from qos.tc.change.site import Site
    from qos.tc.change.watcher import arm

    ledger = Ledger(state_folder(state_dir).absolute() / "qos")
    locks = lock_folder(ledger.folder)
    return Site(ledger=ledger, lock_of=partial(lock_file, folder=locks), arm=partial(arm, ledger, locks=locks))


def _telling() -> AbstractContextManager[None]:
    """What can go wrong here, told in a line or, where a policy cannot be kept, a line for each reason."""
    from qos.tc.change.ledger import LedgerError
    from qos.tc.change.lock import LockError
    from qos.tc.change.plan_file import PlanFileError
    from qos.tc.change.site import ChangeError
    from qos.tc.change.watcher import ArmError
    from qos.tc.design.compile import CannotKeepError
    from qos.tc.errors import KernelError

    expected = (ArmError, CannotKeepError, ChangeError, KernelError, LedgerError, LockError, PlanFileError)
    return expecting(*expected, code=FAILED)


def _notice(site: Site) -> None:
    from proxy.commands.qos_report import notices
    from qos.tc.change.ledger import LastRollback

    for line in notices(site.books().pending, site.ledger.read(LastRollback), site.boot_clock()):
        warn(line)


def _tell_undone(site: Site) -> None:
    from qos.tc.change.ledger import LastRollback
    from qos.tc.change.making import undone

    if (last := site.ledger.read(LastRollback)) is not None:
        warn(undone(last))


def _over(text: str) -> float:
    from qos.units import parse_duration

    with expecting(ValueError, code=MISUSED):
        return min(60.0, max(0.01, parse_duration(text)))


def _readings(site: Site, targets: list[Target], over_s: float) -> list[tuple[Reading, Reading]]:
    """Two of each, that long apart."""
    before = [_counters(site, each) for each in targets]
    time.sleep(over_s if targets else 0)
    return list(zip(before, [_counters(site, each) for each in targets], strict=True))


def _counters(site: Site, target: Target) -> Reading:
    with site.open_kernel(target.netns) as kernel:
        present = kernel.facts()
        return {each.name: kernel.counters(each.name) for each in target.desired.links if each.name in present}
