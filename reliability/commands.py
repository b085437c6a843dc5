"""The command line in processes of its own, on a machine that is a folder; and who of its processes is alive."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

# No command here needs as long, however busy the machine is: more is a hang.
PATIENCE_SECONDS = 150.0
# How long processes may outlive the one that started them.
ORPHAN_SECONDS = 20.0
_POLL_SECONDS = 0.005


class Ended(NamedTuple):
    """How a command ended: its status (None: it had to be stopped), what it said, and how long it took."""

    code: int | None
    said: str
    seconds: float


class Command:
    """A command under way, the leader of a session of its own."""

    def __init__(self, words: list[str], env: Mapping[str, str], cwd: Path, log: Path) -> None:
        self._log = log
        self._started = time.monotonic()
        with log.open("wb") as output:
            self.process = subprocess.Popen(words, cwd=cwd, env=env, start_new_session=True, stdin=subprocess.DEVNULL,
                                            stdout=output, stderr=output)

    @property
    def pid(self) -> int:
        """Return the id of the process, of its group and of its session."""
        return self.process.pid

    def is_under_way(self) -> bool:
        """Return whether the command's own process is alive."""
        return self.process.poll() is None

    def processes(self) -> set[int]:
        """Return the ids of all processes of the session that are alive, orphans included."""
        return processes_of_session(self.pid)

    def strike(self, whom: str, number: int) -> None:
        """Send a signal to the `parent`, to the oldest `worker` (the parent if there is none) or to the `group`."""
        with contextlib.suppress(ProcessLookupError):
            if whom == "group":
                os.killpg(self.pid, number)
            elif whom == "parent":
                os.kill(self.pid, number)
            else:
                os.kill(min(self.processes() - {self.pid}, default=self.pid), number)

    def wait(self, seconds: float = PATIENCE_SECONDS) -> Ended:
        """Return how the command ends; a command that hangs is stopped."""
        code: int | None
        try:
            code = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            code = None
            self.stop()
        return Ended(code, self._log.read_text(errors="replace"), time.monotonic() - self._started)

    def wait_for_orphans(self, seconds: float = ORPHAN_SECONDS) -> float | None:
        """Return after how many seconds no process of the session was left, or None if one still is."""
        started = time.monotonic()
        while self.processes() - {self.pid}:
            if time.monotonic() - started > seconds:
                return None
            time.sleep(_POLL_SECONDS)
        return time.monotonic() - started

    def stop(self) -> None:
        """Leave no process of the session."""
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        self.process.wait()


class Machine:
    """A home, a TMPDIR and a working folder, and the commands that are started there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.workspace = folder / "workspace"
        self._commands: list[Command] = []
        for name in ("home", "temporary", "cwd", "logs"):
            (folder / name).mkdir(parents=True, exist_ok=True)

    def start(self, parameters: Mapping[str, Any], *, task: str = "SamplePoints",
              env: Mapping[str, str] | None = None) -> Command:
        """Return a command under way; `fetch_threads: 2` is `--fetch-threads 2`."""
        words = [str(Path(sys.executable).parent / "luigi"), "--module", "pipeline", task]
        for name, value in ({"workspace": self.workspace} | dict(parameters)).items():
            words += ["--" + name.replace("_", "-"), str(value)]
        own = {"HOME": str(self.folder / "home"), "TMPDIR": str(self.folder / "temporary")}
        log = self.folder / "logs" / f"{len(self._commands):03d}.txt"
        self._commands.append(Command(words, os.environ | own | dict(env or {}), self.folder / "cwd", log))
        return self._commands[-1]

    def run(self, parameters: Mapping[str, Any], *, task: str = "SamplePoints",
            env: Mapping[str, str] | None = None) -> Ended:
        """Return how a command ended."""
        return self.start(parameters, task=task, env=env).wait()

    @property
    def run_folder(self) -> Path | None:
        """Return the folder of the one run in the workspace, or None before there is one."""
        return next((self.workspace / "runs").glob("*"), None)

    def close(self, *, remove: bool = True) -> None:
        """Stop what still runs, and delete the machine."""
        for command in self._commands:
            command.stop()
        if remove:
            shutil.rmtree(self.folder, ignore_errors=True)


def processes_of_session(session: int) -> set[int]:
    """Return the ids of the processes of a session that are alive, zombies left out. Linux."""
    found = set()
    for entry in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = entry.read_text().rsplit(")", 1)[1].split()
        except OSError:  # it has just ended
            continue
        if int(fields[3]) == session and fields[0] != "Z":
            found.add(int(entry.parent.name))
    return found
