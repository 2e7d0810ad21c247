# SPDX-License-Identifier: Apache-2.0
"""The JSON Schema of the config, from which editors complete it. `python -m proxy.config.schema` writes the file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from proxy.config.settings import Config

__all__ = ["SCHEMA_FILE", "json_schema"]

SCHEMA_FILE = Path(__file__).parent.with_name("inferlane.schema.json")


def json_schema() -> str:
    """The schema's text, generated from the settings."""
    schema = _tidy(Config.model_json_schema())
    head = {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Inferlane gateway config"}
    return json.dumps(head | schema, indent=1) + "\n"


def _tidy(node: Any) -> Any:
    """Without what pydantic says of Python: titles, null for `not given`, defaults that are whole tables."""
    if isinstance(node, list):
        return [_tidy(each) for each in node]
    if not isinstance(node, dict):
        return node
    kept = {key: _tidy(value) for key, value in node.items() if not _about_python(key, value)}
    choices = [each for each in kept.get("anyOf", ()) if each != {"type": "null"}]
    if len(choices) == 1:
        del kept["anyOf"]
        kept = choices[0] | kept
    elif choices:
        kept["anyOf"] = choices
    return kept


def _about_python(key: str, value: Any) -> bool:
    if key == "title":
        return isinstance(value, str)  # a mapping would be the schema of a key of that name
    table = isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value))
    return key == "default" and (value is None or (table and "type" not in value))


if __name__ == "__main__":
    SCHEMA_FILE.write_text(json_schema(), encoding="utf-8")
