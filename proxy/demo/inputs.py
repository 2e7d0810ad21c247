# SPDX-License-Identifier: Apache-2.0
"""The files that the demo asks about: real ones of this checkout and this machine, and a picture it draws."""

from __future__ import annotations

import struct
import sys
import zlib
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Sample", "draw_png", "samples"]


@dataclass(frozen=True, slots=True)
class Sample:
    """One file to ask about, in the class that its requests ask for."""

    file: Path
    class_name: str


def samples(checkout: Path, scratch: Path) -> tuple[Sample, ...]:
    """Five kinds of file in three classes of conf/demo.yaml. Writes the picture into `scratch`."""
    picture = scratch / "gradient.png"
    picture.write_bytes(draw_png(96, 64))
    return (
        Sample(picture, "realtime"),
        Sample(checkout / "conf" / "demo.yaml", "realtime"),
        Sample(checkout / "README.md", "interactive"),
        Sample(Path(__file__), "interactive"),
        Sample(Path(sys.executable).resolve(), "batch"),
    )


def draw_png(width: int, height: int) -> bytes:
    """A gradient in red and blue as a PNG file (PNG specification, third edition, sections 5 and 11)."""
    rows = bytearray()
    for y in range(height):
        rows.append(0)  # this row is not filtered
        for x in range(width):
            rows += bytes((255 * x // width, 0, 255 * y // height))
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)  # 8 bits a channel, RGB, not interlaced
    chunks = ((b"IHDR", header), (b"IDAT", zlib.compress(bytes(rows), 9)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(_chunk(kind, content) for kind, content in chunks)


def _chunk(kind: bytes, content: bytes) -> bytes:
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))
