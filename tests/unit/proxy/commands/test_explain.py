# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

import pytest

from proxy.commands.explain import ExplainedRequest, Explanation, explain
from proxy.config.loading import load

TEXT = """\
rules:
  - {when: {path: "/v1/bulk/*"}, class: background}
  - {when: {listener: lan, model: "embed-*"}, class: batch}
trust: {dscp_from: [10.1.0.0/16], class_from: [10.2.0.0/16]}
listeners:
  - {name: main, bind: ["127.0.0.1:4433"], tls: development}
  - {name: lan, bind: ["127.0.0.1:4434"], tls: development, max_class: realtime}
pools:
  - name: magika
    model: magika
    endpoints: [{onnx: /srv/magika.onnx, providers: [cuda, cpu]}, {datagram: "10.20.0.6:4434"}]
  - {name: rest, model: ["embed-*", magika2], endpoints: [{oip: "https://10.20.0.5:8000"}]}
"""


@pytest.fixture
def told(tmp_path):
    """The explanation of a request to this config."""
    (tmp_path / "g.yaml").write_text(TEXT)
    config = load(tmp_path / "g.yaml")

    def explained(**request) -> Explanation:
        return explain(config, ExplainedRequest(**({"listener": "lan"} | request)))

    return explained


def test_a_plain_request_gets_the_default_class(told):
    assert told(model="magika") == Explanation(
        listener="lan",
        client="127.0.0.1",
        trusted=False,
        path="/v2/models/magika/infer",
        model="magika",
        rule=None,
        traffic_class="interactive",
        why="default class",
        dscp="AF21",
        deadline_s=2.0,
        queue_s=2.0,
        pool="magika",
        endpoints=("onnx /srv/magika.onnx on cuda, cpu", "datagram 10.20.0.6:4434"),
    )


def test_the_rule_that_matches_is_named_as_errors_name_it(told):
    found = told(model="embed-small")
    assert (found.rule, found.traffic_class, found.pool) == ("rules[1]", "batch", "rest")
    assert found.endpoints == ("oip https://10.20.0.5:8000",)
    assert told(model="embed-small", listener="main").rule is None
    assert told(path="/v1/bulk/7").rule == "rules[0]"


def test_headers_of_a_trusted_client_choose(told):
    asked = told(client="10.2.0.1", headers=["Inferlane-Class: realtime", "Accept: */*"])
    assert (asked.traffic_class, asked.trusted, asked.dscp, asked.queue_s) == ("realtime", True, "EF", 0.02)
    assert told(client="10.2.0.1", headers=["priority: u=7, i"]).traffic_class == "background"
    assert told(client="10.9.0.1", headers=["priority: u=7"]).traffic_class == "interactive"


def test_a_mark_from_a_trusted_network_chooses(told):
    assert told(client="10.1.0.1", dscp="EF").traffic_class == "realtime"
    assert told(client="10.1.0.1", dscp="EF", listener="main").why.endswith("the max_class of listener main")


def test_the_clients_timeout_shortens_the_deadline_and_never_lengthens_it(told):
    short = told(headers=["inferlane-timeout: 30ms"])
    assert (short.deadline_s, short.queue_s) == (0.03, 0.03)
    assert told(headers=["inferlane-timeout: 30s"]).deadline_s == 2.0


@pytest.mark.parametrize(
    ("path", "model"),
    [
        ("/v2/models/magika/infer", "magika"),
        ("/v2/models/magika", "magika"),
        ("/v2/models/magika/versions/1/ready", "magika"),
        ("/v2/models/a%2Fb/infer", "a/b"),
        ("/v2/health/live", ""),
        ("/v1/chat/completions", ""),
    ],
)
def test_the_model_is_that_of_the_path(told, path, model):
    assert told(path=path).model == model


def test_a_model_that_is_given_goes_before_that_of_the_path(told):
    assert told(path="/v2/models/magika/infer", model="embed-1").pool == "rest"


def test_a_model_that_nobody_serves_is_told(told):
    found = told(model="llama")
    assert (found.pool, found.endpoints) == (None, ())
    assert "pool       none serves 'llama'; the answer is 404" in found.as_text()
    assert "pool       none: no model is asked" in told(path="/v2/health/live").as_text()


def test_names_go_before_patterns_as_in_the_gateway(tmp_path):
    (tmp_path / "g.yaml").write_text(
        'listeners: [{name: main, bind: ["127.0.0.1:1"], tls: development}]\n'
        'pools: [{name: all, model: "*", endpoints: [{oip: "http://a"}]}, {name: one, model: m, endpoints: [{oip: "http://b"}]}]\n'
    )
    config = load(tmp_path / "g.yaml")
    assert explain(config, ExplainedRequest(model="m")).pool == "one"
    assert explain(config, ExplainedRequest(model="n")).pool == "all"


def test_people_read_lines_and_programs_json(told):
    found = told(model="embed-small", client="10.2.0.1")
    assert found.as_text().splitlines() == [
        "listener   lan",
        "client     10.2.0.1, may choose a class",
        "path       /v2/models/embed-small/infer",
        "model      embed-small",
        "rule       rules[1]",
        "class      batch (rules[1]: listener lan, model embed-*)",
        "mark       AF11",
        "deadline   30s",
        "queue      at most 30s",
        "pool       rest",
        "endpoints  oip https://10.20.0.5:8000",
    ]
    assert json.loads(json.dumps(found.as_dict()))["traffic_class"] == "batch"


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"listener": None}, "which listener? the config has main, lan"),
        ({"listener": "mian"}, "no listener is named 'mian'; did you mean main?; the config has main, lan"),
        ({"client": "robots"}, "'robots' is not an IP address; write 10.20.0.5 or fd00:20::5"),
        ({"dscp": "GOLD"}, "'GOLD' is not a DSCP; allowed:"),
        ({"headers": ["inferlane-class realtime"]}, "is not a header; write 'Name: value'"),
        ({"headers": [": realtime"]}, "is not a header; write 'Name: value'"),
        (
            {"headers": ["inferlane-timeout: 50"]},
            "the gateway would refuse this request: inferlane-timeout: 50 has no unit",
        ),
        ({"path": "/v2/modèles"}, "is not ASCII; percent-encode it"),
    ],
)
def test_what_is_not_described_well_is_refused_in_one_line(told, request_, message):
    with pytest.raises(ValueError, match=r".") as refused:
        told(**request_)
    assert message in str(refused.value)
    assert "\n" not in str(refused.value)
