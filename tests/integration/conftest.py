# SPDX-License-Identifier: Apache-2.0
"""The gateway and the model server as they ship, each in a process of its own, with generated models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from inferlane.oip import DATATYPES
from tests.fakes import models, programs
from tests.fakes.authority import Certificates, issue
from tests.fakes.programs import GatewayProgram, ModelServerProgram

Directly = Callable[[bytes, Mapping[str, Any]], dict[str, Any]]
StartGateway = Callable[..., GatewayProgram]

# Deadlines that a machine with other work to do keeps; ports of the system's choice; loopback may choose classes.
CONFIG = """\
version: 1
classes:
  - {{name: realtime, dscp: EF, deadline: 60s}}
  - {{name: interactive, dscp: AF21, deadline: 60s, default: true}}
trust: {{class_from: [127.0.0.0/8]}}
listeners:
  - name: main
    bind: ["127.0.0.1:0"]
    tls: {{cert: {certificates.cert}, key: {certificates.key}}}
    max_class: realtime
    max_body: 8MiB
admin: {{bind: "127.0.0.1:0"}}
pools:
{pools}
"""


def model_files() -> dict[str, bytes]:
    """Every model that the tests ask, by name."""
    identities = {f"identity-{each.lower()}": models.identity(each, ("rows", "columns")) for each in DATATYPES}
    return {"linear": models.linear(), "doubling": models.doubling(), **identities}


@pytest.fixture(scope="session")
def directly() -> Directly:
    """What onnxruntime itself answers: outputs by name."""

    def run(model: bytes, feeds: Mapping[str, Any]) -> dict[str, Any]:
        session = ort.InferenceSession(model, providers=["CPUExecutionProvider"])
        return dict(zip([each.name for each in session.get_outputs()], session.run(None, feeds), strict=True))

    return run


@pytest.fixture(scope="session")
def certificates(tmp_path_factory) -> Certificates:
    """An authority and a certificate for loopback from it."""
    return issue(tmp_path_factory.mktemp("certificates"))


@pytest.fixture(scope="session")
def model_folder(tmp_path_factory) -> Path:
    """NAME/model.onnx, as `inferlane serve` takes it."""
    folder = tmp_path_factory.mktemp("models")
    for name, model in model_files().items():
        (folder / name).mkdir()
        models.saved(model, folder / name)
    return folder


def onnx_pools(folder: Path) -> str:
    """A pool for each model, run in the gateway; `linear-batched` is `linear` in batches."""
    lines = [
        f"  - {{name: {path.parent.name}, model: {path.parent.name}, endpoints: [{{onnx: {path}}}]}}"
        for path in sorted(folder.glob("*/model.onnx"))
    ]
    batched = f"{{onnx: {folder}/linear/model.onnx, batch: {{max_size: 8, max_wait: 20ms}}}}"
    lines.append(f"  - {{name: linear-batched, model: linear-batched, endpoints: [{batched}]}}")
    return "\n".join(lines)


@pytest.fixture(scope="session")
def gateway(tmp_path_factory, certificates, model_folder) -> Iterator[GatewayProgram]:
    """A gateway that runs every model itself."""
    conf = tmp_path_factory.mktemp("gateway") / "gateway.yaml"
    conf.write_text(CONFIG.format(certificates=certificates, pools=onnx_pools(model_folder)))
    with programs.gateway(conf, ca=certificates.ca) as running:
        yield running


@pytest.fixture(scope="session")
def model_server(tmp_path_factory, model_folder) -> Iterator[ModelServerProgram]:
    """`inferlane serve` with every model."""
    with programs.model_server(model_folder, tmp_path_factory.mktemp("serve") / "serve.log") as running:
        yield running


@pytest.fixture(scope="session")
def gateway_by_oip(tmp_path_factory, certificates, model_server) -> Iterator[GatewayProgram]:
    """A gateway that asks the model server by HTTP/1.1."""
    conf = tmp_path_factory.mktemp("by-oip") / "gateway.yaml"
    pools = f"  - {{name: far, model: '*', endpoints: [{{oip: 'http://{model_server.http}'}}]}}"
    conf.write_text(CONFIG.format(certificates=certificates, pools=pools))
    with programs.gateway(conf, ca=certificates.ca) as running:
        yield running


@pytest.fixture(scope="session")
def gateway_by_datagram(tmp_path_factory, certificates, model_server) -> Iterator[GatewayProgram]:
    """A gateway that asks the model server by inference datagram."""
    conf = tmp_path_factory.mktemp("by-datagram") / "gateway.yaml"
    pools = f"  - {{name: far, model: '*', endpoints: [{{datagram: '{model_server.udp}'}}]}}"
    conf.write_text(CONFIG.format(certificates=certificates, pools=pools))
    with programs.gateway(conf, ca=certificates.ca) as running:
        yield running


@pytest.fixture
def start_gateway(tmp_path, certificates) -> Iterator[StartGateway]:
    """Starts a gateway with these pools, YAML lines; it ends with the test."""
    with ExitStack() as until_the_end:

        def start(pools: str) -> GatewayProgram:
            conf = tmp_path / "gateway.yaml"
            conf.write_text(CONFIG.format(certificates=certificates, pools=pools))
            return until_the_end.enter_context(programs.gateway(conf, ca=certificates.ca))

        yield start
