# SPDX-License-Identifier: Apache-2.0
"""Debian's gtlsclient (ngtcp2 on GnuTLS) on bad networks: loss, new addresses, new keys."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from inferlane.oip import decode_reply
from tests.fakes.programs import PATIENCE_S

pytestmark = pytest.mark.needs_gtlsclient

# Loss can cost several of the client's probe timeouts, of 1 s at first: it knows no round trip.
PATIENT = ("--handshake-timeout=60s", "--timeout=60s")
# The request waits until the connection has done what it is asked to do after the handshake.
AFTERWARDS = "--delay-stream=100ms"


@dataclass(frozen=True, slots=True)
class Asked:
    """What the client printed, and the body it was given."""

    printed: str
    body: bytes


Ask = Callable[..., Asked]


@pytest.fixture
def ask(gateway, tmp_path) -> Ask:
    """Runs the client with these switches; it leaves after its last answer."""

    def run(*switches: str | Path, path: str = "/v2") -> Asked:
        command = ["gtlsclient", "--exit-on-all-streams-close", "--no-quic-dump", "--no-http-dump", *PATIENT]
        command += [f"--download={tmp_path}", *map(str, switches), "127.0.0.1", str(gateway.port)]
        done = subprocess.run(
            [*command, gateway.url() + path], capture_output=True, text=True, timeout=PATIENCE_S, check=True
        )
        answer = tmp_path / path.rpartition("/")[2]
        return Asked(done.stdout + done.stderr, answer.read_bytes() if answer.exists() else b"")

    return run


def metadata(asked: Asked) -> bool:
    return asked.body != b"" and json.loads(asked.body)["name"] == "inferlane"


def test_a_request(ask):
    asked = ask()
    assert metadata(asked) and "[:status: 200]" in asked.printed


@pytest.mark.parametrize(
    "switch",
    [
        "--ciphers=NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+CHACHA20-POLY1305",
        "--ciphers=NORMAL:-VERS-ALL:+VERS-TLS1.3:-CIPHER-ALL:+AES-256-GCM",
        "--groups=-GROUP-ALL:+GROUP-SECP384R1",
        "--max-udp-payload-size=1200",
        "--scid=",
    ],
)
def test_other_ciphers_groups_and_sizes(ask, switch):
    assert metadata(ask(switch))


@pytest.mark.parametrize("switches", [("--tx-loss=0.05",), ("--rx-loss=0.05",), ("--tx-loss=0.1", "--rx-loss=0.1")])
def test_lost_packets_are_sent_again(ask, tmp_path, switches):
    x = np.arange(100_000, dtype=np.int32).reshape(10, -1)
    tensor = {"name": "x", "datatype": "INT32", "shape": list(x.shape), "data": x.reshape(-1).tolist()}
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"inputs": [tensor]}))  # 690 kB: some of its packets are lost
    asked = ask("-q", *switches, "-m", "POST", f"--data={request}", path="/v2/models/identity-int32/infer")
    assert decode_reply(asked.body, None).outputs["y"].tobytes() == x.tobytes()


def test_a_key_update(ask):
    asked = ask("--key-update=1ms", AFTERWARDS)
    assert metadata(asked) and "key update confirmed" in asked.printed


def test_a_client_moves_to_another_address_and_has_it_validated(ask):
    asked = ask("--change-local-addr=1ms", AFTERWARDS)
    assert metadata(asked) and re.search(r"frm rx \d+ 1RTT PATH_RESPONSE", asked.printed)


def test_a_nat_gives_a_client_another_port(ask):
    """The client knows nothing of it: the gateway asks whether it is still the same."""
    asked = ask("--change-local-addr=1ms", "--nat-rebinding", AFTERWARDS)
    assert metadata(asked) and re.search(r"frm rx \d+ 1RTT PATH_CHALLENGE", asked.printed)


def test_many_requests_at_once(ask):
    asked = ask("-n", "50")
    assert metadata(asked) and asked.printed.count("[:status: 200]") == 50


def test_an_unknown_version_is_negotiated_away(ask):
    asked = ask("-v", "0x1a2a3a4a", "--preferred-versions=v1")
    assert metadata(asked) and "ERR_RECV_VERSION_NEGOTIATION" in asked.printed
