# SPDX-License-Identifier: Apache-2.0
"""The demo as a newcomer runs it, and its labels against those of Magika's own program."""

from __future__ import annotations

import json
import socket
import subprocess

import pytest

from proxy.config.loading import load
from proxy.config.settings import Bind
from proxy.demo.inputs import samples
from proxy.demo.model import DIRECTORY, DemoError
from proxy.demo.showing import CONF, SCHEMES, demo

pytestmark = pytest.mark.needs_model


@pytest.fixture
def config():
    """conf/demo.yaml on free ports, with deadlines that a busy machine keeps."""
    loaded = load(CONF)
    classes = tuple(each.model_copy(update={"deadline": 60.0}) for each in loaded.classes)
    listeners = tuple(each.model_copy(update={"bind": (Bind("127.0.0.1", 0),)}) for each in loaded.listeners)
    admin = loaded.admin.model_copy(update={"bind": Bind("127.0.0.1", 0)})
    return loaded.model_copy(update={"classes": classes, "listeners": listeners, "admin": admin})


def own_labels(files) -> dict[str, str]:
    """What the wheel's program, which nobody here wrote, says of the files."""
    done = subprocess.run([DIRECTORY / "magika", "--json", *files], capture_output=True, text=True, check=True)
    return {each["path"]: each["result"]["value"]["output"]["label"] for each in json.loads(done.stdout)}


async def test_all_transports_give_the_labels_that_magika_itself_gives(config):
    rows = await demo(config, repetitions=2)
    assert {row.transport for row in rows} == set(SCHEMES)
    assert {row.served_class for row in rows} == {"realtime", "interactive", "batch"}
    assert all(len(row.timings) == 2 and not row.refused for row in rows)
    # The picture went with the demo's own folder; the other files are still there.
    kept = {str(row.sample.file): row.answer.label for row in rows if row.sample.file.exists()}
    assert kept == own_labels(kept)
    assert {row.answer.label for row in rows} == {"png", "yaml", "markdown", "python", "elf"}


def test_magika_itself_knows_the_picture(tmp_path):
    picture = samples(CONF.parent.parent, tmp_path)[0].file
    assert own_labels([picture]) == {str(picture): "png"}


async def test_a_taken_port_is_one_line(config):
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as taken:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]
        listeners = tuple(each.model_copy(update={"bind": (Bind("127.0.0.1", port),)}) for each in config.listeners)
        with pytest.raises(DemoError) as caught:
            await demo(config.model_copy(update={"listeners": listeners}))
    assert f"127.0.0.1:{port}" in str(caught.value) and "stop what listens there" in str(caught.value)
    assert "\n" not in str(caught.value)
