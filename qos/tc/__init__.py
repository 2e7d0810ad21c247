# SPDX-License-Identifier: Apache-2.0
"""Linux traffic control: the classes' promises on a link, planned as data, applied in place, proved or undone.

Words: `state` (what a link looks like to the kernel), `policy` (what was promised), `capabilities` (what the kernel
can). Decisions: `compile` (policy -> desired state), `plan` (observed, desired -> steps). Shells: `netlink` and `bpf`
(the only doors to the kernel), `observe`, `apply`, `probe`, `monitor`.
"""
