# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from proxy.config.checks import cross_faults
from proxy.config.errors import key_path
from proxy.config.positions import parse

CLASSES = "classes: [{name: fast, dscp: EF, deadline: 1s, default: true}, {name: slow, dscp: LE, deadline: 2s}]"


def many_classes(count: int) -> str:
    return f"classes: [{{name: a, default: true}}, {', '.join(f'{{name: c{each}}}' for each in range(1, count))}]\n"


def faults(text: str) -> list[tuple[str, str]]:
    return [(key_path(each.path), each.message) for each in cross_faults(parse(text).plain())]


@pytest.mark.parametrize(
    "text",
    [
        "{}",
        CLASSES,
        "classes: [{name: only}]",
        many_classes(32) + "workers: auto",
        many_classes(33) + "workers: 1",
        many_classes(33),
        f"{CLASSES}\nlisteners: [{{name: a, tls: x, max_class: fast}}]",
        f"{CLASSES}\nlisteners: [{{name: a, tls: x}}]\nrules: [{{when: {{listener: a}}, class: slow}}]",
        "rules: [{when: {path: /}, class: realtime}]",
        "listeners: [{name: a, max_class: background, tls: development, bind: ['127.0.0.1:1', '[::1]:1']}]",
        "listeners: [{name: a, accept: [udp], bind: ['0.0.0.0:1']}]",
        "listeners: [{name: a, tls: {}, bind: ['127.0.0.1:0', '127.0.0.1:0']}]",
        "pools: [{name: a, model: [m, 'm*']}, {name: b, model: m2}]",
        "classes: [{name: a, deadline: 1s, gate: {queue: 1s}}]",
        "pools: [{endpoints: [{onnx: m, batch: {max_size: 2, max_wait: 1ms}}, {onnx: m, batch: {max_wait: 0ms}}]}]",
        "pools: [{endpoints: [{oip: 'https://a', tls: {ca: x}}]}]",
    ],
)
def test_what_fits_together_has_no_faults(text):
    assert faults(text) == []


@pytest.mark.parametrize(
    ("text", "key", "message"),
    [
        ("classes: [{name: a, default: true}, {name: a}]", "classes[1].name", "'a' is taken by classes[0].name"),
        ("pools: [{name: a}, {name: b}, {name: a}]", "pools[2].name", "'a' is taken by pools[0].name"),
        ("listeners: [{name: a, tls: x}, {name: a, tls: x}]", "listeners[1].name", "'a' is taken by listeners[0].name"),
        ("pools: [{model: [a, b]}, {model: b}]", "pools[1].model", "'b' is taken by pools[0].model[1]"),
        ("pools: [{model: [a, a]}]", "pools[0].model[1]", "'a' is taken by pools[0].model[0]"),
        (
            "listeners: [{name: a, tls: x, bind: ['1.1.1.1:1']}, {name: b, tls: x, bind: ['1.1.1.1:1']}]",
            "listeners[1].bind[0]",
            "'1.1.1.1:1' is taken by listeners[0].bind[0]",
        ),
        (
            many_classes(33) + "workers: 2",
            "classes",
            "33 classes; several workers can keep the order of 32: leave some out, or set workers: 1",
        ),
        ("classes: [{name: a}, {name: b}]", "classes", "no class is the default one; add default: true to one of them"),
        (
            "classes: [{name: a, default: true}, {name: b, default: true}]",
            "classes[1].default",
            "classes[0] is the default class already",
        ),
        (
            "classes: [{name: a, deadline: 50ms, gate: {queue: 1s}}]",
            "classes[0].gate.queue",
            "longer than the deadline, which ends every wait; at most 50ms",
        ),
        (
            f"{CLASSES}\nrules: [{{when: {{path: /}}, class: fats}}]",
            "rules[0].class",
            "no class is named 'fats'; did you mean fast?; allowed: fast, slow",
        ),
        (
            "rules: [{when: {path: /}, class: gold}]",
            "rules[0].class",
            "allowed: realtime, interactive, batch, background",
        ),
        ("rules: [{when: {}, class: batch}]", "rules[0].when", 'for every request path: "*"'),
        (
            "rules: [{when: {listener: b}, class: batch}]\nlisteners: [{name: a, tls: x}]",
            "rules[0].when.listener",
            "no listener is named 'b'; allowed: a",
        ),
        ("listeners: [{name: a, tls: x, max_class: gold}]", "listeners[0].max_class", "no class is named 'gold'"),
        (
            "listeners: [{name: a}]",
            "listeners[0].tls",
            "missing, and h3, stream, datagram, h1 cannot be accepted without it",
        ),
        (
            "listeners: [{name: a, accept: [udp, h3, nonsense]}]",
            "listeners[0].tls",
            "missing, and h3 cannot be accepted without it",
        ),
        (
            "listeners: [{name: a, tls: development, bind: ['127.0.0.1:1', '0.0.0.0:1', 'nonsense']}]",
            "listeners[0].bind[1]",
            "tls: development is for loopback",
        ),
        (
            "pools: [{endpoints: [{onnx: m, batch: {max_wait: 2ms}}]}]",
            "pools[0].endpoints[0].batch.max_wait",
            "nothing to wait for while max_size is 1",
        ),
        (
            "pools: [{endpoints: [{oip: 'http://a', tls: {ca: x}}]}]",
            "pools[0].endpoints[0].tls",
            "nothing to check behind http://",
        ),
    ],
)
def test_what_does_not_fit_together_is_told_where_it_can_be_mended(text, key, message):
    ((found_key, found_message),) = faults(text)
    assert found_key == key
    assert message in found_message


@pytest.mark.parametrize(
    "text",
    [
        "classes: 5",
        "classes: [5, {name: [x]}]",
        "classes: [{name: a, default: 'true'}, {name: b}]",
        "classes: [{name: a, deadline: 5, gate: {queue: 1s}}, {deadline: 1s, gate: {queue: x}, default: true}]",
        "classes: [{deadline: 1s, gate: queue}]",
        "classes: [{dscp: EF}]\nrules: [{when: {path: /}, class: gold}]",
        "rules: {when: x}",
        "rules: [x, {when: x, class: 5}, {when: {listener: 5}}]",
        "listeners: [x, {name: 5, bind: 5, accept: h3}, {bind: [5], accept: {}, tls: x}]",
        "pools: [x, {model: 5, endpoints: 5}, {model: [5, [m]], endpoints: [5, {batch: 5}, {batch: {max_size: x}}]}]",
        "pools: [{endpoints: [{oip: 5, tls: x}]}]",
    ],
)
def test_what_has_the_wrong_shape_is_left_to_those_who_say_so(text):
    assert faults(text) == []
