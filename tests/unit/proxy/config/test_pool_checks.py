# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from proxy.config.errors import key_path
from proxy.config.pool_checks import pool_faults
from proxy.config.positions import parse


def faults(pool: str) -> list[tuple[str, str]]:
    return [(key_path(each.path), each.message) for each in pool_faults(parse(f"pools: [{pool}]").plain())]


@pytest.mark.parametrize(
    "pool",
    [
        "{}",
        "{endpoints: [{oip: 'http://triton.lan', resolve: 5s}, {onnx: m}, {datagram: 'a:1'}]}",
        "{endpoints: [{openai: 'http://a'}, {openai: 'https://b', tls: {ca: x}}]}",
        "{zones: [edge, cloud], endpoints: [{oip: 'http://a', zone: cloud}, {oip: 'http://b'}]}",
        "{health: {probe: {kind: ping}}, endpoints: [{datagram: 'a:1'}]}",
        "{health: {probe: {kind: http, path: /up}}, endpoints: [{oip: 'http://a'}]}",
        "{health: {probe: {}}, endpoints: [{oip: 'http://a'}, {datagram: 'a:1'}]}",
        "{endpoints: [{onnx: m, batch: {max_size: 2, max_wait: 1ms}}]}",
        "{endpoints: 5, zones: 7, health: x}",
    ],
)
def test_what_goes_together_has_no_faults(pool):
    assert faults(pool) == []


@pytest.mark.parametrize(
    ("pool", "key", "message"),
    [
        ("{endpoints: [{oip: 'http://10.0.0.1:80', resolve: 5s}]}", "endpoints[0].resolve", "10.0.0.1 is an address"),
        ("{endpoints: [{datagram: '[::1]:4', resolve: 5s}]}", "endpoints[0].resolve", "::1 is an address"),
        ("{endpoints: [{openai: 'http://a'}, {oip: 'http://b'}]}", "endpoints[1]", "give it a pool of its own"),
        ("{endpoints: [{onnx: m}, {openai: 'http://b'}]}", "endpoints[1]", "first endpoint is the Open Inference"),
        ("{endpoints: [{oip: 'http://a', zone: edge}]}", "endpoints[0].zone", "the pool has no `zones`"),
        ("{zones: [edge], endpoints: [{oip: 'http://a', zone: edeg}]}", "endpoints[0].zone", "did you mean edge?"),
        (
            "{health: {probe: {kind: ping}}, endpoints: [{datagram: 'a:1'}, {onnx: m}]}",
            "health.probe.kind",
            "only datagram endpoints answer a ping; leave kind out",
        ),
        (
            "{health: {probe: {kind: tcp}}, endpoints: [{datagram: 'a:1'}]}",
            "health.probe.kind",
            "datagram endpoints are asked by ping",
        ),
        ("{health: {probe: {path: /x}}}", "health.probe.path", "only kind: http asks for a path"),
        ("{endpoints: [{openai: 'http://a', tls: {ca: x}}]}", "endpoints[0].tls", "nothing to check behind http://"),
        ("{endpoints: [{onnx: m, batch: {max_wait: 1ms}}]}", "endpoints[0].batch.max_wait", "nothing to wait for"),
    ],
)
def test_what_does_not_is_told_where_it_can_be_mended(pool, key, message):
    ((path, text),) = faults(pool)
    assert path == f"pools[0].{key}"
    assert message in text
