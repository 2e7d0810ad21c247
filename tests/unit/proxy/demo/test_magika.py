# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from proxy.demo.magika import Answer, Magika

SMALL = Magika(
    begin_size=8,
    end_size=4,
    block_size=16,
    padding=256,
    min_size=4,
    labels=("elf", "markdown", "python", "randomtxt"),
    thresholds={"markdown": 0.75},
    threshold=0.5,
    renamed={"randomtxt": "txt"},
    text=frozenset({"markdown", "python", "randomtxt", "txt"}),
)


@pytest.fixture
def tokens_of(tmp_path):
    def tokens(content: bytes, magika: Magika = SMALL) -> list[int]:
        file = tmp_path / "file"
        file.write_bytes(content)
        return magika.features(file)[0].tolist()

    return tokens


def test_a_long_file_gives_its_first_and_last_bytes(tokens_of):
    assert tokens_of(bytes(range(65, 105))) == [*range(65, 73), *range(101, 105)]


def test_white_space_is_cut_off_at_both_ends_only(tokens_of):
    assert tokens_of(b" \t\n\r\v\fab  cd \n") == [*b"ab  cd \n", *b"  cd"]


def test_short_files_are_padded_after_the_beginning_and_before_the_end(tokens_of):
    padding = [SMALL.padding] * 4
    assert tokens_of(b"abcd", replace(SMALL, end_size=8)) == [*b"abcd", *padding, *padding, *b"abcd"]


@pytest.mark.parametrize("content", [b"", b"abc", b"   abc", b" " * 100])
def test_almost_nothing_is_refused_by_name(tokens_of, content):
    with pytest.raises(ValueError, match="too short"):
        tokens_of(content)


@given(content=st.binary(min_size=4, max_size=80).map(lambda content: b"x" * 4 + content))
def test_tokens_are_bytes_or_padding(tmp_path_factory, content):
    file = tmp_path_factory.mktemp("any") / "file"
    file.write_bytes(content)
    tokens = SMALL.features(file)
    assert tokens.shape == (1, 12) and tokens.dtype == np.int32
    assert tokens.min() >= 0 and tokens.max() <= SMALL.padding


@pytest.mark.parametrize(
    ("scores", "label", "confidence"),
    [
        ([0.9, 0.05, 0.0, 0.05], "elf", 0.9),
        ([0.0, 0.8, 0.2, 0.0], "markdown", 0.8),
        ([0.0, 0.7, 0.3, 0.0], "txt", 0.7),  # below markdown's own threshold
        ([0.4, 0.3, 0.2, 0.1], "unknown", 0.4),  # no text
        ([0.0, 0.0, 0.1, 0.9], "txt", 0.9),  # renamed
    ],
)
def test_an_answer_is_believed_from_its_threshold_on(scores, label, confidence):
    answer = SMALL.answer(np.array([scores], np.float32))
    assert answer == Answer(label, pytest.approx(confidence))


def test_an_output_of_another_shape_is_named():
    with pytest.raises(ValueError, match=r"target_label has shape \[2, 4\]; expected \[1, 4\]"):
        SMALL.answer(np.zeros((2, 4), np.float32))


@pytest.mark.needs_model
def test_the_wheels_own_config_is_understood():
    magika = Magika.load(Path(__file__).parents[4] / "models" / "magika")
    assert (magika.begin_size + magika.end_size, len(magika.labels), magika.padding) == (2048, 214, 256)
    assert "python" in magika.text and "elf" not in magika.text
