# SPDX-License-Identifier: Apache-2.0
"""Proves on this machine's kernel that the classes hold: a link of its own, a flood on it, probes through it.

`lab` builds namespaces and removes them, `traffic` floods and probes, `figures` judges, `trial` runs the phases.
"""
