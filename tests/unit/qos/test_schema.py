# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from ipaddress import ip_network
from pathlib import Path
from typing import Annotated

import pytest
from pydantic import TypeAdapter, ValidationError

from qos.schema import (
    Dscp,
    Duration,
    FilePath,
    ModelName,
    Name,
    Network,
    Rate,
    Reading,
    Settings,
    Share,
    Size,
    did_you_mean,
    is_pattern,
    one_of,
    shown,
)

FILE = Reading(Path("/etc/inferlane"))


def read(kind, value, context=FILE):
    return TypeAdapter(kind).validate_python(value, context=context)


def refusal(kind, value, context=FILE):
    with pytest.raises(ValidationError) as refused:
        read(kind, value, context)
    (error,) = refused.value.errors()
    return error["msg"]


def test_texts_of_a_file_become_values():
    assert read(Duration, "20ms") == 0.02
    assert read(Size, "64KiB") == 65536
    assert read(Rate, "12.5mbit") == 12_500_000
    assert read(Share, "30%") == 0.3
    assert read(Dscp, "EF") == 46
    assert read(Network, "10.20.0.0/16") == ip_network("10.20.0.0/16")
    assert read(Network, "fd00:20::/32") == ip_network("fd00:20::/32")
    assert read(Network, "10.20.0.5") == ip_network("10.20.0.5/32")


@pytest.mark.parametrize(
    ("kind", "value"),
    [(Duration, 50), (Duration, 0.5), (Size, 64), (Rate, 20), (Share, 30), (Share, 0.3), (Dscp, 46), (Network, 5)],
)
def test_a_bare_number_in_a_file_is_refused_with_the_way_to_write_it(kind, value):
    assert f"{value} is not a" in refusal(kind, value)
    assert "write" in refusal(kind, value) or "allowed" in refusal(kind, value)


@pytest.mark.parametrize("value", [True, None, (), {}, float("nan")])
@pytest.mark.parametrize("kind", [Duration, Size, Rate, Share, Dscp, Network, FilePath])
def test_other_things_in_a_file_are_named(kind, value):
    assert f"{shown(value)} is not a" in refusal(kind, value)


def test_python_gives_parsed_values():
    assert read(Duration, 0.02, context=None) == 0.02
    assert read(FilePath, Path("model.onnx"), context=None) == Path("model.onnx")
    assert read(Network, ip_network("10.0.0.0/8"), context=None) == ip_network("10.0.0.0/8")


def test_host_bits_are_refused_with_both_things_that_could_be_meant():
    assert "write 10.20.0.0/16, or 10.20.0.5 for that one address" in refusal(Network, "10.20.0.5/16")


def test_paths_are_relative_to_the_file():
    assert read(FilePath, "cert.pem") == Path("/etc/inferlane/cert.pem")
    assert read(FilePath, "../models/m.onnx") == Path("/etc/models/m.onnx")
    assert read(FilePath, "/srv/m.onnx") == Path("/srv/m.onnx")
    assert read(FilePath, "m.onnx", context=None) == Path("m.onnx")


@pytest.mark.parametrize("path", ["", "a\0b", "a\nb"])
def test_what_no_file_is_called_is_refused(path):
    assert "is not a file's path" in refusal(FilePath, path)


@pytest.mark.parametrize("name", ["main", "a", "GPU-0", "v1.2_x", "9" * 64])
def test_names(name):
    assert read(Name, name) == name


@pytest.mark.parametrize("name", ["", "-x", "a b", "é", "a\n", "x" * 65, "a/b"])
def test_what_is_no_name(name):
    assert "allowed: letters, digits, . _ -" in refusal(Name, name)


@pytest.mark.parametrize("name", ["", "a\tb", "é" * 128])
def test_what_no_model_is_called(name):
    assert "allowed: 1 to 255 bytes" in refusal(ModelName, name)


def test_a_model_may_have_any_printable_name():
    assert read(ModelName, "org/Modell ü-*") == "org/Modell ü-*"


def test_a_slip_of_the_finger_is_recognised():
    assert did_you_mean("defualt", ["name", "default"]) == "; did you mean default?"
    assert did_you_mean("zebra", ["name", "default"]) == ""
    assert did_you_mean("default" * 10_000, ["default"]) == ""


def test_patterns_are_told_from_names():
    assert [is_pattern(text) for text in ("a*", "a?", "[ab]", "a.b-c")] == [True, True, True, False]


@pytest.mark.parametrize(
    ("value", "text"),
    [(None, "nothing"), (True, "true"), ({}, "a mapping"), ((), "a list"), ([], "a list"), ("a\n", r"'a\n'"), (5, "5")],
)
def test_values_are_shown_as_their_writer_knows_them(value, text):
    assert shown(value) == text


def test_a_long_text_is_shown_cut():
    assert len(shown("x" * 10_000)) < 70


def test_one_of_names_what_is_allowed_and_what_is_to_come():
    word = Annotated[str, one_of("first", "second", later=("third",))]
    assert read(word, "second") == "second"
    assert "third is not available yet; allowed: first, second" in refusal(word, "third")
    assert "'frist' is not known; did you mean first?; allowed: first, second" in refusal(word, "frist")
    assert "5 is not known; allowed: first, second" in refusal(word, 5)


def test_settings_are_frozen_strict_and_know_their_keys():
    class Table(Settings):
        slots: int

    table = Table(slots=1)
    with pytest.raises(ValidationError, match="frozen"):
        table.slots = 2
    with pytest.raises(ValidationError, match="valid integer"):
        Table.model_validate({"slots": "1"})
    with pytest.raises(ValidationError, match="Extra inputs"):
        Table.model_validate({"slots": 1, "slot": 1})
