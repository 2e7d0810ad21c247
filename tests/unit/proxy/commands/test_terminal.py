# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json
from pathlib import Path

import pytest
import typer

from proxy.commands.terminal import FAILED, MISUSED, expecting, load_config, print_json, print_parts, state_folder


def test_expected_errors_are_one_line_and_others_are_bugs(capsys):
    with pytest.raises(typer.Exit) as ended, expecting(ValueError, code=FAILED):
        raise ValueError("no such thing")
    assert ended.value.exit_code == FAILED
    assert capsys.readouterr().err == "inferlane: no such thing\n"
    with pytest.raises(KeyError), expecting(ValueError, code=FAILED):
        raise KeyError


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (FileNotFoundError(2, "No such file or directory", "/none"), "/none: No such file or directory"),
        (OSError(98, "Address already in use"), "Address already in use"),
        (OSError("odd"), "odd"),
    ],
)
def test_errors_of_the_system_name_their_file(capsys, error, line):
    with pytest.raises(typer.Exit), expecting(OSError, code=FAILED):
        raise error
    assert capsys.readouterr().err == f"inferlane: {line}\n"


def test_a_wrong_config_is_told_as_editors_follow_it(capsys, tmp_path):
    (tmp_path / "g.yaml").write_text("listenrs: []\n")
    with pytest.raises(typer.Exit) as ended:
        load_config(tmp_path / "g.yaml")
    assert ended.value.exit_code == MISUSED
    assert capsys.readouterr().err.startswith(f"{tmp_path}/g.yaml:1:1: ")


def test_the_state_is_where_it_is_said(monkeypatch, tmp_path):
    monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path))
    assert state_folder(None) == tmp_path
    assert state_folder(Path("x")) == Path("x")


def test_documents_and_parts_go_to_the_output(capsys):
    print_json({"a": [1, float("nan")]})
    assert json.loads(capsys.readouterr().out) == {"a": [1, None]}
    print_parts("one", "two")
    assert capsys.readouterr().out == "one\ntwo\n"


def test_warnings_are_told_only_to_those_who_check(capsys, tmp_path):
    text = (Path(__file__).parents[4] / "conf" / "gateway.yaml").read_text()
    conf = tmp_path / "gateway.yaml"
    conf.write_text("".join(line for line in text.splitlines(keepends=True) if "ceiling: 100%" not in line))
    load_config(conf)
    assert capsys.readouterr().err == ""
    load_config(conf, tell_warnings=True)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"{conf}:") and line.endswith(" (a warning)")
