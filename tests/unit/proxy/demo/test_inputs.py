# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import struct
import zlib
from pathlib import Path

from proxy.demo.inputs import draw_png, samples

CHECKOUT = Path(__file__).parents[4]


def chunks_of(png: bytes) -> dict[bytes, bytes]:
    found = {}
    rest = png.removeprefix(b"\x89PNG\r\n\x1a\n")
    while rest:
        size, kind = struct.unpack_from(">I4s", rest)
        content, (checksum,) = rest[8 : 8 + size], struct.unpack_from(">I", rest, 8 + size)
        assert zlib.crc32(kind + content) == checksum
        found[kind] = content
        rest = rest[12 + size :]
    return found


def test_the_picture_is_a_whole_png():
    chunks = chunks_of(draw_png(5, 3))
    assert list(chunks) == [b"IHDR", b"IDAT", b"IEND"]
    assert struct.unpack(">IIBBBBB", chunks[b"IHDR"]) == (5, 3, 8, 2, 0, 0, 0)
    rows = zlib.decompress(chunks[b"IDAT"])
    assert len(rows) == 3 * (1 + 5 * 3)
    assert [rows[y * 16] for y in range(3)] == [0, 0, 0]


def test_samples_are_real_files_of_several_classes(tmp_path):
    asked = samples(CHECKOUT, tmp_path)
    assert all(sample.file.is_file() for sample in asked)
    assert {sample.class_name for sample in asked} == {"realtime", "interactive", "batch"}
    assert len({sample.file for sample in asked}) == 5
