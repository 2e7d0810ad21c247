# SPDX-License-Identifier: Apache-2.0
"""From the config's pools to what the models' process is told."""

from __future__ import annotations

from pathlib import Path

import msgspec

from backends.pool_settings import PoolSettings
from proxy.supervise.models_start import ModelsStart, classes_of, local_models, models_of
from qos.settings import BUILT_IN_CLASSES


def pools() -> list[PoolSettings]:
    onnx = {"onnx": "m.onnx", "slots": 2, "batch": {"max_size": 8, "max_wait": "5ms"}}
    far = {"oip": "http://10.0.0.1:8000"}
    return [
        PoolSettings.model_validate({"name": name, "model": "*", "endpoints": endpoints})
        for name, endpoints in (("a", (far, onnx)), ("b" * 60, (onnx, onnx)), ("c", (far,)))
    ]


def test_each_model_has_a_socket_of_its_own_with_a_short_name():
    assert [(pool, index) for pool, index, _ in local_models(pools())] == [("a", 1), ("b" * 60, 0), ("b" * 60, 1)]
    found = models_of(pools(), Path("/run/x"))
    assert [each.path for each in found] == ["/run/x/0.sock", "/run/x/1.sock", "/run/x/2.sock"]
    assert (found[0].max_size, found[0].max_wait_s, found[0].slots) == (8, 0.005, 2)
    assert Path(found[0].onnx).is_absolute()  # the process may be started elsewhere


def test_the_document_crosses_the_channel():
    start = ModelsStart(models=models_of(pools(), Path("/run/x")), classes=classes_of(BUILT_IN_CLASSES), max_body=7)
    assert msgspec.convert(msgspec.msgpack.decode(msgspec.msgpack.encode(start)), ModelsStart) == start
    assert [each.name for each in start.classes] == [each.name for each in BUILT_IN_CLASSES]
