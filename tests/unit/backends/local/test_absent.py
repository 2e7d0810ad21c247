# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import sys
from importlib.metadata import PackageNotFoundError

import pytest

from backends.local.absent import installed_twice, load_nvidia_libraries


def version_of(**versions: str):
    def look_up(name: str) -> str:
        if name not in versions:
            raise PackageNotFoundError(name)
        return versions[name]

    return look_up


@pytest.mark.parametrize("name", ["onnxruntime", "onnxruntime-gpu"])
def test_one_distribution_is_right(name):
    assert installed_twice(version_of(**{name: "1.25.0"})) is None


def test_two_distributions_are_explained():
    both = installed_twice(version_of(**{"onnxruntime": "1.25.0", "onnxruntime-gpu": "1.24.1"}))
    assert both == (
        "onnxruntime 1.25.0 and onnxruntime-gpu 1.24.1 are both installed and overwrite each other's files; run "
        "pip uninstall -y onnxruntime onnxruntime-gpu, then pip install onnxruntime-gpu"
    )


def failing_preload() -> None:
    sys.stdout.write("Failed to load libcublas.so.13: libcublas.so.13: cannot open shared object file\n")
    sys.stdout.write("Failed to load libcudart.so.13: libcudart.so.13: cannot open shared object file\n")
    sys.stdout.write("Please follow the instructions\n")


def test_the_cpu_loads_nothing():
    assert load_nvidia_libraries(["cpu"], failing_preload) == []


def test_what_is_printed_about_missing_libraries_becomes_one_sentence(capsys):
    assert load_nvidia_libraries(["cuda", "cpu"], failing_preload) == [
        "cannot load libcublas.so.13, libcudart.so.13 (cannot open shared object file)"
    ]
    assert capsys.readouterr().out == ""


def test_loading_without_a_word_is_success():
    assert load_nvidia_libraries(["cuda"], lambda: None) == []
