# SPDX-License-Identifier: Apache-2.0
"""What several workers of one gateway count together, in one memory segment: places taken, and who waits for one.

Each worker writes its own row and reads all; a record lock of the kernel, which a killed process cannot keep, makes
"look and take" one step. Nothing here knows a request or an event loop's work: the gate asks, and acts.
"""
