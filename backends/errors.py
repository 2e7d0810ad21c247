# SPDX-License-Identifier: Apache-2.0
"""What stops a backend from starting; everything a request can meet is `inferlane.errors.Refused`."""

from __future__ import annotations

__all__ = ["BackendError"]


class BackendError(Exception):
    """A backend that cannot start: one line that names the place and the remedy."""
