# SPDX-License-Identifier: Apache-2.0
"""A change as people make one: locked, written down, watched, confirmed or undone."""
