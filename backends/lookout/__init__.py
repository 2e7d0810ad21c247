# SPDX-License-Identifier: Apache-2.0
"""Looking after endpoints besides requests: finding, asking and showing them.

discovery   by name and by watched file
membership  who belongs to a pool, pure
probing     asking them whether they are there
overview    all of them as a document
"""
