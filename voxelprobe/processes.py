"""Work in a process of its own, where a crash costs one item; and children that end with their parent."""

from __future__ import annotations

import builtins
import ctypes
import json
import math
import mmap
import os
import select
import signal
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from voxelprobe import errors
from voxelprobe.errors import CorruptDataError

if TYPE_CHECKING:
    # Tasks import this module to end with their parent; the engine's packages are loaded when they run.
    import numpy.typing as npt

STALL_SECONDS = 120.0
"""How long one item may take before its process is taken for hung."""

_PR_SET_PDEATHSIG = 1
# A child's exit status after it has reported an item and is not to be trusted with another.
_RETIRED = 77


def die_with_parent(parent: int | None = None, *, signal_number: int = signal.SIGKILL) -> None:
    """Have the kernel end this process when its parent ends, however that ends. Linux; elsewhere nothing.

    Parameters
    ----------
    parent
        Its id, where it is known: the parent may have ended before we ask.
    """
    if sys.platform == "linux":
        parent = os.getppid() if parent is None else parent
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal_number, 0, 0, 0)
        if os.getppid() != parent:  # it ended before we asked
            os.kill(os.getpid(), signal_number)


def shared_array(shape: tuple[int, ...], dtype: npt.DTypeLike) -> npt.NDArray[Any]:
    """Return a zeroed array whose memory is shared with processes forked after this."""
    import numpy as np

    count = math.prod(shape)
    memory = mmap.mmap(-1, max(count * np.dtype(dtype).itemsize, 1))
    return np.frombuffer(memory, dtype, count).reshape(shape)


def run_isolated(
    work: Callable[[int], None], count: int, *, what: str, stall_seconds: float = STALL_SECONDS
) -> dict[int, str]:
    """Call `work(0)`, …, `work(count - 1)` in a forked process and return what was wrong, by item.

    `work` leaves its results in shared arrays. An item that raises `CorruptDataError`, ends the
    process or hangs is reported, and the items after it are done by another process: native code
    that met damaged bytes may have damaged its own memory before it noticed.

    Parameters
    ----------
    what
        Who works, for messages: `the crackle decoder`.
    """
    wrong: dict[int, str] = {}
    cursor = shared_array((1,), "int64")
    start = 0
    while start < count:
        receive, send = os.pipe()
        child = os.fork()
        if child == 0:
            os.close(receive)
            _work_until_done(work, start, count, cursor, send)
        os.close(send)
        try:
            status = _watch(child, receive, cursor, stall_seconds, wrong)
        finally:
            os.close(receive)
        if status == 0 and int(cursor[0]) == count:
            break
        item = max(int(cursor[0]), start)  # it may have ended before its first item
        start = item + 1
        if os.waitstatus_to_exitcode(status) == _RETIRED and item in wrong:
            continue
        wrong[item] = f"{what} {_describe_end(os.waitstatus_to_exitcode(status))} on it"
    return wrong


def _work_until_done(
    work: Callable[[int], None], start: int, count: int, cursor: npt.NDArray[Any], send: int
) -> None:
    """Do the items in this forked process, and leave it."""
    end = 0
    try:
        die_with_parent()
        for item in range(start, count):
            cursor[0] = item
            try:
                work(item)
            except CorruptDataError as error:
                os.write(send, json.dumps([item, str(error)]).encode() + b"\n")
                end = _RETIRED
                return
        cursor[0] = count  # tells this end from an exit(0) inside of an item
    except BaseException as error:
        # Anything else is the parent's to raise.
        os.write(send, json.dumps([-1, [type(error).__name__, str(error)]]).encode() + b"\n")
    finally:
        # Whatever happens, this copy of the program must not go on with what the parent does next.
        os._exit(end)


def _restore_error(name: str, message: str) -> BaseException:
    """Return a child's error: of one of our classes or Python's, or one that says what it was.

    By its name and not pickled: a decoder that hostile data got hold of may write anything into the pipe.
    """
    kinds = {kind.__name__: kind for kind in vars(errors).values() if isinstance(kind, type)}
    kind = kinds.get(name) or getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, BaseException):
        with suppress(TypeError):  # some take more than a message
            return kind(message) if message else kind()
    return RuntimeError(f"{name}: {message}")


def _describe_end(code: int) -> str:
    if code == -signal.SIGKILL:
        return "was killed or made no progress"
    return f"crashed ({signal.Signals(-code).name})" if code < 0 else f"ended the process with status {code}"


def _watch(
    child: int, receive: int, cursor: npt.NDArray[Any], stall_seconds: float, wrong: dict[int, str]
) -> int:
    """Read a child's complaints until it ends, end it if it hangs; return its wait status."""
    received = b""
    seen, since = int(cursor[0]), time.monotonic()
    while True:
        ready, _, _ = select.select([receive], [], [], min(stall_seconds, 1.0))
        if ready:
            piece = os.read(receive, 65536)
            if not piece:
                break
            received += piece
        if int(cursor[0]) != seen:
            seen, since = int(cursor[0]), time.monotonic()
        elif time.monotonic() - since > stall_seconds:
            os.kill(child, signal.SIGKILL)
            break
    _, status = os.waitpid(child, 0)
    for line in received.split(b"\n")[:-1]:  # what isn't ended was cut off by its death
        item, message = json.loads(line)
        if item < 0:
            raise _restore_error(*message)
        wrong[item] = message
    return status
