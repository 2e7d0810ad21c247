# SPDX-License-Identifier: Apache-2.0
"""Which endpoint gets the next request: pure decisions over what was seen of each.

picker      the rules by name
zones       the near ones first
prediction  what an answer will take
health      who is left out for a while, and how it comes back
"""
