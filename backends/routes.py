# SPDX-License-Identifier: Apache-2.0
"""From a model's name to the pool that serves it."""

from __future__ import annotations

import re
from collections.abc import Iterable
from fnmatch import translate

from backends.pool import Pool

__all__ = ["Routes"]

_PATTERN_SIGNS = frozenset("*?[")


class Routes:
    """Exact names before patterns (`embed-*`), then the first match in the config's order."""

    def __init__(self, routes: Iterable[tuple[Pool, Iterable[str]]]) -> None:
        self._names: dict[str, Pool] = {}
        self._patterns: list[tuple[re.Pattern[str], Pool]] = []
        pools = []
        for pool, models in routes:
            pools.append(pool)
            for model in models:
                if _PATTERN_SIGNS.isdisjoint(model):
                    self._names.setdefault(model, pool)
                else:
                    self._patterns.append((re.compile(translate(model)), pool))
        self.pools = tuple(pools)

    def __repr__(self) -> str:
        return f"<Routes {len(self._names)} names and {len(self._patterns)} patterns to {len(self.pools)} pools>"

    def pool_for(self, model: str) -> Pool | None:
        """The pool that serves this model; None: nobody does."""
        pool = self._names.get(model)
        if pool is not None:
            return pool
        for pattern, pool in self._patterns:
            if pattern.match(model):
                return pool
        return None
