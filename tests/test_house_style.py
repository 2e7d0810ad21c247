# SPDX-License-Identifier: Apache-2.0
"""What CONTRIBUTING.md asks of every source file, where a machine can see it."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGES = {
    "qos": ROOT / "qos",
    "backends": ROOT / "backends",
    "proxy": ROOT / "proxy",
    "inferlane": ROOT / "sdk/inferlane",
}
MODULES = {
    f"{name}/{file.relative_to(folder)}": file
    for name, folder in PACKAGES.items()
    for file in sorted(folder.rglob("*.py"))
}
OTHERS = {
    str(file.relative_to(ROOT)): file
    for folder in ("benchmarks", "tests")
    for file in sorted((ROOT / folder).rglob("*.py"))
}

MOST_LINES = 400
# Words that say nothing of the job: the file's real name is hiding behind them.
VAGUE = {
    "utils",
    "util",
    "common",
    "helpers",
    "misc",
    "manager",
    "handler",
    "processor",
    "engine",
    "core",
    "base",
    "data",
}
VAGUE |= {"info", "tmp"}

# Modules without a unit test, and why.
SHELLS = {
    "proxy/__main__.py": "one call",
    "backends/backend.py": "a protocol without code",
    "backends/errors.py": "one exception without code",
    "backends/messages.py": "words without code",
    "backends/outcome.py": "words without code",
    "proxy/sockets/addresses.py": "words without code",
    "proxy/sockets/linux.py": "numbers",
    "proxy/supervise/child.py": "begins a process: tests/integration/test_workers.py",
    "proxy/supervise/edition.py": "puts parts together: tests/integration/test_workers.py and test_upgrade.py",
    "proxy/supervise/fleet.py": "moves workers: tests/integration/test_workers.py and test_upgrade.py",
    "proxy/supervise/reloading.py": "asks workers: tests/integration/test_workers.py and test_reload.py",
    "proxy/supervise/worker.py": "a process: tests/integration/test_workers.py",
    "proxy/walk/pool_walk.py": "puts two together: every test of the pipeline",
    "proxy/walk/refusals.py": "sentences, read by test_gate.py and test_gate_promises.py",
    "proxy/arrival.py": "words without code",
    "qos/selftest/lab.py": "namespaces: tests/integration/test_selftest.py",
    "qos/selftest/trial.py": "runs both: tests/integration/test_selftest.py",
}


def lines_of(file: Path) -> list[str]:
    return file.read_text(encoding="utf-8").splitlines()


@pytest.mark.parametrize("name", MODULES | OTHERS)
def test_a_file_begins_with_its_licence_and_is_short(name):
    lines = lines_of((MODULES | OTHERS)[name])
    assert lines[0] == "# SPDX-License-Identifier: Apache-2.0"
    assert len(lines) <= MOST_LINES


@pytest.mark.parametrize("name", MODULES)
def test_a_module_says_its_job_in_one_line_and_what_is_public(name):
    tree = ast.parse(MODULES[name].read_text(encoding="utf-8"))
    docstring = ast.get_docstring(tree)
    assert docstring, "no docstring"
    assert docstring.splitlines()[0].endswith((".", ":")), "the docstring's first line is not a whole sentence"
    if name.rpartition("/")[2] in ("__init__.py", "__main__.py"):
        return
    assigned = {
        target.id
        for node in tree.body
        if isinstance(node, ast.Assign)
        for target in node.targets
        if isinstance(target, ast.Name)
    }
    assert "__all__" in assigned


@pytest.mark.parametrize("name", MODULES)
def test_a_name_says_what_the_file_is_for(name):
    assert not VAGUE & {part for path in name.removesuffix(".py").split("/") for part in path.split("_")}


@pytest.mark.parametrize("name", [name for name in MODULES if not name.endswith("__init__.py")])
def test_a_module_has_its_unit_test_or_a_reason(name):
    folder, _, file = name.rpartition("/")
    mirror = ROOT / "tests" / "unit" / folder / f"test_{file}"
    if name in SHELLS:
        assert not mirror.exists(), f"{name} has a unit test now: take it off the list"
    else:
        assert mirror.exists(), f"expected {mirror.relative_to(ROOT)}"


def test_the_list_of_exceptions_names_files_that_exist():
    assert SHELLS.keys() <= MODULES.keys() | {"proxy/__main__.py"}


def test_test_folders_are_no_packages():
    assert not list((ROOT / "tests").rglob("__init__.py"))
