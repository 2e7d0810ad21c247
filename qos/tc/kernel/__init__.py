# SPDX-License-Identifier: Apache-2.0
"""The doors to the kernel's traffic control, and what it says and hears as bytes."""
