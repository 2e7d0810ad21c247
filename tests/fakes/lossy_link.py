# SPDX-License-Identifier: Apache-2.0
"""A path that loses, doubles, reorders and damages packets between aioquic's client and a server of ours, in memory."""

from __future__ import annotations

import random
from collections import defaultdict
from pathlib import Path

from aioquic.quic.connection import QuicConnection
from aioquic.quic.events import StreamDataReceived

from tests.fakes.quic import CLIENT, SERVER, Pair

LONGEST_S = 400.0


class LossyLink:
    """Carries datagrams late, twice, damaged or not at all. rate: of each of these faults."""

    def __init__(self, state_dir: Path, seed: int, rate: float, *, step_s: float = 0.004) -> None:
        self.pair = Pair(state_dir)
        self.pair.client_events.clear()
        self.pair.server_events.clear()
        self.received: dict[str, defaultdict[int, bytearray]] = {
            "client": defaultdict(bytearray),
            "server": defaultdict(bytearray),
        }
        self.ended: dict[str, set[int]] = {"client": set(), "server": set()}
        self._rng, self._rate, self._step_s = random.Random(seed), rate, step_s
        self._flying: list[tuple[int, bytes, bool]] = []
        self._round = 0

    def __repr__(self) -> str:
        return f"<LossyLink at round {self._round}>"

    def run(self, rounds: int) -> None:
        """So many steps of the clock."""
        for _ in range(rounds):
            self._step()

    def settle(self) -> None:
        """Without further faults, until neither side has anything in flight."""
        self._rate = 0.0
        deadline = self.pair.now + LONGEST_S
        while self._flying or any(self._busy(each) for each in (self.pair.client, self.pair.server)):
            self._step()
            assert self.pair.now < deadline, "the link does not settle"

    def _busy(self, end: QuicConnection) -> bool:
        return any(space.ack_eliciting_in_flight for space in end._loss.spaces) or any(
            not stream.sender.buffer_is_empty for stream in end._streams.values()
        )

    def _step(self) -> None:
        pair, self._round = self.pair, self._round + 1
        pair.now += self._step_s
        arriving = [each for each in self._flying if each[0] <= self._round]
        self._flying = [each for each in self._flying if each[0] > self._round]
        for _, datagram, to_server in arriving:
            if to_server:
                pair.server.receive_datagram(datagram, CLIENT, pair.now)
            else:
                pair.client.receive_datagram(datagram, SERVER, pair.now)
        for end in (pair.client, pair.server):
            timer = end.get_timer()
            if timer is not None and timer <= pair.now:
                end.handle_timer(pair.now)
        self._take()
        for datagram, _ in pair.client.datagrams_to_send(pair.now):
            self._launch(datagram, to_server=True)
        if pair.server.quiet(pair.now):
            assert not QuicConnection.datagrams_to_send(pair.server, pair.now), "it said that it was quiet"
        for datagram, _ in pair.server.datagrams_to_send(pair.now):
            assert len(datagram) <= 1200
            self._launch(datagram, to_server=False)

    def _launch(self, datagram: bytes, *, to_server: bool) -> None:
        rng, rate = self._rng, self._rate
        if rng.random() < rate:
            return
        if rng.random() < rate / 4:
            at = rng.randrange(len(datagram))
            datagram = datagram[:at] + bytes((datagram[at] ^ 0x55,)) + datagram[at + 1 :]
        for _ in range(1 + (rng.random() < rate)):
            late = rng.randrange(1, 6) if rng.random() < rate else 1
            self._flying.append((self._round + late, datagram, to_server))

    def _take(self) -> None:
        pair = self.pair
        pair.take()
        for name, events in (("client", pair.client_events), ("server", pair.server_events)):
            for event in events:
                if isinstance(event, StreamDataReceived):
                    self.received[name][event.stream_id] += event.data
                    if event.end_stream:
                        self.ended[name].add(event.stream_id)
                    if name == "server":
                        pair.server.consume(event.stream_id, len(event.data))
            events.clear()
