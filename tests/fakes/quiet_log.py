# SPDX-License-Identifier: Apache-2.0
"""Whatever happens in a block, the log must not tell of a fault of ours, nor the loop of an exception nobody took."""

from __future__ import annotations

import logging
from collections.abc import Iterator, MutableMapping
from contextlib import contextmanager
from typing import Any

from structlog.testing import capture_logs

__all__ = ["quiet_log"]

Line = MutableMapping[str, Any]


class _Keeping(logging.Handler):
    def __init__(self, level: int) -> None:
        super().__init__(level)
        self.told: list[logging.LogRecord] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.told.append(record)


@contextmanager
def quiet_log(*, but: frozenset[str] = frozenset()) -> Iterator[list[Line]]:
    """All lines of the log so far. but: errors that the test brings about, by their event."""
    handler = _Keeping(logging.ERROR)
    logging.getLogger().addHandler(handler)
    try:
        with capture_logs() as lines:
            yield lines
    finally:
        logging.getLogger().removeHandler(handler)
    assert [line for line in lines if line["log_level"] in ("error", "critical") and line["event"] not in but] == []
    assert [record.getMessage() for record in handler.told] == []
