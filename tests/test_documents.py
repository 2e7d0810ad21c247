# SPDX-License-Identifier: Apache-2.0
"""What the documents say of the code, where a machine can see that it is still so."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from inferlane.errors import Reason

ROOT = Path(__file__).parent.parent
DOCUMENTS = sorted(
    file for pattern in ("*.md", "docs/**/*.md", "sdk/*.md", "benchmarks/*.md") for file in ROOT.glob(pattern)
)
SOURCES = {
    str(file.relative_to(ROOT))
    for folder in ("qos", "backends", "proxy", "sdk")
    for file in (ROOT / folder).rglob("*.py")
}


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda file: str(file.relative_to(ROOT)))
def test_links_lead_somewhere(document):
    links = re.findall(r"\]\(([^)#\s]+)", document.read_text(encoding="utf-8"))
    missing = [link for link in links if "://" not in link and not (document.parent / link).exists()]
    assert not missing


def test_the_architecture_names_files_that_exist():
    text = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`([a-z0-9_/]+\.py)`", text))
    unknown = {name for name in named if not any(f"/{source}".endswith(f"/{name}") for source in SOURCES)}
    assert len(named) > 30 and not unknown


def test_the_readme_lists_every_refusal_with_its_status():
    section = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Refusals")[2].partition("\n## ")[0]
    listed = {}
    for line in section.splitlines():
        cells = line.split("|")
        if len(cells) > 2 and cells[2].strip().isdigit():
            listed |= dict.fromkeys(re.findall(r"`(\w+)`", cells[1]), int(cells[2]))
    assert listed == {reason.label: reason.status for reason in Reason}


def test_make_lists_every_target_the_readme_names():
    targets = set(re.findall(r"^([a-z0-9-]+):.*## ", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
    named = set()
    for document in DOCUMENTS:
        named |= set(
            re.findall(
                r"(?:^\$ |`)make (?:PYTHON=\S+ )?([a-z0-9-]+)", document.read_text(encoding="utf-8"), re.MULTILINE
            )
        )
    assert {"demo", "test"} <= named <= targets
