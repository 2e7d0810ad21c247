# SPDX-License-Identifier: Apache-2.0
from __future__ import annotations

import json

from proxy.config.schema import SCHEMA_FILE, json_schema
from proxy.config.settings import Config

SCHEMA = json.loads(json_schema())
TABLES = SCHEMA["$defs"]


def test_the_file_is_up_to_date():
    assert SCHEMA_FILE.read_text(encoding="utf-8") == json_schema(), "run: python -m proxy.config.schema"


def test_an_editor_knows_the_keys_and_refuses_others():
    assert list(SCHEMA["properties"]) == [field.alias or name for name, field in Config.model_fields.items()]
    assert SCHEMA["required"] == ["listeners", "pools"]
    assert all(table["additionalProperties"] is False for table in [SCHEMA, *TABLES.values()])
    assert list(TABLES["RuleSettings"]["properties"]) == ["when", "class"]


def test_an_editor_offers_the_words_of_a_key():
    assert TABLES["ListenerSettings"]["properties"]["accept"]["items"]["enum"] == [
        "h3",
        "stream",
        "datagram",
        "udp",
        "h1",
    ]
    assert TABLES["PoolSettings"]["properties"]["pick"]["enum"] == ["least_latency", "round_robin", "least_in_flight"]
    assert "EF" in TABLES["ClassSettings"]["properties"]["dscp"]["enum"]
    assert "CS6" not in TABLES["ClassSettings"]["properties"]["dscp"]["enum"]


def test_an_editor_knows_the_variants():
    endpoints = TABLES["PoolSettings"]["properties"]["endpoints"]["items"]["oneOf"]
    assert [each["$ref"].rpartition("/")[2] for each in endpoints] == [
        "OnnxSettings",
        "OipSettings",
        "OpenAiSettings",
        "DatagramSettings",
    ]
    files, development = TABLES["ListenerSettings"]["properties"]["tls"]["oneOf"]
    assert files == {"$ref": "#/$defs/TlsFiles"}
    assert development["const"] == "development"


def test_values_are_those_of_the_file_and_not_of_python():
    listener = TABLES["ListenerSettings"]["properties"]
    assert (listener["max_body"]["type"], listener["max_body"]["default"]) == ("string", "64MiB")
    assert TABLES["GateSettings"]["properties"]["queue"]["type"] == "string"
    assert TABLES["ClassSettings"]["properties"]["default"]["default"] is False
    text = json_schema()
    assert '"null"' not in text
    assert ": null" not in text


def test_every_key_is_explained():
    for name, table in TABLES.items():
        for key, schema in table["properties"].items():
            assert "description" in schema or "$ref" in schema, f"{name}.{key}"
    assert all("description" in table for table in TABLES.values())
