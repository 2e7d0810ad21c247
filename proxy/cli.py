# SPDX-License-Identifier: Apache-2.0
"""The command `inferlane`: each subcommand a thin function over the module that does the work.

Exit codes: 0 done, 1 failed, 2 bad usage or config. Expected errors are told on stderr, a line each. What a command
needs is imported inside it, so that `--help` is quick and `check` loads neither models nor sockets.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from proxy.commands import control_cli, diagnose_cli, qos_cli, upgrade_cli
from proxy.commands.terminal import (
    FAILED,
    MISUSED,
    AsJson,
    Conf,
    StateDir,
    expecting,
    load_config,
    print_json,
    print_parts,
    read_config,
    state_folder,
)

if TYPE_CHECKING:
    from inferlane.messages import Reply
    from proxy.commands.explain import Explanation

__all__ = ["app", "main"]

app = typer.Typer(
    name="inferlane",
    help="A QoS-aware proxy for inference traffic: each traffic class keeps its promise in every queue.",
    add_completion=False,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.add_typer(qos_cli.app)
diagnose_cli.register(app)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; its exit code."""
    try:
        return int(app(arguments, prog_name="inferlane", standalone_mode=False) or 0)
    except typer.TyperException as error:
        if message := error.format_message():  # else: no command was given, and the help is printed
            typer.echo(f"inferlane: {message}", err=True)
        return error.exit_code


def _tell_version(wanted: bool) -> None:
    if wanted:
        from importlib.metadata import version

        typer.echo(f"inferlane {version('inferlane-gateway')}")
        raise typer.Exit


@app.callback()
def everywhere(
    _: Annotated[
        bool, typer.Option("--version", callback=_tell_version, is_eager=True, help="Print the version and leave.")
    ] = False,
) -> None:
    """Options before any command."""


@app.command()
def run(conf: Conf, state_dir: StateDir = None) -> None:
    """Run the gateway in the foreground; SIGHUP reloads its config, SIGUSR2 upgrades it, SIGTERM drains it."""
    config, text = read_config(conf)
    import asyncio

    from backends.errors import BackendError
    from proxy.supervise import supervisor
    from proxy.supervise.worker_process import WorkerFailedError

    with expecting(BackendError, WorkerFailedError, OSError, code=MISUSED):
        asyncio.run(supervisor.run(config, text=text, conf=conf, state_dir=state_folder(state_dir)))


@app.command()
def check(conf: Conf) -> None:
    """Validate a config; print all its errors and warnings with file, line and column."""
    load_config(conf, tell_warnings=True)
    typer.echo(f"{conf}: ok")


@app.command()
def explain(
    conf: Conf,
    listener: Annotated[str | None, typer.Option(help="The listener it comes to; default: the only one.")] = None,
    path: Annotated[str, typer.Option(help="Its path; default: the model's inference path.")] = "",
    model: Annotated[str, typer.Option(help="The model it asks; default: the one in the path.")] = "",
    client: Annotated[
        str | None, typer.Option("--from", metavar="ADDR", help="The client's IP address; default: 127.0.0.1.")
    ] = None,
    dscp: Annotated[str, typer.Option(help="The DSCP it arrives with.")] = "DF",
    header: Annotated[list[str] | None, typer.Option(metavar="'NAME: VALUE'", help="A header; any number.")] = None,
    interface: Annotated[str | None, typer.Option(help="A packet's way out; default: every interface.")] = None,
    to: Annotated[str | None, typer.Option(metavar="ADDR", help="Where a packet goes to.")] = None,
    proto: Annotated[str | None, typer.Option(help="A packet's protocol: tcp or udp.")] = None,
    sport: Annotated[int | None, typer.Option(min=1, max=65535, help="A packet's source port.")] = None,
    dport: Annotated[int | None, typer.Option(min=1, max=65535, help="A packet's destination port.")] = None,
    as_json: AsJson = False,
) -> None:
    """Tell which class, mark, pool and endpoints a described request would get, and why; or, of a packet, which queue.

    It is a packet where one of --interface, --to, --proto, --sport and --dport is given.
    """
    config = load_config(conf)
    from proxy.commands.explain import ExplainedRequest
    from proxy.commands.explain import explain as explained
    from proxy.commands.explain_packet import ExplainedPacket, PacketExplanation, explain_described_packet

    explanation: Explanation | PacketExplanation
    with expecting(ValueError, code=MISUSED):
        if any(each is not None for each in (interface, to, proto, sport, dport)):
            packet = ExplainedPacket(
                interface=interface, src=client, dst=to, proto=proto, sport=sport, dport=dport, dscp=dscp
            )
            if listener or path or model or header:
                raise ValueError(
                    "this describes a packet and a request; leave out --listener, --path, --model, --header"
                )
            explanation = explain_described_packet(config, packet)
        else:
            request = ExplainedRequest(
                listener=listener,
                path=path,
                model=model,
                client=client or "127.0.0.1",
                dscp=dscp,
                headers=tuple(header or ()),
            )
            explanation = explained(config, request)
    if as_json:
        print_json(explanation.as_dict())
    else:
        typer.echo(explanation.as_text())


@app.command()
def infer(
    url: Annotated[str, typer.Argument(metavar="URL", help="https://, quic://, quic+datagram:// or udp://HOST:PORT")],
    model: Annotated[str, typer.Argument(metavar="MODEL", help="The model's name.")],
    given: Annotated[list[str], typer.Option("--input", metavar="NAME=FILE.npy", help="A tensor; any number.")],
    output: Annotated[Path | None, typer.Option(metavar="DIR", help="Write each output there as NAME.npy.")] = None,
    traffic_class: Annotated[str | None, typer.Option("--class", metavar="CLASS", help="The class to ask for.")] = None,
    timeout: Annotated[str | None, typer.Option(metavar="TIME", help="For everything: 50ms, 2s.")] = None,
    ca: Annotated[Path | None, typer.Option(metavar="FILE", help="The authority of its certificate, PEM.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Accept any certificate.")] = False,
    model_version: Annotated[str, typer.Option("--version", metavar="VERSION", help="The model's version.")] = "",
    as_json: AsJson = False,
) -> None:
    """Send one request as an application would."""
    import asyncio

    from inferlane.client import Client
    from inferlane.errors import InferlaneError
    from proxy.commands import replies
    from proxy.commands.arrays import ArrayError, read_inputs, write_outputs
    from qos.units import parse_duration

    with expecting(ArrayError, ValueError, OSError, code=MISUSED):
        inputs = read_inputs(given)
        timeout_s = None if timeout is None else parse_duration(timeout)
        client = Client(url, ca=ca, insecure=insecure)

    async def ask() -> Reply:
        async with client:
            return await client.infer(model, inputs, cls=traffic_class, timeout=timeout_s, version=model_version)

    with expecting(InferlaneError, code=FAILED), expecting(ValueError, code=MISUSED):
        reply = asyncio.run(ask())
    with expecting(ArrayError, code=FAILED):
        files = {} if output is None else write_outputs(reply.outputs, output)
    if reply.served_class and traffic_class not in (None, reply.served_class):
        typer.echo(f"inferlane: asked for class {traffic_class}, served in {reply.served_class}", err=True)
    if as_json:
        print_json(replies.document(reply, files))
    else:
        print_parts(replies.summary(reply), replies.table(reply, files))


@app.command()
def serve(
    models: Annotated[Path, typer.Argument(metavar="MODELS", help="A folder of NAME/model.onnx, or one .onnx file.")],
    http: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where HTTP/1.1 answers.")] = "127.0.0.1:8000",
    udp: Annotated[str, typer.Option(metavar="HOST:PORT", help="Where datagrams answer.")] = "127.0.0.1:4434",
    socket: Annotated[Path | None, typer.Option(metavar="PATH", help="A Unix socket for HTTP/1.1, too.")] = None,
    provider: Annotated[list[str] | None, typer.Option(help="cpu, cuda or tensorrt, in order; default: cpu.")] = None,
    max_batch: Annotated[int, typer.Option(min=1, max=4096, help="Most rows run as one.")] = 1,
    max_wait: Annotated[str, typer.Option(metavar="TIME", help="How long a row waits for others.")] = "0ms",
) -> None:
    """Serve ONNX models on this machine: makes it a backend."""
    import uvloop

    from backends.errors import BackendError
    from backends.settings import BatchSettings
    from proxy.config.settings import Bind
    from proxy.serve import run as serve_models
    from qos.units import parse_duration

    with expecting(BackendError, OSError, ValueError, code=MISUSED):
        parse_duration(max_wait)  # the settings' own complaint has more lines than one
        serving = serve_models(
            models,
            http=Bind.parse(http),
            udp=Bind.parse(udp),
            socket=socket,
            providers=tuple(provider or ("cpu",)),
            batch=BatchSettings.model_validate({"max_size": max_batch, "max_wait": max_wait}),
        )
        uvloop.run(serving)


@app.command()
def demo(as_json: AsJson = False) -> None:
    """Start a gateway here, ask it about real files over every transport, print the answers and their latency."""
    import asyncio

    from proxy.demo import showing as shown
    from proxy.demo.model import DemoError

    config = load_config(shown.CONF)
    with expecting(DemoError, code=FAILED):
        rows = asyncio.run(shown.demo(config))
    if as_json:
        print_json(shown.document(rows))
    else:
        print_parts(shown.table(rows))
    if not all(row.timings for row in rows):
        raise typer.Exit(FAILED)


@app.command()
def cert(
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where to write; default: the state.")] = None,
    state_dir: StateDir = None,
    as_json: AsJson = False,
) -> None:
    """Make a development certificate for localhost, 127.0.0.1 and ::1, unless a good one is there."""
    from proxy.certificate import CertificateError, development_certificate

    with expecting(CertificateError, code=MISUSED):
        certificate, key = development_certificate(state_folder(state_dir) if out is None else out)
        if as_json:
            print_json({"certificate": str(certificate), "key": str(key)})
        else:
            typer.echo(f"certificate  {certificate}\nkey          {key}")


# Behind the commands above, as the help lists them.
control_cli.register(app)
upgrade_cli.register(app)
