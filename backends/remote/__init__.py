# SPDX-License-Identifier: Apache-2.0
"""Backends on other machines, or in other processes: asked over HTTP/1.1 or by inference datagram."""
