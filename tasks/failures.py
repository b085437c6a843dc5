"""Groups whose chunks could not be had: noted when it happens, listed when the command ends."""

from __future__ import annotations

import atexit
import contextlib
import logging
import mmap
import os
from collections.abc import Iterator
from typing import Any

from voxelprobe.errors import VoxelProbeError

_MAIN_PROCESS = os.getpid()
# Set by whichever worker has a group fail, for the main process to know at its end: this memory is shared by the fork.
_A_GROUP_FAILED = mmap.mmap(-1, 1)
_OPENED: list[tuple[Any, str]] = []


def remember_run(run: Any, execution: str) -> None:
    """Have a run's failed points listed at the end, if there are any."""
    _OPENED.append((run, execution))


@contextlib.contextmanager
def noting_failure(run: Any, group: int, execution: str) -> Iterator[None]:
    """Leave a note if a group ends with an error of ours, which goes on."""
    try:
        yield
    except VoxelProbeError as error:
        from voxelprobe.run.failed import note_failed_group

        with contextlib.suppress(VoxelProbeError):  # what went wrong first is what is to be said
            note_failed_group(run, group, str(error), execution)
            _A_GROUP_FAILED[0] = 1
        raise


@atexit.register
def _list_failed() -> None:
    """List the points of the groups that failed: nobody merges then, and no task is told of the end."""
    if os.getpid() != _MAIN_PROCESS or not _A_GROUP_FAILED[0]:
        return
    from voxelprobe.run.failed import write_failed

    for run, execution in _OPENED:
        try:
            failed = write_failed(run, execution)
        except (VoxelProbeError, OSError) as error:
            logging.getLogger("voxelprobe").error("the points that could not be read can't be listed: %s", error)
            continue
        if failed["points"]:
            logging.getLogger("voxelprobe").error("%s points could not be read, listed in %s; the same command goes on",
                                                  f"{failed['points']:,}", failed["table"])
