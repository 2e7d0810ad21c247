# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from backends.errors import BackendError
from backends.pool_settings import PoolSettings
from backends.settings import DatagramSettings, OipSettings
from proxy.config.endpoint_list import read_endpoints

POOL = PoolSettings.model_validate(
    {"name": "far", "model": "*", "zones": ("edge", "cloud"), "endpoints_from": {"file": Path("endpoints.yaml")}}
)


@pytest.fixture
def file(tmp_path):
    return tmp_path / "endpoints.yaml"


def test_a_list_is_read_as_it_would_be_in_the_config(file):
    file.write_text("- {oip: 'http://10.0.0.1:8000', slots: 4}\n- datagram: 10.0.0.2:4434\n  zone: edge\n")
    first, second = read_endpoints(file, POOL)
    assert first == OipSettings(oip="http://10.0.0.1:8000", slots=4)
    assert second == DatagramSettings(datagram="10.0.0.2:4434", zone="edge")


def test_files_it_names_are_beside_it(file):
    file.write_text("- {oip: 'https://far:8000', tls: {ca: authority.pem}}\n")
    (only,) = read_endpoints(file, POOL)
    assert isinstance(only, OipSettings) and only.tls is not None
    assert only.tls.ca == file.parent / "authority.pem"


def test_an_empty_list_is_nobody(file):
    file.write_text("[]\n")
    assert read_endpoints(file, POOL) == ()


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", r":1:1: the file is empty, not a list of endpoints"),
        ("endpoints: []\n", r":1:1: the file holds .* not a list of endpoints"),
        ("- oip: http://a:1\n- oip: nonsense\n", r":2:8: endpoints\[1\]\.oip: "),
        ("- {oip: 'http://a:1', slot: 3}\n", r":1:23: endpoints\[0\]\.slot: unknown key; did you mean slots"),
        ("- oip: http://a:1\n  zone:\n", r"endpoints\[0\]\.zone: has no value"),
        ("- [oip\n", r":2:1: "),
        ("- {oip: 'http://a:1', zone: moon}\n", r":1:29: endpoints\[0\]\.zone: "),
        ("- {oip: 'http://a:1'}\n- {openai: 'http://a:1'}\n", r"endpoints\[1\]"),
        ("- {datagram: 'a:1', oip: 'http://a:1'}\n", r"datagram stands here already"),
    ],
)
def test_what_is_wrong_is_told_with_its_line(file, text, said):
    file.write_text(text)
    with pytest.raises(BackendError, match=said) as caught:
        read_endpoints(file, POOL)
    assert str(caught.value).startswith(f"{file}:")


def test_every_problem_has_its_line(file):
    file.write_text("- oip: one\n- oip: two\n")
    with pytest.raises(BackendError) as caught:
        read_endpoints(file, POOL)
    assert [line.split(":")[1] for line in str(caught.value).splitlines()] == ["1", "2"]


def test_a_file_that_is_not_there_and_one_that_is_no_text(file):
    with pytest.raises(BackendError, match="cannot be read: No such file"):
        read_endpoints(file, POOL)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(BackendError, match="not UTF-8"):
        read_endpoints(file, POOL)


@settings(max_examples=50, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.text(alphabet="-[]{}:, oip'http/\n#&*!01", max_size=60))
def test_whatever_it_holds_nothing_else_is_raised(file, text):
    file.write_text(text)
    try:
        assert isinstance(read_endpoints(file, POOL), tuple)
    except BackendError as error:
        assert str(error)
