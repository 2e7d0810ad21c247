# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from backends.errors import BackendError
from backends.local.tensorrt_cache import engine_cache, user_cache


def test_each_model_s_content_has_its_folder(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"weights")
    folder = engine_cache(model, tmp_path / "cache")
    assert folder.is_dir()
    assert folder.parent == tmp_path / "cache" / "tensorrt"
    assert engine_cache(model, tmp_path / "cache") == folder
    model.write_bytes(b"newer weights")
    assert engine_cache(model, tmp_path / "cache") != folder


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    model = tmp_path / "model.onnx"
    model.write_bytes(b"weights")
    with pytest.raises(
        BackendError, match=r"model\.onnx/tensorrt.*: Not a directory; TensorRT's engines are kept there"
    ):
        engine_cache(model, model)


def test_the_user_s_cache_is_where_the_desktop_says(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert user_cache() == tmp_path / "inferlane"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/home/someone")
    assert str(user_cache()) == "/home/someone/.cache/inferlane"
