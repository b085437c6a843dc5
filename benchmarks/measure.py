"""What a command costs: wall time, CPU, memory of each of its processes, traffic, what it leaves in a workspace.

Memory is the kernel's VmHWM (/proc/PID/status), a process's own high-water mark of resident memory, read of every
process of the tree each 20 ms: exact but for what a process grows in the last 20 ms of its life. `ru_maxrss` of wait4
would need no reading, but it begins with the peak of whoever started the command, here a program that has read tables.
Pages of mapped files that lie in memory are part of it; `anonymous` is without them, of all processes together.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from benchmarks.store import Served
from voxelprobe.processes import die_with_parent

SAMPLE_SECONDS = 0.02
STAGES = ("plan", "fetch", "decode", "merge")


@dataclass(slots=True)
class Cost:
    """What one run of a command cost.

    Attributes
    ----------
    peaks
        Bytes of resident memory at the peak, of each process, the largest first.
    anonymous
        Bytes of memory that is no file's, of all processes together, at the peak.
    written
        Bytes that the processes had written to disks when they were last looked at.
    server
        The store's counters: requests, bytes, not_found, max_in_flight, cpu_seconds.
    stages, elapsed
        Seconds of each stage: summed over the groups, and while any group was in it; "all" is while any was in any.
    workspace
        Bytes of files that are left, by kind: plan, labels, cache, other.
    """

    wall: float
    cpu: float
    status: int
    output: str
    peaks: list[int]
    anonymous: int
    written: int
    server: dict[str, float] = field(default_factory=dict)
    stages: dict[str, float] = field(default_factory=dict)
    elapsed: dict[str, float] = field(default_factory=dict)
    workspace: dict[str, int] = field(default_factory=dict)

    @property
    def peak(self) -> int:
        """Bytes of the largest process."""
        return max(self.peaks, default=0)


def run_measured(
    command: Sequence[str], *, cwd: Path, environment: Mapping[str, str], server: Served | None = None,
    workspace: Path | None = None, timeout_seconds: float = 3600.0,
) -> Cost:
    """Return what a command cost; its processes are a group of their own, and ended with it."""
    if server is not None:
        server.reset()
    log = cwd / f"output-{os.getpid()}.log"
    with log.open("wb") as file:
        started = time.perf_counter()
        # Its session is its own, so that it can be ended whole; it must not outlive this program either.
        process = subprocess.Popen(
            command, cwd=cwd, env=dict(environment), stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT,
            start_new_session=True, preexec_fn=die_with_parent)  # noqa: PLW1509 (no other thread is running yet)
        sampler = _Sampler(process.pid)
        alarm = threading.Timer(timeout_seconds, os.killpg, (process.pid, signal.SIGKILL))
        alarm.start()
        try:
            _, status, usage = os.wait4(process.pid, 0)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
            raise
        finally:
            alarm.cancel()
            sampler.stop()
        wall = time.perf_counter() - started
    process.returncode = os.waitstatus_to_exitcode(status)  # it was waited for here, not by Popen
    text = log.read_text(errors="replace")
    log.unlink()
    cost = Cost(wall, usage.ru_utime + usage.ru_stime, process.returncode, text,
                sorted(sampler.peaks.values(), reverse=True), sampler.anonymous, sampler.written)
    if server is not None:
        cost.server = server.counters()
    if workspace is not None and workspace.exists():
        cost.stages, cost.elapsed = read_stages(workspace)
        cost.workspace = measure_workspace(workspace)
    return cost


class _Sampler:
    """Looks at the processes of a tree while they live."""

    def __init__(self, root: int) -> None:
        self.peaks: dict[int, int] = {}
        self.written = self.anonymous = 0
        self._root = root
        self._ended = threading.Event()
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """End the thread."""
        self._ended.set()
        self._thread.join()

    def _watch(self) -> None:
        while not self._ended.wait(SAMPLE_SECONDS):
            anonymous = written = 0
            for pid in list_tree(self._root):
                try:
                    with open(f"/proc/{pid}/status", "rb") as file:
                        fields = dict(line.split(b":", 1) for line in file.read().splitlines() if b":" in line)
                    with open(f"/proc/{pid}/io", "rb") as file:
                        counts = dict(line.split(b": ", 1) for line in file.read().splitlines())
                except OSError:
                    continue
                # A process that has ended but was not waited for has no memory any more.
                if b"VmHWM" in fields:
                    self.peaks[pid] = max(self.peaks.get(pid, 0), _kilobytes(fields[b"VmHWM"]))
                    anonymous += _kilobytes(fields[b"RssAnon"])
                    # With those of its children that have ended: the kernel adds them when they are waited for.
                    written += int(counts[b"write_bytes"])
            self.anonymous, self.written = max(self.anonymous, anonymous), max(self.written, written)


def _kilobytes(text: bytes) -> int:
    return int(text.split()[0]) << 10


def list_tree(root: int) -> list[int]:
    """Return a process and all that descend from it and whose parents live."""
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        try:
            for thread in os.listdir(f"/proc/{pid}/task"):
                with open(f"/proc/{pid}/task/{thread}/children", "rb") as file:
                    todo += map(int, file.read().split())
        except OSError:
            continue
    return found


def read_stages(workspace: Path) -> tuple[dict[str, float], dict[str, float]]:
    """Return the seconds of each stage of the last run in a workspace, summed, and as they passed."""
    reports = sorted(workspace.glob("runs/*/report.json"), key=lambda path: path.stat().st_mtime)
    if not reports:
        return {}, {}
    folder, report = reports[-1].parent, json.loads(reports[-1].read_text())
    summed = {stage: float(report["seconds"][stage]) for stage in STAGES}
    elapsed, together = dict(summed), []
    for stage, kind in (("fetch", "fetch"), ("decode", "labels")):
        spans = []
        for marker in folder.glob(f"{kind}/group-*.json"):
            end = marker.stat().st_mtime
            spans.append((end - json.loads(marker.read_text())["facts"]["seconds"], end))
        elapsed[stage] = _cover(spans)
        together += spans
    # One worker may fetch while another decodes.
    elapsed["all"] = summed["plan"] + _cover(together) + summed["merge"]
    return summed, elapsed


def _cover(spans: list[tuple[float, float]]) -> float:
    """Return how long at least one of the spans lasted."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(spans):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def measure_workspace(workspace: Path) -> dict[str, int]:
    """Return the bytes of a workspace's files by kind."""
    sizes = dict.fromkeys(("plan", "labels", "cache", "other"), 0)
    for path in workspace.rglob("*"):
        if path.is_file():
            parts = path.relative_to(workspace).parts
            kind: Any = parts[0] if parts[0] == "cache" else parts[2] if len(parts) > 3 else "other"
            sizes[kind if kind in sizes else "other"] += path.stat().st_size
    return sizes
