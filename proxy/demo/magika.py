# SPDX-License-Identifier: Apache-2.0
"""What the demo model, Magika's file-type classifier, is given for a file, and what its answer means.

Reads files, asks nobody: the answers must equal those of Magika's own program (tests/integration/test_demo.py).
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = ["INPUT", "MODEL", "OUTPUT", "Answer", "Magika"]

MODEL = "magika"
INPUT = "bytes"
OUTPUT = "target_label"


@dataclass(frozen=True, slots=True)
class Answer:
    """What a file is."""

    label: str
    confidence: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Magika:
    """One version of the model, as its own config file describes it."""

    begin_size: int
    end_size: int
    block_size: int
    """Bytes looked at on each side before white space is cut off."""
    padding: int
    """The token for no byte: 256."""
    min_size: int
    """Fewer bytes than this say too little."""
    labels: tuple[str, ...]
    thresholds: dict[str, float]
    """Confidence below which a label is not believed, where it differs from `threshold`."""
    threshold: float
    renamed: dict[str, str]
    text: frozenset[str]
    """The labels of text files."""

    @classmethod
    def load(cls, directory: Path) -> Magika:
        """From `config.min.json` and `content_types_kb.min.json`, as they lie in Magika's wheel."""
        config = _read_json(directory / "config.min.json")
        kinds = _read_json(directory / "content_types_kb.min.json")
        return cls(
            begin_size=config["beg_size"],
            end_size=config["end_size"],
            block_size=config["block_size"],
            padding=config["padding_token"],
            min_size=config["min_file_size_for_dl"],
            labels=tuple(config["target_labels_space"]),
            thresholds=config["thresholds"],
            threshold=config["medium_confidence_threshold"],
            renamed=config["overwrite_map"],
            text=frozenset(name for name, kind in kinds.items() if kind["is_text"]),
        )

    def features(self, file: Path) -> NDArray[np.int32]:
        """The model's input for one file: [1, begin_size + end_size] tokens, the file's first and last bytes.

        ValueError: a file of white space or almost nothing, which the model was not made for.
        """
        with file.open("rb") as stream:
            begin = stream.read(self.block_size)
            size = stream.seek(0, 2)
            stream.seek(max(0, size - self.block_size))
            end = stream.read(self.block_size)
        begin, end = begin.lstrip()[: self.begin_size], end.rstrip()[-self.end_size :]
        if len(begin) < self.min_size:
            raise ValueError(f"{file}: too short to say what it is; the model needs {self.min_size} bytes")
        tokens = np.full((1, self.begin_size + self.end_size), self.padding, np.int32)
        tokens[0, : len(begin)] = np.frombuffer(begin, np.uint8)
        tokens[0, tokens.size - len(end) :] = np.frombuffer(end, np.uint8)
        return tokens

    def answer(self, scores: NDArray[np.float32]) -> Answer:
        """The model's output for one file, [1, labels], as a label; one below its threshold becomes a broad one."""
        if scores.shape != (1, len(self.labels)):
            raise ValueError(f"{OUTPUT} has shape {list(scores.shape)}; expected [1, {len(self.labels)}]")
        best = int(scores[0].argmax())
        confidence = float(scores[0, best])
        named = self.labels[best]
        label = self.renamed.get(named, named)
        if confidence < self.thresholds.get(named, self.threshold):
            label = "txt" if label in self.text else "unknown"
        return Answer(label, confidence)


def _read_json(file: Path) -> dict[str, Any]:
    loaded: dict[str, Any] = json.loads(file.read_bytes())
    return loaded
