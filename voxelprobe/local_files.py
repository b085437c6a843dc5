"""Files and folders of this machine in places where another user may have been before us."""

from __future__ import annotations

import contextlib
import os
import resource
import stat
from pathlib import Path
from typing import BinaryIO

from voxelprobe.errors import InputError, TransportError

# Beyond that nobody runs out of descriptors, and counting them takes long.
_MOST_COUNTED = 1 << 16
_FEW = 8


def open_lock(path: Path) -> BinaryIO:
    """Return a lock file, opened, and made if there was none; a link in its place is an OSError and not followed.

    In a folder that others may write to, a link would have us make or touch a file of our own somewhere else.
    """
    return os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC, 0o666), "ab")


def private_folder(path: Path) -> Path:
    """Return a folder that belongs to this user alone, made if it isn't there; for places that all users write to.

    Raises
    ------
    InputError
        If somebody else made it, or may write to it, or it is a link: what is in it is not to be trusted. One of ours
        that others may only read is closed to them.
    """
    try:
        with contextlib.suppress(FileExistsError):
            path.mkdir(mode=0o700)
        state = path.lstat()
    except OSError as error:
        raise TransportError(f"{path}: can't be made: {error.strerror or error}") from error
    found = ""
    if not stat.S_ISDIR(state.st_mode):
        found = "a link" if stat.S_ISLNK(state.st_mode) else "no folder"
    elif state.st_uid != os.getuid():
        found = f"one of user {state.st_uid}"
    elif state.st_mode & 0o022:
        found = f"one that others may write to (mode {stat.S_IMODE(state.st_mode):o})"
    elif state.st_mode & 0o055:
        path.chmod(0o700)
    if found:
        raise InputError(f"{path}: expected a folder of this user's alone (mode 700), found {found}; remove it, or set "
                         "TMPDIR to a folder that nobody else writes to")
    return path


def describe_open_files() -> str:
    """Return how many files this process has open if that is nearly all that it may, for a message; else ""."""
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    if most > _MOST_COUNTED:
        return ""
    count = 0
    for number in range(most):
        with contextlib.suppress(OSError):
            os.fstat(number)
            count += 1
    # Whoever failed has closed its own by now.
    return f" ({count} of at most {most} files are open: raise `ulimit -n`)" if count >= most - _FEW else ""
