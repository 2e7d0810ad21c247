# SPDX-License-Identifier: Apache-2.0
"""From one YAML file to one frozen Config, or to every error with its line.

loading     the way through all of it: `load`
positions   YAML 1.2 text to values that know their line and column
settings    the tables of the proxy's own part, and Config, the whole
checks      what parts say about one another
errors      pydantic's findings in the admin's words
schema      the JSON Schema that editors complete from
"""
