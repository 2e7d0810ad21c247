# SPDX-License-Identifier: Apache-2.0
"""What a described request would get from a config, and why: told by the code that judges real ones, without I/O."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from typing import Any
from urllib.parse import quote

from backends.choosing.picker import PICKERS
from backends.pool import Pool
from backends.pool_settings import PoolSettings
from backends.routes import Routes
from backends.settings import DatagramSettings, EndpointSettings, OipSettings, OnnxSettings, OpenAiSettings
from inferlane.errors import Refused
from proxy.config.settings import Config, ListenerSettings
from proxy.protocols.oip_http import Head, head, target
from qos.classify import classify
from qos.dscp import dscp_name, parse_dscp
from qos.schema import did_you_mean, shown
from qos.units import format_duration

__all__ = ["ExplainedRequest", "Explanation", "explain"]


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainedRequest:
    """A request as an admin describes it."""

    listener: str | None = None
    """None: the only one."""
    path: str = ""
    """Empty: the inference path of the model."""
    model: str = ""
    """Empty: the one in the path."""
    client: str = "127.0.0.1"
    dscp: str = "DF"
    headers: Sequence[str] = ()
    """`Name: value`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Explanation:
    """What it would get."""

    listener: str
    client: str
    trusted: bool
    """Whether the client may choose a class."""
    path: str
    model: str
    rule: str | None
    """The rule that matched, as the config's errors name it: `rules[0]`."""
    traffic_class: str
    why: str
    dscp: str
    """The mark on the reply's packets."""
    deadline_s: float
    queue_s: float
    """Longest wait in the gateway."""
    pool: str | None
    endpoints: tuple[str, ...]

    def as_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return asdict(self)

    def as_text(self) -> str:
        """For people: a line for each thing."""
        no_pool = f"none serves {shown(self.model)}; the answer is 404" if self.model else "none: no model is asked"
        lines = {
            "listener": self.listener,
            "client": f"{self.client}, {'may' if self.trusted else 'may not'} choose a class",
            "path": self.path or "none",
            "model": self.model or "none",
            "rule": self.rule or "none matches",
            "class": f"{self.traffic_class} ({self.why})",
            "mark": self.dscp,
            "deadline": format_duration(self.deadline_s),
            "queue": f"at most {format_duration(self.queue_s)}",
            "pool": self.pool or no_pool,
            "endpoints": ", ".join(self.endpoints) or "none",
        }
        return "\n".join(f"{word:<10} {text}" for word, text in lines.items())


@dataclass(frozen=True, slots=True, kw_only=True)
class _Facts:
    """The request as `qos.classify` wants it."""

    listener: str
    path: str
    model: str
    client: str
    dscp: int
    asked_class: str | None
    urgency: int | None


def explain(config: Config, request: ExplainedRequest) -> Explanation:
    """The class, the mark, the time and the place that the request would get. ValueError: it is not described well."""
    steering = _steering(request.headers)
    model = request.model or _model(request.path)
    facts = _Facts(
        listener=_listener(config, request.listener).name,
        path=request.path or _inference_path(config.pools, model),
        model=model,
        client=_address(request.client),
        dscp=parse_dscp(request.dscp),
        asked_class=steering.asked_class,
        urgency=steering.urgency,
    )
    verdict = classify(facts, config.policy())
    given = verdict.traffic_class
    pool = _pool(config.pools, model)
    deadline_s = given.deadline_s if steering.timeout_s is None else min(given.deadline_s, steering.timeout_s)
    return Explanation(
        listener=facts.listener,
        client=facts.client,
        trusted=verdict.trusted,
        path=facts.path,
        model=model,
        rule=None if verdict.rule is None else f"rules[{verdict.rule}]",
        traffic_class=given.name,
        why=verdict.why,
        dscp=dscp_name(given.dscp),
        deadline_s=deadline_s,
        queue_s=min(given.queue_s, deadline_s),
        pool=pool.name if pool else None,
        endpoints=tuple(map(_endpoint, pool.endpoints)) if pool else (),
    )


def _listener(config: Config, name: str | None) -> ListenerSettings:
    names = [each.name for each in config.listeners]
    if name is None and len(names) == 1:
        return config.listeners[0]
    if name is None:
        raise ValueError(f"which listener? the config has {', '.join(names)}")
    if name not in names:
        raise ValueError(
            f"no listener is named {shown(name)}{did_you_mean(name, names)}; the config has {', '.join(names)}"
        )
    return config.listeners[names.index(name)]


def _address(text: str) -> str:
    try:
        return str(ip_address(text))
    except ValueError:
        raise ValueError(f"{shown(text)} is not an IP address; write 10.20.0.5 or fd00:20::5") from None


def _steering(headers: Sequence[str]) -> Head:
    fields = []
    for header in headers:
        name, colon, value = header.partition(":")
        if not colon or not name.strip():
            raise ValueError(f"{shown(header)} is not a header; write 'Name: value'")
        fields.append((name.strip().lower().encode(), value.strip().encode()))
    try:
        return head(tuple(fields))
    except Refused as refusal:
        raise ValueError(f"the gateway would refuse this request: {refusal.detail}") from None


def _model(path: str) -> str:
    """The model in an Open Inference Protocol path; "" in any other."""
    if not path.isascii():
        raise ValueError(f"the path {shown(path)} is not ASCII; percent-encode it as it goes over the wire")
    for method in (b"POST", b"GET"):
        try:
            return target(method, path.encode()).model
        except Refused:
            continue  # not by this method, or no path of the protocol
    return ""


def _inference_path(pools: Sequence[PoolSettings], model: str) -> str:
    """What a client would ask for this model."""
    pool = _pool(pools, model)
    if pool is not None and any(isinstance(each, OpenAiSettings) for each in pool.endpoints):
        return "/v1/chat/completions"
    return f"/v2/models/{quote(model, safe='')}/infer" if model else ""


def _pool(pools: Sequence[PoolSettings], model: str) -> PoolSettings | None:
    # Pools without endpoints, so that the gateway's own routes decide and nothing is connected.
    routes = Routes((Pool(each.name, (), PICKERS[each.pick]), each.model) for each in pools)
    found = routes.pool_for(model) if model else None
    return next((each for each in pools if found is not None and each.name == found.name), None)


def _endpoint(endpoint: EndpointSettings) -> str:
    match endpoint:
        case OnnxSettings():
            where = f"onnx {endpoint.onnx} on {', '.join(endpoint.providers)}"
        case DatagramSettings():
            where = f"datagram {endpoint.datagram}"
        case OpenAiSettings():
            where = f"openai {endpoint.openai}"
        case OipSettings():
            where = f"oip {endpoint.oip}"
    return where if endpoint.zone is None else f"{where} in zone {endpoint.zone}"
