"""What tests of every folder share: nothing of the user's own is read, and nothing is left running."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest

# Settings of the person at the keyboard that would change what a test sees.
_OWN_SETTINGS = ("LUIGI_CONFIG_PATH", "LUIGI_CONFIG_PARSER", "CLOUD_VOLUME_DIR", "CLOUD_FILES_DIR",
                 "VOXELPROBE_EXECUTION", "http_proxy", "HTTP_PROXY", "all_proxy", "ALL_PROXY",
                 # Else each of the hundreds of commands would compile the sources anew.
                 "PYTHONDONTWRITEBYTECODE")


@pytest.fixture(autouse=True, scope="session")
def _without_own_settings() -> None:
    for name in _OWN_SETTINGS:
        os.environ.pop(name, None)
    # A shell without a terminal starts what runs in the background so, and commands would inherit it.
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def luigid(tmp_path: Path) -> Iterator[int]:
    """The port of a real luigid, whose state is `luigid.state` in the test's folder."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [Path(sys.executable).parent / "luigid", "--address", "127.0.0.1", "--port", str(port), "--state-path",
             tmp_path / "luigid.state"]
    daemon = subprocess.Popen(words, cwd=tmp_path, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        deadline = time.monotonic() + 30
        while True:
            try:
                urllib.request.urlopen(f"http://127.0.0.1:{port}/api/task_list", timeout=5).close()
                break
            except OSError:
                assert time.monotonic() < deadline
                assert daemon.poll() is None
                time.sleep(0.05)
        yield port
    finally:
        daemon.terminate()
        daemon.wait(30)
