"""The walk-through of docs/stores.md: its commands do what it says that they do."""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]
TEXT = (CHECKOUT / "docs/stores.md").read_text()
SERVER, UPLOAD, RUN, SHOW = re.findall("```sh\n(.*?)```", TEXT, re.DOTALL)
SAID_BY_RUN, SAID_BY_SHOW = re.findall("```text\n(.*?)```", TEXT, re.DOTALL)
PORT = "5555"  # of the document


@pytest.fixture
def port(tmp_path: Path) -> Iterator[str]:
    """The port of a server that the document's first command started, on one that is free."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        number = str(free.getsockname()[1])
    command = SERVER.replace(PORT, number).split()
    command[0] = str(Path(sys.executable).parent / command[0])
    with open(tmp_path / "log", "w") as log, subprocess.Popen(command, stdout=log, stderr=log) as moto:
        deadline = time.monotonic() + 60
        while not _answers(int(number)):
            assert moto.poll() is None
            assert time.monotonic() < deadline
            time.sleep(0.05)
        yield number
        moto.terminate()


def _answers(port: int) -> bool:
    with socket.socket() as tried:
        return tried.connect_ex(("127.0.0.1", port)) == 0


def mask(text: str) -> list[str]:
    """Return lines without what differs from run to run: the seconds, and which points the audit draws."""
    lines = [re.sub(r"^seconds.*", "seconds", line).rstrip() for line in text.strip().splitlines()]
    return [re.sub(r"^(audit +)\d+ (.*) \([\d.]+ s\)", r"\1some \2", line) for line in lines]


def test_the_walk_through(tmp_path: Path, port: str) -> None:
    """Copied and pasted, the commands end well and print what the document shows; the run again has nothing to do."""
    (tmp_path / "checkout").mkdir()
    (tmp_path / "checkout/demo").symlink_to(CHECKOUT / "demo")
    (tmp_path / "tmp").mkdir()
    env = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "HOME": str(tmp_path),
                        "TMPDIR": str(tmp_path / "tmp")}
    script = "\n".join(["set -e", UPLOAD, RUN, "echo =====", SHOW, "echo =====", RUN]).replace(PORT, port)
    ended = subprocess.run(["bash", "-c", script], cwd=tmp_path / "checkout", env=env, text=True, capture_output=True,
                           timeout=200, check=False)
    assert ended.returncode == 0, ended.stderr
    run, show, again = ended.stdout.replace(port, PORT).split("=====\n")
    assert mask(run) == mask(SAID_BY_RUN)
    assert mask(show) == mask(SAID_BY_SHOW)
    assert "nothing to do" in again + ended.stderr
