# SPDX-License-Identifier: Apache-2.0
"""The gateway and the model server as they ship, each in a process of its own, with generated models."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from typing import Any

import onnxruntime as ort
import pytest

from inferlane.oip import DATATYPES
from tests.fakes import models, programs
from tests.fakes.authority import Certificates, issue
from tests.fakes.programs import GatewayProgram, ModelServerProgram

Directly = Callable[[bytes, Mapping[str, Any]], dict[str, Any]]
OpenGateway = Callable[[str], AbstractContextManager[GatewayProgram]]
StartGateway = Callable[[str], GatewayProgram]

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


@pytest.fixture(scope="session")
def model_server(tmp_path_factory, model_folder) -> Iterator[ModelServerProgram]:
    """`inferlane serve` with every model."""
    with programs.model_server(model_folder, tmp_path_factory.mktemp("serve") / "serve.log") as running:
        yield running


@pytest.fixture(scope="session")
def open_gateway(tmp_path_factory, certificates) -> OpenGateway:
    """`with open_gateway(POOLS) as gateway`: POOLS are YAML lines, or one endpoint for every model."""

    def opened(pools: str) -> AbstractContextManager[GatewayProgram]:
        if pools.startswith("{"):
            pools = f"  - {{name: pool, model: '*', endpoints: [{pools}]}}"
        conf = tmp_path_factory.mktemp("gateway") / "gateway.yaml"
        conf.write_text(CONFIG.format(certificates=certificates, pools=pools))
        return programs.gateway(conf, ca=certificates.ca)

    return opened


@pytest.fixture
def start_gateway(open_gateway) -> Iterator[StartGateway]:
    """Starts gateways that end with the test."""
    with ExitStack() as until_the_end:
        yield lambda pools: until_the_end.enter_context(open_gateway(pools))


@pytest.fixture(scope="session")
def gateway(open_gateway, model_folder) -> Iterator[GatewayProgram]:
    """A gateway that runs every model itself."""
    with open_gateway(onnx_pools(model_folder)) as running:
        yield running


@pytest.fixture(scope="session")
def gateway_by_oip(open_gateway, model_server) -> Iterator[GatewayProgram]:
    """A gateway that asks the model server by HTTP/1.1."""
    with open_gateway(f"{{oip: 'http://{model_server.http}'}}") as running:
        yield running


@pytest.fixture(scope="session")
def gateway_by_datagram(open_gateway, model_server) -> Iterator[GatewayProgram]:
    """A gateway that asks the model server by inference datagram."""
    with open_gateway(f"{{datagram: '{model_server.udp}'}}") as running:
        yield running


@pytest.fixture(scope="session")
def gateway_with_workers(open_gateway, model_folder) -> Iterator[GatewayProgram]:
    """A gateway of two workers, whose models one process runs for both."""
    with open_gateway(f"{onnx_pools(model_folder)}\nworkers: 2") as running:
        yield running
