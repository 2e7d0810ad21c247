# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import pytest

from qos.dscp import CODE_POINTS, ds_field, dscp_name, dscp_of, ecn_of, parse_dscp


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("DF", 0),
        ("CS0", 0),
        ("LE", 1),
        ("CS1", 8),
        ("AF11", 10),
        ("AF21", 18),
        ("AF43", 38),
        ("VA", 44),
        ("EF", 46),
        ("ef", 46),
    ],
)
def test_names_have_the_values_of_their_rfcs(name, value):
    assert parse_dscp(name) == value


@pytest.mark.parametrize("name", ["CS6", "CS7", "cs6"])
def test_network_control_is_nobodys_traffic_class(name):
    with pytest.raises(ValueError, match="network control"):
        parse_dscp(name)


@pytest.mark.parametrize("text", ["63", "0xb8", "EF ", "AF44", "", "GOLD"])
def test_an_unknown_name_is_refused_with_the_known_ones(text):
    with pytest.raises(ValueError, match="is not a DSCP; allowed: DF, LE, CS0") as refused:
        parse_dscp(text)
    assert repr(text) in str(refused.value)


def test_every_value_has_one_name_and_a_number_stands_for_the_rest():
    assert [dscp_name(value) for value in (0, 1, 8, 46, 3)] == ["DF", "LE", "CS1", "EF", "3"]
    assert all(CODE_POINTS[dscp_name(value)] == value for value in CODE_POINTS.values())


@pytest.mark.parametrize("dscp", range(64))
@pytest.mark.parametrize("ecn", range(4))
def test_the_ds_field_holds_both_and_mixes_nothing(dscp, ecn):
    byte = ds_field(dscp, ecn)
    assert 0 <= byte <= 255
    assert (dscp_of(byte), ecn_of(byte)) == (dscp, ecn)


def test_the_ds_field_of_ef_is_what_every_capture_shows():
    assert ds_field(46) == 0xB8


def test_a_number_is_answered_with_its_name():
    with pytest.raises(ValueError, match="'46' is not a DSCP; write EF; allowed"):
        parse_dscp("46")
