# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading

import numpy as np
import pytest

from inferlane import oip
from inferlane.errors import Reason
from inferlane.wire import Type
from proxy.cli import main
from tests.fakes.udp_gateway import udp_gateway

CONFIG = """\
version: 1
listeners: [{name: main, bind: ["127.0.0.1:0"], accept: [udp], max_class: realtime}]
pools: [{name: magika, model: magika, endpoints: [{oip: "http://127.0.0.1:9"}]}]
trust: {class_from: [127.0.0.0/8]}
admin: {bind: "127.0.0.1:0"}
"""


@pytest.fixture
def conf(tmp_path):
    file = tmp_path / "gateway.yaml"
    file.write_text(CONFIG)
    return file


@pytest.fixture
def tensor(tmp_path):
    file = tmp_path / "x.npy"
    np.save(file, np.zeros((1, 4), dtype=np.int32))
    return f"x={file}"


@pytest.fixture
def gateway():
    """A gateway in a thread of its own that knows one model."""
    ready, done, found = threading.Event(), asyncio.Event(), []
    outputs = {"y": np.array([1.5, 2.5]), "text": np.array([b"hello"], dtype=object)}
    body, json_length = oip.encode_reply("magika", "1", outputs, binary=True)

    def answer(heard):
        if heard.header.model != "magika":
            problem = b'{"detail": "no model is named so"}'
            heard.send(type=Type.ERROR, status=404, reason=Reason.UNKNOWN_MODEL.code, body=problem)
        else:
            served = {"class_name": heard.header.class_name, "dscp": heard.ds_field >> 2, "queue_us": 1500}
            heard.send(type=Type.REPLY, status=200, body=body, json_length=json_length, **served)

    async def serve():
        with udp_gateway(answer) as one:
            found.extend([one, asyncio.get_running_loop()])
            ready.set()
            await done.wait()

    thread = threading.Thread(target=asyncio.run, args=[serve()])
    thread.start()
    ready.wait()
    yield f"udp://127.0.0.1:{found[0].port}"
    found[1].call_soon_threadsafe(done.set)
    thread.join()


def python_m_proxy(*arguments):
    command = [sys.executable, "-m", "proxy", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_module_is_the_command(conf):
    done = python_m_proxy("check", conf)

    assert (done.returncode, done.stdout, done.stderr) == (0, f"{conf}: ok\n", "")


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], []])
def test_help_and_version_load_nothing_heavy(arguments):
    program = f"import sys, proxy.cli; proxy.cli.main({arguments!r}); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert "inferlane" in done.stdout
    loaded = set(done.stderr.split())
    assert not {"numpy", "pydantic", "aioquic", "aiohttp", "onnxruntime", "asyncio", "uvloop"} & loaded


def test_help_lists_every_command(capsys):
    assert main(["--help"]) == 0

    out = capsys.readouterr().out
    assert all(f" {name} " in out for name in ("run", "check", "explain", "infer", "serve", "demo", "cert"))


@pytest.mark.parametrize("command", ["run", "check", "explain", "infer", "serve", "demo", "cert"])
def test_every_command_has_help(capsys, command):
    assert main([command, "--help"]) == 0
    assert f"Usage: inferlane {command}" in capsys.readouterr().out


def test_no_command_is_bad_usage_and_shows_the_help(capsys):
    assert main([]) == 2

    out, err = capsys.readouterr()
    assert "Usage: inferlane" in out
    assert err == ""


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["chek"], "No such command 'chek'"),
        (["check"], "Missing argument 'CONF'"),
        (["check", "a", "b"], "unexpected extra argument"),
        (["run", "--nope"], "No such option"),
        (["infer", "udp://127.0.0.1", "m"], "Missing option '--input'"),
    ],
)
def test_bad_usage_is_one_line(capsys, arguments, complaint):
    assert main(arguments) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("inferlane: ") and complaint in err
    assert err.count("\n") == 1


def test_checking_a_config_loads_neither_models_nor_sockets(conf):
    program = f"import sys, proxy.cli; proxy.cli.main(['check', {str(conf)!r}]); print(*sys.modules, file=sys.stderr)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, check=True)

    assert not {"onnxruntime", "aioquic", "uvloop", "numpy", "pyroute2"} & set(done.stderr.split())


@pytest.mark.parametrize("command", ["check", "run", "explain"])
def test_a_wrong_config_is_a_line_for_each_error(capsys, conf, command):
    conf.write_text(CONFIG.replace("accept: [udp]", "accept: [upd]").replace("class_from", "class_form"))

    assert main([command, str(conf)]) == 2

    out, err = capsys.readouterr()
    assert out == ""
    assert [line.rpartition(f"{conf}:")[2].split(":")[0] for line in err.splitlines()] == ["2", "4"]


def test_a_missing_config_is_one_line(capsys, tmp_path):
    assert main(["check", str(tmp_path / "none.yaml")]) == 2
    assert capsys.readouterr().err == f"{tmp_path}/none.yaml:1:1: cannot be read: No such file or directory\n"


def test_a_gateway_runs_until_it_is_told_to_drain(conf):
    command = [sys.executable, "-m", "proxy", "run", str(conf)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as running:
        while "admin_listening" not in running.stdout.readline():
            assert running.poll() is None
        running.send_signal(signal.SIGTERM)
        rest = running.stdout.read()

    assert running.returncode == 0
    assert "drained" in rest


def test_a_taken_port_is_one_line(conf):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        conf.write_text(CONFIG.replace("127.0.0.1:0", f"127.0.0.1:{port}", 1))

        done = python_m_proxy("run", conf)

    assert done.returncode == 2
    assert str(port) in done.stderr and done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("replaced", "complaint"),
    [
        (('{oip: "http://127.0.0.1:9"}', "{onnx: none.onnx}"), "none.onnx"),
        (("accept: [udp]", "accept: [h3], tls: {cert: none.pem, key: none.key}"), "none.pem"),
        (("accept: [udp]", "accept: [h3], tls: {cert: gateway.yaml, key: gateway.yaml}"), "gateway.yaml"),
    ],
)
def test_what_a_gateway_cannot_start_with_is_one_line(conf, replaced, complaint):
    conf.write_text(CONFIG.replace(*replaced))

    done = python_m_proxy("run", conf)

    assert done.returncode == 2
    assert complaint in done.stderr and "Traceback" not in done.stderr
    assert done.stderr.count("\n") == 1


def test_explain_tells_why(capsys, conf):
    assert main(["explain", str(conf), "--model", "magika", "--header", "Inferlane-Class: batch"]) == 0
    assert "batch (" in capsys.readouterr().out

    assert main(["explain", str(conf), "--model", "magika", "--from", "192.0.2.1", "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["traffic_class"], found["trusted"], found["pool"]) == ("interactive", False, "magika")


def test_explain_tells_of_packets_too(capsys, conf):
    conf.write_text(CONFIG + "interfaces: [{name: eth0, egress: 20mbit}]\n")
    assert main(["explain", str(conf), "--proto", "udp", "--dport", "53", "--dscp", "EF"]) == 0
    out = capsys.readouterr().out
    assert "packet     udp 192.0.2.1 -> 198.51.100.1:53, EF" in out
    assert "eth0 egress: 51a:16, guaranteed 5mbit, at most 20mbit, if applied" in out
    assert main(["explain", str(conf), "--interface", "eth0", "--from", "::1", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["places"][0]["tc_class"] == "51a:24"
    assert main(["explain", str(conf), "--to", "::1", "--model", "magika"]) == 2
    assert "describes a packet and a request" in capsys.readouterr().err


@pytest.mark.parametrize("option", [["--from", "nowhere"], ["--listener", "x"], ["--dscp", "x"], ["--header", "x"]])
def test_what_cannot_be_explained_is_one_line(capsys, conf, option):
    assert main(["explain", str(conf), *option]) == 2
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (["none"], "none: no such file or directory"),
        ([__file__], "not a .onnx file"),
        ([".", "--http", "localhost:1"], "is a name; write 127.0.0.1"),
        ([".", "--udp", "127.0.0.1"], "127.0.0.1"),
        ([".", "--max-wait", "5"], "has no unit"),
        ([".", "--max-batch", "0"], "max-batch"),
    ],
)
def test_what_cannot_be_served_is_one_line(arguments, complaint):
    done = python_m_proxy("serve", *arguments)

    assert done.returncode == 2
    assert complaint in done.stderr and done.stderr.count("\n") == 1


def test_cert_makes_a_certificate_once(capsys, tmp_path):
    assert main(["cert", "--out", str(tmp_path), "--json"]) == 0
    made = json.loads(capsys.readouterr().out)
    before = (tmp_path / "development.pem").read_bytes()

    assert made == {"certificate": f"{tmp_path}/development.pem", "key": f"{tmp_path}/development.key"}
    assert main(["cert", "--state-dir", str(tmp_path)]) == 0
    assert capsys.readouterr().out.split()[1::2] == [made["certificate"], made["key"]]
    assert (tmp_path / "development.pem").read_bytes() == before


def test_cert_uses_the_state_directory(capsys, monkeypatch, tmp_path):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))

    assert main(["cert", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["key"] == f"{tmp_path}/development.key"


def test_cert_without_a_place_is_one_line(capsys, tmp_path):
    (tmp_path / "file").write_text("")

    assert main(["cert", "--out", str(tmp_path / "file")]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_infer_asks_and_shows(capsys, gateway, tensor, tmp_path):
    asked = ["infer", gateway, "magika", "--input", tensor, "--class", "realtime", "--output", str(tmp_path / "out")]

    assert main(asked) == 0

    out = capsys.readouterr().out
    assert "class realtime" in out and "dscp: sent EF, seen EF" in out and "queue 1.500" in out
    assert "FP64" in out and "1.5 2.5" in out and "'hello'" in out
    assert np.load(tmp_path / "out" / "y.npy").tolist() == [1.5, 2.5]


def test_infer_prints_json_for_programs(capsys, gateway, tensor):
    assert main(["infer", gateway, "magika", "--input", tensor, "--json", "--timeout", "20s"]) == 0

    found = json.loads(capsys.readouterr().out)
    assert [each["first_values"] for each in found["outputs"]] == [[1.5, 2.5], ["hello"]]
    assert (found["model"], found["version"], found["class"]) == ("magika", "1", None)


def test_a_refusal_is_a_failure(capsys, gateway, tensor):
    assert main(["infer", gateway, "other", "--input", tensor]) == 1
    assert capsys.readouterr().err == "inferlane: unknown_model: no model is named so\n"


def test_a_gateway_that_is_not_there_is_a_failure(capsys, tensor):
    assert main(["infer", "https://127.0.0.1:1", "magika", "--input", tensor]) == 1
    assert "nothing answers there" in capsys.readouterr().err


def test_an_output_that_cannot_be_written_is_a_failure(capsys, gateway, tensor, tmp_path):
    (tmp_path / "file").write_text("")

    assert main(["infer", gateway, "magika", "--input", tensor, "--output", str(tmp_path / "file")]) == 1
    assert capsys.readouterr().err.count("\n") == 1


@pytest.mark.parametrize(
    ("replaced", "complaint"),
    [
        ({"url": "ftp://host"}, "the scheme must be one of"),
        ({"--input": "x"}, "write NAME=FILE.npy"),
        ({"--input": "x=/none.npy"}, "No such file"),
        ({"--timeout": "50"}, "has no unit"),
        ({"--timeout": "0ms"}, "timeout"),
        ({"--class": "a b"}, "cannot be a traffic class"),
        ({"--ca": "/none.pem"}, "/none.pem: No such file"),
        ({"--ca": __file__}, "not a certificate in PEM"),
        ({"model": ""}, "model"),
    ],
)
def test_a_question_that_cannot_be_asked_is_one_line(capsys, tensor, replaced, complaint):
    options = {"url": "https://127.0.0.1:1", "model": "magika", "--input": tensor, **replaced}
    asked = [options.pop("url"), options.pop("model"), *(part for option in options.items() for part in option)]

    assert main(["infer", *asked]) == 2

    err = capsys.readouterr().err
    assert err.startswith("inferlane: ") and complaint in err
    assert err.count("\n") == 1


def test_an_unexpected_error_shows_itself(monkeypatch, tmp_path):
    monkeypatch.setattr("proxy.certificate.development_certificate", lambda directory: 1 / 0)

    with pytest.raises(ZeroDivisionError):
        main(["cert", "--out", str(tmp_path)])
