# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import msgspec

from proxy.config.loading import load_text
from proxy.reload import merge
from proxy.supervise.start import ConfigText, Start, config_of

LISTENERS = """\
listeners:
  - {name: a, bind: ["127.0.0.1:0"], accept: [udp], max_class: %s}
  - {name: b, bind: ["127.0.0.1:0"], accept: [udp], max_class: %s}
"""
POOLS = "pools: [{name: p, model: '*', endpoints: [{oip: 'http://127.0.0.1:9'}]}]\n"
STARTED = LISTENERS % ("batch", "batch") + POOLS


def test_the_text_alone_is_the_config_as_it_was_started() -> None:
    text = ConfigText(path="/etc/gateway.yaml", started=STARTED)
    assert config_of(text) == load_text(STARTED, "/etc/gateway.yaml")[0]


def test_it_is_the_config_that_runs_after_any_number_of_reloads() -> None:
    """The second one has another ceiling for `b`, which the third does not name at all."""
    path = "/etc/gateway.yaml"
    reloads = [
        LISTENERS % ("realtime", "interactive") + POOLS,
        "rules: [{when: {path: '*'}, class: batch}]\n" + "\n".join(STARTED.splitlines()[:2]) + "\n" + POOLS,
    ]
    running = load_text(STARTED, path)[0]
    text = ConfigText(path=path, started=STARTED)
    for each in reloads:
        running = merge(running, load_text(each, path)[0]).config
        ceilings = {listener.name: listener.max_class for listener in running.listeners}
        text = msgspec.structs.replace(text, reloaded=each, ceilings=ceilings)
    assert [each.max_class for each in running.listeners] == ["batch", "interactive"]
    assert config_of(text) == running


def test_the_document_crosses_as_plain_data() -> None:
    start = Start(
        config=ConfigText(path="x", started=STARTED, ceilings={"a": None}),
        state_dir="/var/lib/inferlane",
        place=1,
        generation=2,
        siblings=[0],
        sockets={"a": [(5, None)], "b": [(6, 7)]},
        keys=bytes(128),
        models=[("p", 0, "/run/x")],
    )
    packed = msgspec.msgpack.encode(msgspec.to_builtins(start, builtin_types=(bytes,)))
    assert msgspec.convert(msgspec.msgpack.decode(packed), Start) == start
