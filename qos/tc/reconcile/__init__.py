# SPDX-License-Identifier: Apache-2.0
"""From an observed state to a desired one: the steps, what they can lose, and the way back."""
