"""How long a server may be silent: one number for every connection that this process opens.

It decides nothing about a result, and no source is opened where it is chosen: so it is the process's, and not handed
through a run.
"""

from __future__ import annotations

from voxelprobe.errors import InputError

CONNECT_TIMEOUT_SECONDS = 10
READ_TIMEOUT_SECONDS = 60
# A graph server's answer to many ids begins when all of them are done: it may compute for as long as its own limit.
_GRAPH_SERVER_FACTOR = 10

_seconds = READ_TIMEOUT_SECONDS


def set_read_timeout(seconds: int) -> None:
    """Choose after how many seconds a silent connection is given up; for connections opened after this.

    Raises
    ------
    InputError
        If it is less than a second.
    """
    global _seconds  # noqa: PLW0603 (the process's)
    if seconds < 1:
        raise InputError(f"read-timeout {seconds}: expected a second or more")
    _seconds = seconds


def read_timeout_seconds() -> int:
    """Return after how many seconds a silent store is given up."""
    return _seconds


def timeouts_seconds() -> tuple[float, float]:
    """Return how long a connection may take to be made, and then be silent."""
    return float(CONNECT_TIMEOUT_SECONDS), float(_seconds)


def graph_timeout_seconds() -> float:
    """Return after how many seconds a silent graph server is given up."""
    return float(_GRAPH_SERVER_FACTOR * _seconds)
