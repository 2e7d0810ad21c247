# SPDX-License-Identifier: Apache-2.0
"""An `oip:` backend over the Unix socket of a real model server."""

from __future__ import annotations

from pathlib import Path
from time import monotonic

import numpy as np

from backends.remote.oip import OipBackend
from inferlane import oip
from tests.fakes import programs
from tests.fakes.asking import request_of


async def test_a_model_server_answers_over_its_socket(model_folder: Path, tmp_path: Path):
    socket = tmp_path / "models.sock"
    command = ["serve", model_folder, "--http", "127.0.0.1:0", "--udp", "127.0.0.1:0", "--socket", socket]
    with programs.of_ours(command, tmp_path / "serve.log") as program:
        program.event("serving")
        backend = OipBackend("http://models", slots=2, unix=socket, model="doubling")
        await backend.start()
        try:
            described = await backend.metadata("whatever", "", deadline=monotonic() + 60)
            assert b'"times"' in described.body
            times, x = np.array([3]), np.array([2.0], dtype=np.float32)
            body, json_length = oip.encode_request({"times": times, "x": x})
            reply = await backend.infer(request_of(body, model="whatever", json_length=json_length))
            assert oip.decode_reply(reply.body, reply.json_length).outputs["y"] == [16]
        finally:
            await backend.close()
