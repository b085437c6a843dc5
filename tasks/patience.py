"""When to stop trying: stores that are silent for all groups in turn would take their timeouts for each of them.

A run of a hundred groups would end after a day, and say then what was known after minutes. Stores that fail at once
cost nothing, and may be back for the next group; so it is time that counts, without any task done between.
"""

from __future__ import annotations

import contextlib
import mmap
import struct
import time
from collections.abc import Iterator

from voxelprobe.errors import TransportError

FAILURES = 3
READ_TIMEOUTS = 5
# After that the stores are asked once more: who runs one command after the other in one process begins anew.
REFUSED_SECONDS = 60.0
# Failures in a row, when the first of them began, and when the last one ended: in memory that all processes of a
# command share by their fork.
_STREAK = struct.Struct("<qdd")
_shared = mmap.mmap(-1, _STREAK.size)


@contextlib.contextmanager
def within_patience(read_timeout: int, *, is_work: bool) -> Iterator[None]:
    """Let a task ask the stores, unless they have been failing for too long; what comes of it counts.

    Parameters
    ----------
    is_work
        Whether it does its work: then the stores are well again if it ends well. Else it only looks for its marker.

    Raises
    ------
    TransportError
        If three askings in a row have failed, whoever made them, and took five read timeouts or more.
    """
    started = time.monotonic()
    count, began, ended = _STREAK.unpack(_shared[:])
    seconds = ended - began
    if count >= FAILURES and seconds > READ_TIMEOUTS * read_timeout and started < ended + REFUSED_SECONDS:
        raise TransportError(f"not tried: stores or servers have failed {count} times in a row, for {seconds:.0f} s, "
                             "as said above; the same command goes on from here")
    try:
        yield
    except TransportError:
        count, began, _ = _STREAK.unpack(_shared[:])
        _shared[:] = _STREAK.pack(count + 1, began if count else started, time.monotonic())
        raise
    if is_work:
        _shared[:] = bytes(_STREAK.size)
