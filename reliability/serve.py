"""A store in a process of its own, which can be killed and started again on its port: `python -m reliability.serve`."""

from __future__ import annotations

import contextlib
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

from voxelprobe.testing.http_store import HttpStore


class MortalStore:
    """A store on a port of its own that dies and comes back."""

    def __init__(self, folder: Path, latency_seconds: float) -> None:
        self._folder = folder
        self._latency_seconds = latency_seconds
        self.port = 0
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        """Return the address, the same after every death."""
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> None:
        """Serve, on the same port as before."""
        words = [sys.executable, "-m", "reliability.serve", str(self._folder), str(self.port),
                 str(self._latency_seconds)]
        self._process = subprocess.Popen(words, stdout=subprocess.PIPE, text=True, cwd=Path(__file__).parents[1])
        assert self._process.stdout is not None
        self.port = int(self._process.stdout.readline())

    def kill(self) -> None:
        """Die as a process does that is killed: connections are reset."""
        if self._process is not None:
            with self._process as process:
                process.send_signal(signal.SIGKILL)
        self._process = None


@contextlib.contextmanager
def mortal_store(folder: Path, *, latency_seconds: float = 0.0) -> Iterator[MortalStore]:
    """Give a store that serves a folder, and leave none."""
    store = MortalStore(folder, latency_seconds)
    store.start()
    try:
        yield store
    finally:
        store.kill()


def main() -> None:
    """Serve until killed: FOLDER PORT LATENCY."""
    store = HttpStore(Path(sys.argv[1]), latency_seconds=float(sys.argv[3]))
    store.port = int(sys.argv[2])
    with store:
        print(store.url.rsplit(":", 1)[-1], flush=True)
        threading.Event().wait()


if __name__ == "__main__":
    main()
