# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import io

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.commands.arrays import ArrayError, read_inputs, write_outputs


@pytest.mark.parametrize(
    "array",
    [
        np.arange(6, dtype=np.int32).reshape(2, 3),
        np.asfortranarray(np.ones((2, 3), dtype=np.float16)),
        np.array(3.5),
        np.zeros((0, 4), dtype=bool),
        np.array(["text", "ü"]),
        np.array([b"bytes"]),
    ],
)
def test_a_tensor_comes_from_a_file(tmp_path, array):
    np.save(tmp_path / "x.npy", array)

    inputs = read_inputs([f"x={tmp_path / 'x.npy'}", f"y={tmp_path / 'x.npy'}"])

    assert list(inputs) == ["x", "y"]
    np.testing.assert_array_equal(inputs["x"], array)
    assert inputs["x"].dtype == array.dtype


@pytest.mark.parametrize("given_as", ["x", "x=", "=x.npy", "="])
def test_an_input_is_a_name_and_a_file(given_as):
    with pytest.raises(ArrayError, match=r"write NAME=FILE\.npy"):
        read_inputs([given_as])


def test_a_name_is_given_once(tmp_path):
    np.save(tmp_path / "x.npy", np.zeros(1))

    with pytest.raises(ArrayError, match="x is given twice"):
        read_inputs([f"x={tmp_path / 'x.npy'}"] * 2)


def npy(array, **options):
    file = io.BytesIO()
    np.save(file, array, **options)
    return file.getvalue()


HUGE = npy(np.zeros(3)).replace(b"'shape': (3,), }" + b" " * 13, b"'shape': (%d,), }" % 10**14)


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        (b"", "not a .npy file"),
        (b"PK\x03\x04 an archive", "not a .npy file"),
        (b"1,2,3\n4,5,6\n", "not a .npy file"),
        (npy(np.arange(100))[:200], "not a .npy file"),
        (npy(np.array([object()]), allow_pickle=True), "array of Python objects"),
        (HUGE, "memory|not a .npy"),
    ],
)
def test_what_is_no_tensor_is_one_line(tmp_path, content, complaint):
    file = tmp_path / "x.npy"
    file.write_bytes(content)

    with pytest.raises(ArrayError, match=complaint) as caught:
        read_inputs([f"x={file}"])
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["missing.npy", "."])
def test_a_file_that_cannot_be_opened_is_one_line(tmp_path, file):
    with pytest.raises(ArrayError, match=r"No such file|Is a directory"):
        read_inputs([f"x={tmp_path / file}"])


@given(st.integers(0, 150), st.binary(min_size=1, max_size=8))
def test_any_damage_to_a_file_is_a_tensor_or_one_line(tmp_path_factory, at, damage):
    file = tmp_path_factory.getbasetemp() / "damaged.npy"
    good = npy(np.arange(4, dtype=np.int16))
    file.write_bytes(good[:at] + damage + good[at + len(damage) :])

    try:
        assert isinstance(read_inputs([f"x={file}"])["x"], np.ndarray)
    except ArrayError as error:
        assert "\n" not in str(error)


def test_outputs_become_files(tmp_path):
    outputs = {
        "label": np.ones((1, 3), dtype=np.float16),
        "../text": np.array([b"one", b"three"], dtype=object),
    }

    files = write_outputs(outputs, tmp_path / "made" / "here")

    assert {name: file.name for name, file in files.items()} == {"label": "label.npy", "../text": "..%2Ftext.npy"}
    assert files["../text"].parent == tmp_path / "made" / "here"
    np.testing.assert_array_equal(np.load(files["label"]), outputs["label"])
    assert np.load(files["../text"]).tolist() == [b"one", b"three"]


def test_bytes_that_a_file_would_cut_are_not_written(tmp_path):
    with pytest.raises(ArrayError, match="end with NUL"):
        write_outputs({"x": np.array([b"cut\0"], dtype=object)}, tmp_path)


def test_a_directory_that_cannot_be_made_is_one_line(tmp_path):
    (tmp_path / "file").write_text("")

    with pytest.raises(ArrayError, match="File exists"):
        write_outputs({"x": np.zeros(1)}, tmp_path / "file")
