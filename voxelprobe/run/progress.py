"""How far a run is, gathered from all its processes and shown to the person at the terminal.

Each process counts in its own cells of a small memory-mapped file; whoever is due next reads them
all and shows the sum. Nothing here decides anything: a lost count costs a wrong percentage.
"""

from __future__ import annotations

import contextlib
import json
import logging
import mmap
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

STAGES = ("plan", "fetch", "decode", "resolve", "merge")
_UNITS = {"plan": "points", "fetch": "chunks", "decode": "chunks", "resolve": "supervoxels", "merge": "rows"}
_TOTAL, _DONE, _BYTES = range(3)
_MAX_GROUPS = 256
_TERMINAL_SECONDS = 0.2
_LINE_SECONDS = 5.0
_BAR_WIDTH = 16

logger = logging.getLogger(__name__)
StatusReport = Callable[[str, int], None]
"""Told a message and a percentage; Luigi's status of a task."""


class ProgressBoard:
    """The counters of a run's execution.

    Parameters
    ----------
    folder
        The run's local folder.
    execution
        Which execution of the run: a resumed one counts only what it does itself.
    report
        Told of this process's own stage now and then.
    """

    def __init__(self, folder: Path, execution: str, report: StatusReport | None = None) -> None:
        self._path = folder / f"progress-{execution}.bin"
        self._json = folder / "progress.json"
        # The first row of each stage: when it began, when something was last shown.
        shape = (len(STAGES), _MAX_GROUPS + 1, 3)
        size = int(np.prod(shape)) * 8
        try:
            folder.mkdir(parents=True, exist_ok=True)
            handle = os.open(self._path, os.O_RDWR | os.O_CREAT, 0o644)
            try:
                # Not just a size: writing to a map of a file without blocks, on a full disk, ends the process.
                os.posix_fallocate(handle, 0, size)
                cells = mmap.mmap(handle, size)
            finally:
                os.close(handle)
        except OSError:
            # Nothing depends on the counters: without room for them this process has its own.
            cells = mmap.mmap(-1, size)
        self._cells = np.frombuffer(cells, np.int64).reshape(shape)
        self._report = report
        self._reported = 0.0
        self._terminal = sys.stderr.isatty()

    def expect(self, stage: str, group: int, total: int) -> None:
        """Say how much a group has to do in a stage."""
        self._cells[STAGES.index(stage), group + 1, _TOTAL] = total

    def add(self, stage: str, group: int, done: int, received: int) -> None:
        """Count work done, and show the whole if it is time."""
        cells = self._cells[STAGES.index(stage)]
        now = time.time_ns()
        if cells[0, _TOTAL] == 0:
            cells[0, _TOTAL] = now
        cells[group + 1, _DONE] += done
        cells[group + 1, _BYTES] += received
        if self._report is not None and now - self._reported > 5e8:
            self._reported = now
            total = max(int(cells[group + 1, _TOTAL]), 1)
            own = int(cells[group + 1, _DONE])
            self._report(f"{own:,} of {total:,} {_UNITS[stage]}", min(100 * own // total, 100))
        shown = self._cells[0, 0]
        if now - shown[_DONE] > (_TERMINAL_SECONDS if self._terminal else _LINE_SECONDS) * 1e9:
            if shown[_DONE] or self._terminal:  # no plain line for a run of a moment
                self._show(now)
            shown[_DONE] = now

    def clear(self) -> None:
        """Take the bar off the terminal and the counters off the disk."""
        if self._terminal:
            sys.stderr.write("\r\x1b[2K")
            sys.stderr.flush()
        clear_counters(self._path.parent)

    def summary(self) -> dict[str, dict[str, float]]:
        """Return, for each stage under way, done, total, bytes, rate a second and seconds left."""
        now = time.time_ns()
        stages: dict[str, dict[str, float]] = {}
        for index, stage in enumerate(STAGES):
            cells = self._cells[index]
            total, done, received = (int(n) for n in cells[1:].sum(axis=0))
            if not cells[0, _TOTAL] or not total:
                continue
            seconds = max((now - int(cells[0, _TOTAL])) / 1e9, 1e-3)
            rate = done / seconds
            stages[stage] = {"done": done, "total": total, "bytes": received, "bytes_per_second": received / seconds,
                             "per_second": rate, "seconds_left": max(total - done, 0) / rate if rate else -1.0}
        return stages

    def _show(self, now: int) -> None:
        stages = self.summary()
        with contextlib.suppress(OSError):
            temporary = self._json.with_name(f".tmp-{os.getpid()}-progress.json")
            temporary.write_text(json.dumps(stages))
            os.replace(temporary, self._json)
        open_stages = {stage: facts for stage, facts in stages.items() if facts["done"] < facts["total"]}
        parts = [_describe(stage, facts, bar=self._terminal) for stage, facts in open_stages.items()]
        if not parts:
            return
        if self._terminal:
            width = os.get_terminal_size(sys.stderr.fileno()).columns or 80  # 0: the terminal doesn't say
            sys.stderr.write("\r\x1b[2K" + "  ".join(parts)[: width - 1])
            sys.stderr.flush()
        else:
            for part in parts:
                logger.info("%s", part)


def clear_counters(folder: Path) -> None:
    """Delete the counters of all executions, of killed ones too; one that is under way counts on in what it has."""
    for pattern in ("progress-*.bin", ".tmp-*-progress.json"):
        for path in folder.glob(pattern):
            with contextlib.suppress(OSError):
                path.unlink()


def _describe(stage: str, facts: dict[str, float], *, bar: bool) -> str:
    done, total = int(facts["done"]), int(facts["total"])
    share = done / max(total, 1)
    filled = round(share * _BAR_WIDTH)
    text = f"{stage} " + (f"[{'#' * filled}{'.' * (_BAR_WIDTH - filled)}] " if bar else "")
    text += f"{done:,}/{total:,} {_UNITS[stage]} {share:.0%}"
    if facts["bytes"]:
        text += f", {format_bytes(facts['bytes'])}, {format_bytes(facts['bytes_per_second'])}/s"
    else:
        text += f", {facts['per_second']:,.0f}/s"
    if facts["seconds_left"] >= 0:
        text += f", {format_seconds(facts['seconds_left'])} left"
    return text


def format_bytes(count: float) -> str:
    """Return a size as people write it: `310 MB`."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.0f} {unit}" if count >= 10 or unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    return f"{count:.1f} TB"


def format_seconds(seconds: float) -> str:
    """Return a duration as people write it: `12 s`, `3 min 20 s`, `2 h 05 min`."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
