# SPDX-License-Identifier: Apache-2.0
"""What a broken promise means and what to change, in words that name the key of the config. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from inferlane.errors import Reason
from qos.promise import HURRIED, REFUSED, Breach, Part, Promise, Refusals
from qos.units import format_duration

__all__ = ["advice"]

_LEAST_BREACH = 0.1  # of those that missed: a smaller part of them would not mend the promise


def advice(promise: Promise) -> list[str]:
    """Sentences: how it stands, then for each thing that breaks it what it is and what to do."""
    words = [_verdict(promise)] if promise.kept or promise.missed or promise.refused else []
    if not promise.holds:
        words.extend(_about(promise, each) for each in promise.breaches if each.share >= _LEAST_BREACH)
        words.extend(_why_refused(promise))
    words.extend(_hurried(promise, each) for each in promise.refusals if each.reason == HURRIED)
    return words


def _verdict(promise: Promise) -> str:
    all_of_them = promise.kept + promise.missed + promise.refused
    who = f"{promise.traffic_class} in pool {promise.pool}" if promise.pool else f"{promise.traffic_class}, in no pool,"
    verb = "keeps" if promise.holds else "breaks"
    text = f"{who} {verb} its {format_duration(promise.deadline_s)}: {promise.kept} of {all_of_them} requests in time"
    if promise.missed:
        text += f", {promise.missed} missed it ({promise.missed / all_of_them:.1%})"
    if promise.refused:
        text += f", {promise.refused} refused ({promise.refused / all_of_them:.1%})"
    if promise.parts:
        longest = max(promise.parts, key=lambda part: promise.parts[part].share)
        told = promise.parts[longest]
        text += f"; {told.share:.0%} of the time is {_NAMES[longest]}, {_time(told.median_s)} in the median"
    return f"{text}."


def _about(promise: Promise, breach: Breach) -> str:
    usual = "" if not 0 < breach.usual_s < 0.8 * breach.median_s else f" instead of {_time(breach.usual_s)}"
    took = f"{_NAMES[breach.part]} took {_time(breach.median_s)}{usual}"
    if breach.part is Part.BACKEND and Part.COMPUTE not in promise.parts:
        remedy = _SILENT_BACKEND
    else:
        remedy = _REMEDIES[breach.part]
    return f"{breach.share:.0%} of those that missed did so because {took}: {_filled(remedy, promise)}."


def _why_refused(promise: Promise) -> Iterator[str]:
    for each in promise.refusals:
        if each.reason in REFUSED:
            yield f"{each.count} refused with {each.reason}: {_filled(_REFUSALS[each.reason], promise)}."


def _hurried(promise: Promise, refusals: Refusals) -> str:
    deadline = format_duration(promise.deadline_s)
    return (
        f"{refusals.count} missed a deadline that their client had set, shorter than the {deadline} of class "
        f"{promise.traffic_class}: raise the client's timeout, or give such requests a class with a shorter deadline."
    )


def _filled(text: str, promise: Promise) -> str:
    return text.format(cls=f"classes[{promise.traffic_class}]", pool=f"pools[{promise.pool}]")


def _time(seconds: float) -> str:
    if seconds >= 1:
        return f"{seconds:.3g} s"
    return f"{seconds * 1e3:.3g} ms" if seconds >= 1e-3 else f"{seconds * 1e6:.0f} us"


_NAMES = {
    Part.NETWORK: "the client's round trip",
    Part.UPLOAD: "the request's way here",
    Part.QUEUE: "waiting here for a place",
    Part.BACKEND: "the backend and the way to it",
    Part.BACKEND_QUEUE: "waiting inside the backend",
    Part.COMPUTE: "the model's own computing",
    Part.DOWNLOAD: "the reply's way back",
}
_REMEDIES = {
    Part.NETWORK: "these clients are too far away; answer them nearer, or raise {cls}.deadline",
    Part.UPLOAD: "bodies come slowly; send binary tensors or smaller inputs, see `inferlane qos status` for what "
    "else is on the link, or raise {cls}.deadline",
    Part.QUEUE: "add endpoints to {pool}.endpoints or raise their slots if they can run more at once; if other "
    "classes hold the places, raise {cls}.gate.share",
    Part.BACKEND: "neither its queue nor its model, so its connections, network or serialisation; look at the "
    "endpoints with `inferlane endpoints`, keep them near, or raise {cls}.deadline",
    Part.BACKEND_QUEUE: "the backend takes more than it runs at once; lower the slots in {pool}.endpoints (or say "
    "`slots: adaptive`), so that requests wait here, in the order of their classes",
    Part.COMPUTE: "the model is too slow for this promise; use a faster provider or a smaller model, lower "
    "batch.max_wait and batch.max_size in {pool}.endpoints, or raise {cls}.deadline",
    Part.DOWNLOAD: "replies leave slowly; raise {cls}.link.share, raise link.police of the class on whose connection "
    "it rides, or look at the link with `inferlane qos status`",
}
_SILENT_BACKEND = (
    "it does not say how long its model takes, so queue and model are in this; lower the slots in {pool}.endpoints (or "
    "say `slots: adaptive`) if it queues, add endpoints or make the model faster if it does not"
)
_REFUSALS = {
    Reason.QUEUE_FULL.label: "as many wait already as {cls}.gate.requests and {cls}.gate.bytes allow; add endpoints to "
    "{pool}.endpoints or raise their slots, and raise these bounds only if longer waiting is still in time",
    Reason.EVICTED.label: "a higher class needed the place; add endpoints to {pool}.endpoints or raise their slots, "
    "raise {cls}.gate.share, or say {cls}.sheddable: false if it is served and then ended",
    Reason.NO_ENDPOINT.label: "no endpoint of {pool} was ready; see `inferlane endpoints` and the log for why, and "
    "{pool}.health for when they are left out",
    Reason.BACKEND_FAILED.label: "endpoints of {pool} failed; see their `detail` in the log lines with "
    "reason=backend_failed, and {pool}.retry for trying another",
    Reason.STALLED.label: "token streams stood still for longer than {cls}.stream.stall; look at the endpoints of "
    "{pool}, and at clients that do not read",
    Reason.DRAINING.label: "they came while the gateway was shutting down; let clients connect again at once",
    Reason.INTERNAL.label: "a fault in the gateway; its log has the trace under walk_failed",
}
