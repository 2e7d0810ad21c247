# SPDX-License-Identifier: Apache-2.0
"""What looks after endpoints besides requests: discovery, probes, the admin's socket; started and closed as one."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AsyncExitStack

from backends.lookout.discovery import Discovery
from backends.lookout.probing import Probing
from backends.routes import Routes
from proxy.config.endpoint_list import read_endpoints
from proxy.config.settings import Config
from proxy.control import Control
from proxy.endpoints import Endpoints
from proxy.telemetry.metrics import Metrics
from proxy.walk.pool_walk import PoolWalk

__all__ = ["Lookout"]


class Lookout:
    """For all pools of a gateway. What it finds out, those who wait for a place there learn at once.

    control: whether it serves the admin's socket that the config names; of several workers their supervisor does.
    """

    def __init__(
        self,
        config: Config,
        routes: Routes,
        walks: Mapping[str, PoolWalk],
        *,
        clock: Callable[[], float],
        control: bool = True,
    ) -> None:
        self._walks = walks
        self.endpoints = Endpoints(routes.pools, changed=self._look_again, clock=clock)
        pools = list(zip(routes.pools, config.pools, strict=True))
        self._discovery = Discovery(pools, read=read_endpoints, changed=self._look_again, clock=clock)
        self._probing = Probing(
            [(pool, each.health.probe) for pool, each in pools], changed=self._look_again, clock=clock
        )
        self._control = None
        if control and config.admin.socket is not None:
            self._control = Control(config.admin.socket, self.endpoints)
        self._opened = AsyncExitStack()

    def __repr__(self) -> str:
        return f"<Lookout {self._discovery!r} {self._probing!r}>"

    def tell(self, metrics: Metrics) -> None:
        """Have its counts read at every scrape."""
        metrics.watch_probing(self._probing)
        metrics.watch_discovery(self._discovery)

    async def start(self) -> None:
        """Find endpoints, ask them, open the socket. Raises OSError, one line for people; nothing is open then."""
        async with AsyncExitStack() as opening:
            opening.push_async_callback(self._discovery.close)
            await self._discovery.start()
            opening.push_async_callback(self._probing.close)
            self._probing.start()
            if self._control is not None:
                opening.push_async_callback(self._control.close)
                await self._control.start()
            self._opened = opening.pop_all()

    async def close(self) -> None:
        """End all of it, in the reverse order."""
        await self._opened.aclose()

    def _look_again(self, pool: str) -> None:
        self._walks[pool].gate.look_again()
