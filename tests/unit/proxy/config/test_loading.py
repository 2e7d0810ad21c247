# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import dataclasses
import json
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ruamel.yaml import YAML

from backends.pool_settings import HealthSettings, ProbeSettings, RetrySettings
from backends.settings import AdaptiveSettings, DatagramSettings, OipSettings, OnnxSettings, OpenAiSettings
from proxy.config.loading import MAX_BYTES, MAX_FAULTS, Config, ConfigError, load, load_with_warnings
from proxy.config.settings import Bind
from qos.settings import BUILT_IN_CLASSES, class_table
from qos.tc.settings import InterfaceSettings

CONF = Path(__file__).parents[4] / "conf"
SCHEMA = json.loads((CONF.parent / "proxy/inferlane.schema.json").read_text())
ALL_KEYS = {key for table in (SCHEMA, *SCHEMA["$defs"].values()) for key in table["properties"]}
LEAST = """\
listeners: [{name: main, bind: ["127.0.0.1:4433"], tls: development}]
pools: [{name: p, model: m, endpoints: [{oip: "http://127.0.0.1:8000"}]}]
"""


@pytest.fixture
def problems(tmp_path):
    """The problems in a config's text, without the file's name."""

    def found(text: str | bytes) -> list[str]:
        file = tmp_path / "gateway.yaml"
        file.write_bytes(text.encode() if isinstance(text, str) else text)
        with pytest.raises(ConfigError) as raised:
            load(file)
        assert str(raised.value).splitlines() == [str(each) for each in raised.value.problems]
        assert {each.file for each in raised.value.problems} == {str(file)}
        return [str(each).removeprefix(f"{file}:") for each in raised.value.problems]

    return found


# What we ship


def test_the_reference_says_what_holds_without_it():
    config = load(CONF / "gateway.yaml")
    # police, share and hedge have no default to say.
    without = {"police": None, "gate_share": 0.0, "hedge": 0.0}
    told = [dataclasses.replace(each, **without) for each in class_table(config.classes)]
    assert told == list(class_table(BUILT_IN_CLASSES))
    least = Config(listeners=config.listeners, pools=config.pools)
    for section in ("version", "trust", "safety", "log"):
        assert getattr(config, section) == getattr(least, section)
    assert config.listeners[0].max_body == config.listeners[1].max_body
    assert config.listeners[0].accept == config.listeners[1].accept
    assert config.admin.bind == least.admin.bind
    first = config.pools[0]
    assert first.health.model_copy(update={"probe": None}) == HealthSettings()
    assert first.health.probe is not None
    assert first.health.probe.model_copy(update={"kind": None}) == ProbeSettings()
    assert (first.retry, first.pick) == (RetrySettings(), "least_latency")
    onnx, oip, datagram, openai = (each for pool in config.pools for each in pool.endpoints)
    least_onnx = OnnxSettings(onnx=CONF.parent / "models/magika/model.onnx")
    assert onnx.model_copy(update={"slots": None, "zone": None}) == least_onnx
    assert isinstance(oip, OipSettings)
    assert isinstance(datagram, DatagramSettings)
    assert isinstance(openai, OpenAiSettings)
    assert (onnx.slots, oip.slots, datagram.slots) == (1, 16, AdaptiveSettings())
    assert config.pools[2].endpoints_from.every == 2.0


def test_every_key_that_works_is_in_the_reference_with_a_comment():
    commented = {
        line.partition(":")[0].strip(" -")
        for line in (CONF / "gateway.yaml").read_text().splitlines()
        if "#" in line and not line.startswith("#")
    }
    sections_said_by_their_keys = {"safety", "admin", "log"}
    assert ALL_KEYS - sections_said_by_their_keys == commented - {"floor"}  # of slots, told in its own schema


def test_the_reference_promises_on_links_what_holds_without_it():
    config = load(CONF / "gateway.yaml")
    least = Config(listeners=config.listeners, pools=config.pools, interfaces=config.interfaces)
    assert config.link_policy().classes == least.link_policy().classes
    (told,) = config.link_policy().interfaces
    wanted = InterfaceSettings(name="eth0", netns="edge", egress=940 * 10**6, ingress=940 * 10**6)
    assert (
        told == Config(listeners=config.listeners, pools=config.pools, interfaces=(wanted,)).link_policy().interfaces[0]
    )
    assert config.flows[0].before_nat is False


def test_what_may_not_be_meant_is_a_warning_with_its_place(tmp_path):
    text = (CONF / "gateway.yaml").read_text()
    file = tmp_path / "gateway.yaml"
    file.write_text("".join(line for line in text.splitlines(keepends=True) if "ceiling: 100%" not in line))
    (warning,) = load_with_warnings(file)[1]
    assert str(warning).startswith(
        f"{file}:{warning.line}:{warning.column}: interfaces[0].egress: realtime is guaranteed"
    )
    assert file.read_text().splitlines()[warning.line - 1][warning.column - 1 :].startswith("940mbit")
    assert [load_with_warnings(CONF / each)[1] for each in ("gateway.yaml", "demo.yaml")] == [[], []]


def test_the_demo_is_on_loopback_and_everybody_there_may_choose_a_class():
    config = load(CONF / "demo.yaml")
    (listener,) = config.listeners
    assert listener.bind == (Bind("127.0.0.1", 4433),)
    assert listener.accept == {"h3", "stream", "datagram", "udp", "h1"}
    assert (listener.tls, listener.max_class) == ("development", "realtime")
    assert config.admin.bind == Bind("127.0.0.1", 9433)
    assert config.pools[0].model == ("magika",)
    assert config.pools[0].endpoints == (OnnxSettings(onnx=CONF.parent / "models/magika/model.onnx"),)


def test_the_benchmark_forwards_and_has_defaults_for_the_rest():
    config = load(CONF / "bench-forward.yaml")
    (listener,), (pool,) = config.listeners, config.pools
    assert (listener.bind, listener.accept, listener.tls) == ((Bind("127.0.0.1", 5433),), {"h3"}, "development")
    assert (pool.model, pool.endpoints) == (("*",), (OipSettings(oip="http://127.0.0.1:5030"),))
    assert config.admin.bind == Bind("127.0.0.1", 9533)
    assert listener.model_fields_set == {"name", "bind", "accept", "tls"}
    assert config.model_fields_set == {"version", "listeners", "pools", "admin"}


def test_the_benchmark_of_workers_is_the_same_but_for_their_number():
    alone, together = load(CONF / "bench-forward.yaml"), load(CONF / "bench-workers.yaml")
    assert (alone.workers, together.workers) == (1, 2)
    assert together.model_copy(update={"workers": 1}) == alone


@pytest.mark.parametrize("file", sorted(CONF.glob("*.yaml")), ids=lambda file: file.name)
def test_editors_find_the_schema(file):
    line = next(line for line in file.read_text().splitlines() if "$schema=" in line)
    assert line.startswith("# yaml-language-server: $schema=")
    assert (file.parent / line.partition("$schema=")[2]).resolve().name == "inferlane.schema.json"
    assert (file.parent / line.partition("$schema=")[2]).is_file()


# Reading


def test_paths_are_relative_to_the_file_wherever_it_is_loaded_from(tmp_path, monkeypatch):
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/g.yaml").write_text(LEAST.replace("tls: development", "tls: {cert: ../cert.pem, key: key.pem}"))
    monkeypatch.chdir(tmp_path)
    tls = load("conf/g.yaml").listeners[0].tls
    assert (tls.cert, tls.key) == (tmp_path / "cert.pem", tmp_path / "conf/key.pem")


def test_a_byte_order_mark_and_dos_line_ends_are_fine(tmp_path):
    (tmp_path / "g.yaml").write_bytes(b"\xef\xbb\xbf" + LEAST.replace("\n", "\r\n").encode())
    assert load(tmp_path / "g.yaml").pools[0].name == "p"


def test_anchors_and_merge_keys_are_read(tmp_path):
    text = """\
listeners:
  - &door {name: a, bind: ["127.0.0.1:1"], tls: development}
  - {<<: *door, name: b, bind: ["127.0.0.1:2"]}
pools: [{name: p, model: m, endpoints: [{oip: "http://127.0.0.1:8000"}]}]
"""
    (tmp_path / "g.yaml").write_text(text)
    assert [(each.name, each.tls) for each in load(tmp_path / "g.yaml").listeners] == [
        ("a", "development"),
        ("b", "development"),
    ]


def test_a_file_that_cannot_be_read_is_one_line(tmp_path):
    for path, reason in [
        (tmp_path / "missing.yaml", "No such file or directory"),
        (tmp_path, "Is a directory"),
        (str(tmp_path / "a\0b"), "embedded null byte"),
    ]:
        with pytest.raises(ConfigError) as raised:
            load(path)
        assert str(raised.value) == f"{os.fspath(path)}:1:1: cannot be read: {reason}"


def test_a_huge_file_is_refused_before_it_is_read_as_yaml(problems):
    assert problems(b"#" * (MAX_BYTES + 1)) == ["1:1: longer than 4 MiB; no config is"]


def test_a_file_of_another_encoding_is_refused_at_its_first_byte(problems):
    assert problems(LEAST.encode() + b"# caf\xe9\n") == ["3:6: not UTF-8: byte 0xe9 here; save the file as UTF-8"]
    assert problems(LEAST.encode("utf-16"))[0].startswith("1:1: not UTF-8: byte 0xff here")


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "1:1: the file is empty; it needs at least the keys listeners and pools"),
        ("# nothing\n", "1:1: the file is empty"),
        ("- a\n", "1:1: the file holds a list, not a mapping"),
        ("gateway\n", "1:1: the file holds 'gateway', not a mapping"),
        ("listeners: [\n", "2:1: not YAML: "),
        ("pools: []\npools: []\nx: 1\n", "2:1: pools: a second time; the first is in line 1"),
    ],
)
def test_what_is_no_mapping_is_one_problem(problems, text, problem):
    (found,) = problems(text)
    assert found.startswith(problem)


def test_a_problem_is_one_line_of_text_whatever_the_names_in_the_file(problems):
    text = 'classes: [{name: "a\\n\\ud800", dscp: EF, deadline: 1s}]\nrules: [{when: {path: /}, class: b}]\n' + LEAST
    assert any(each.endswith(r"no class is named 'b'; allowed: a\n\ud800") for each in problems(text))


# All problems at once


def test_every_problem_is_told_at_once_in_the_order_of_the_file(problems):
    text = """\
version: 2
classes:
  - name: realtime
    dscp: CS6
    deadline: 50
    link: {share: 130%}
  - {name: batch, dscp: AF11, deadline: 1_000, defualt: true, gate: {queue: 20ms, share: 50%}}
clients: []
rules:
  - {when: {dscp: EF, client: robots}, class: 5}
trust: {dscp_from: [10.20.3.0/16], class_from: [robots]}
listeners:
  - name: main
    bind: ["0.0.0.0:4433", "localhost:4433", "127.0.0.1:99999"]
    accept: [h3, h1]
    tls: {cert: cert.pem, kex: key.pem}
    max_class: gold
  - {bind: ["127.0.0.1:0"], tls: dev, max_body: 64, networks: []}
pools:
  - name: magika
    model: magika
    pick: least_latency
    endpoints:
      - {onnx: m.onnx, providers: [gpu], batch: {max_size: "16"}}
      - {oip: "http://10.20.0.5:8000", slots: 0, zone: edge}
      - {openai: "http://10.20.0.7:8000"}
      - {datagram: "10.20.0.6", slot: 1}
      - http://10.20.0.5:8000
  - {model: [magika], endpoints: []}
admin: {bind: "127.0.0.1:9433", socket: /run/x}
log: {level: NaN}
workers: 0
"""
    assert [tuple(each.split(": ", 2)[:2]) for each in problems(text)] == [
        ("1:10", "version"),
        ("3:3", "classes"),
        ("4:11", "classes[0].dscp"),
        ("5:15", "classes[0].deadline"),
        ("6:19", "classes[0].link.share"),
        ("7:41", "classes[1].deadline"),
        ("7:48", "classes[1].defualt"),
        ("8:1", "clients"),
        ("10:23", "rules[0].when.client"),
        ("10:47", "rules[0].class"),
        ("11:21", "trust.dscp_from[0]"),
        ("11:49", "trust.class_from[0]"),
        ("14:28", "listeners[0].bind[1]"),
        ("14:46", "listeners[0].bind[2]"),
        ("16:10", "listeners[0].tls.key"),
        ("16:27", "listeners[0].tls.kex"),
        ("17:16", "listeners[0].max_class"),
        ("18:5", "listeners[1].name"),
        ("18:34", "listeners[1].tls"),
        ("18:49", "listeners[1].max_body"),
        ("18:53", "listeners[1].networks"),
        ("24:36", "pools[0].endpoints[0].providers[0]"),
        ("24:60", "pools[0].endpoints[0].batch.max_size"),
        ("25:47", "pools[0].endpoints[1].slots"),
        ("25:56", "pools[0].endpoints[1].zone"),
        ("26:9", "pools[0].endpoints[2]"),
        ("27:20", "pools[0].endpoints[3].datagram"),
        ("27:33", "pools[0].endpoints[3].slot"),
        ("28:9", "pools[0].endpoints[4]"),
        ("29:5", "pools[1].name"),
        ("29:14", "pools[1].model[0]"),
        ("29:34", "pools[1].endpoints"),
        ("31:14", "log.level"),
        ("32:10", "workers"),
    ]


def test_a_key_without_a_value_is_never_taken_for_the_default(problems):
    text = LEAST + "classes:\nrules: [~]\nlog: {level: , format: null}\nadmin:\n  bind:\n"
    assert [each.split(": ")[1] for each in problems(text)] == [
        "classes",
        "rules[0]",
        "log.level",
        "log.format",
        "admin.bind",
    ]
    assert all(each.endswith("has no value; write one or remove the key") for each in problems(text))


def test_a_problem_behind_an_alias_is_told_where_it_is_written(problems):
    text = """\
listeners:
  - &door {name: a, bind: ["127.0.0.1:1"], tls: development, max_body: 64}
  - {<<: *door, name: b, bind: ["127.0.0.1:2"]}
pools: [{name: p, model: m, endpoints: [&e {oip: "http://a", slot: 1}, *e]}]
"""
    assert [each.split(": ")[:2] for each in problems(text)] == [
        ["2:72", "listeners[0].max_body"],
        ["2:72", "listeners[1].max_body"],
        ["4:62", "pools[0].endpoints[0].slot"],
        ["4:62", "pools[0].endpoints[1].slot"],
    ]


def test_the_number_of_problems_told_is_bounded(problems):
    assert len(problems(LEAST + "".join(f"key{n}: 1\n" for n in range(MAX_FAULTS * 2)))) == MAX_FAULTS


# Whatever comes

KEYS = st.sampled_from([*sorted(ALL_KEYS), "openai", "workers", "<<", "<OipSettings>", "*"])
TEXTS = [
    "a",
    "realtime",
    "EF",
    "50ms",
    "64KiB",
    "h3",
    "h1",
    "development",
    "cpu",
    "yes",
    "1_000",
    "",
    "\ud800",
    "\0",
    "*",
]
ADDRESSES = ["127.0.0.1:0", "[::1]:1", "a:1", "http://a", "10.0.0.0/8", "10.0.0.1/8"]
WORDS = st.sampled_from(TEXTS + ADDRESSES)
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | WORDS | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(KEYS, inner, max_size=4),
    max_leaves=12,
)


def changed(config: object, path: list[int], value: object) -> object:
    """The config with the value that the path leads to replaced."""
    if not path or not isinstance(config, dict | list) or not config:
        return value
    keys = list(config) if isinstance(config, dict) else range(len(config))
    key = keys[path[0] % len(keys)]
    copy = dict(config) if isinstance(config, dict) else list(config)
    copy[key] = changed(config[key], path[1:], value)
    return copy


def loaded_or_refused(file: Path, text: bytes) -> None:
    file.write_bytes(text)
    try:
        config = load(file)
    except ConfigError as error:
        assert error.problems
        places = [(each.line, each.column) for each in error.problems]
        assert places == sorted(places)
        assert min(places) >= (1, 1)
        assert all(each.message and len(str(each).splitlines()) == 1 for each in error.problems)
        str(error).encode()
        return
    config.policy()


@given(st.binary(max_size=200) | st.text(max_size=200).map(lambda text: text.encode("utf-8", "surrogatepass")))
def test_any_bytes_are_a_config_or_a_config_error(tmp_path_factory, content):
    loaded_or_refused(tmp_path_factory.getbasetemp() / "any.yaml", content)


@given(st.dictionaries(KEYS, VALUES, max_size=5))
def test_any_structure_is_a_config_or_a_config_error(tmp_path_factory, structure):
    loaded_or_refused(tmp_path_factory.getbasetemp() / "structure.yaml", as_yaml(structure))


@given(st.lists(st.integers(0, 30), min_size=1, max_size=5), VALUES)
def test_the_reference_with_any_value_in_any_place_is_a_config_or_a_config_error(tmp_path_factory, path, value):
    reference = YAML(typ="safe", pure=True).load(CONF / "gateway.yaml")
    loaded_or_refused(tmp_path_factory.getbasetemp() / "changed.yaml", as_yaml(changed(reference, path, value)))


def as_yaml(value: object) -> bytes:
    """JSON is YAML, but for the names of the numbers that JSON lacks."""
    text = json.dumps(value)
    return text.replace("NaN", ".nan").replace("-Infinity", "-.inf").replace("Infinity", ".inf").encode()
