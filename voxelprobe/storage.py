"""Folders of files that a run leaves, on a local disk or in a bucket: written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import hashlib
import logging
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from voxelprobe.buckets import Bucket
from voxelprobe.errors import CorruptDataError, InputError, TransportError
from voxelprobe.local_files import open_lock
from voxelprobe.locations import Location
from voxelprobe.transport.wrappers import strip_compression

# A larger object is downloaded a part at a time.
_WHOLE_BYTES = 64 << 20
# Of an object that is replaced while it is downloaded.
_DOWNLOADS = 5

logger = logging.getLogger(__name__)


class FileState(NamedTuple):
    """A file's size in bytes, and what changes when it is replaced, also by one of the same size."""

    size: int
    version: str


class Folder:
    """A folder of outputs.

    A file appears under its name only when it is complete: locally it is flushed and renamed, on a
    bucket it is one PUT. `scratch` is a local folder for what is under way or downloaded; for a
    local folder it is the folder itself, so that the rename stays on one file system. What is in scratch
    is used only if it is the object that the bucket has at that moment.
    """

    def __init__(self, location: Location, scratch: Path | None = None) -> None:
        self.location = location
        if location.path is None and scratch is None:
            raise ValueError("a folder on a bucket needs a scratch folder")
        self.local = scratch if location.path is None else location.path
        assert self.local is not None
        self._bucket = Bucket(location) if location.path is None else None
        self._written: dict[str, str] = {}

    def path(self, name: str) -> Path:
        """Return where a file is on the local disk, or would be."""
        assert self.local is not None
        return self.local / name

    def child_url(self, name: str) -> str:
        """Return where a file is, as the user would name it."""
        return str(self.path(name)) if self.location.path is not None else f"{self.location.url}/{name}"

    @contextlib.contextmanager
    def new_file(self, name: str, *, keep: bool = True) -> Iterator[Path]:
        """Give a temporary local path to write to, and publish it as `name` if the block succeeds.

        Parameters
        ----------
        keep
            Of what goes to a bucket, whether a copy stays on this machine, which will read it again.

        Raises
        ------
        AuthorizationError, TransportError
            If the disk is full or the store refuses; the temporary file is gone then.
        """
        target = self.path(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # The suffix stays last: it tells writers the format.
            temporary = temporary_path(target)
            try:
                yield temporary
                if self._bucket is not None:
                    version = self._bucket.put(name, temporary)
                    if keep:
                        _keep_copy(temporary, target, version)
                else:
                    version = _flush(temporary)
                    os.replace(temporary, target)
                self._written[name] = version
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            if isinstance(error, TransportError):
                raise
            where = f"{self.location.url}/{name}"
            if self._bucket is not None:
                where += f", on its way there in {target.parent},"
            raise TransportError(f"{where}: can't be written: {error.strerror or error}") from error

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file whole."""
        if self._bucket is not None:
            self._written[name] = self._bucket.put(name, content)
            return
        with self.new_file(name) as path:
            path.write_bytes(content)

    def write_first(self, name: str, content: bytes) -> bool:
        """Write a small file unless another machine was quicker; return whether it was written.

        Processes of one machine have a lock for that, which the caller holds.
        """
        if self._bucket is not None:
            return self._bucket.create(name, content)
        self.write_bytes(name, content)
        return True

    def read_bytes(self, name: str) -> bytes | None:
        """Return a file's content, or None if there is none."""
        if self._bucket is not None:
            found = self._bucket.read(name)
            return None if found is None else found[0]
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise TransportError(f"{self.path(name)}: {error.strerror or error}") from error

    def state(self, name: str) -> FileState | None:
        """Return a file's size and version, or None if there is none."""
        if self._bucket is not None:
            found = self._bucket.state(name)
            return None if found is None else FileState(*found)
        try:
            return _stat(self.path(name))
        except (OSError, ValueError):  # a name that no file can have
            return None

    def states(self, names: Sequence[str]) -> dict[str, FileState | None]:
        """Return size and version of many files by name, None of one that isn't there."""
        if self._bucket is None:
            return {name: self.state(name) for name in names}
        found = self._bucket.states(names)
        return {name: None if state is None else FileState(*state) for name, state in found.items()}

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, or None if there is none."""
        found = self.state(name)
        return None if found is None else found.size

    def version(self, name: str) -> str | None:
        """Return what changes when a file is replaced, also by one of the same size; None if there is none."""
        found = self.state(name)
        return None if found is None else found.version

    def written_version(self, name: str) -> str | None:
        """Return the version of a file as it was written through this object, whatever has become of it since."""
        return self._written.get(name)

    def local_copy(self, name: str) -> Path:
        """Return a local path with a file's content: the file itself, or a download of the object that is there now.

        Raises
        ------
        InputError
            If there is no such file.
        """
        path = self.path(name)
        if self._bucket is None:
            if not path.exists():
                raise InputError(f"no file or folder at {path}")
            return path
        for _ in range(_DOWNLOADS):
            state = self._bucket.state(name)
            if state is None:
                raise InputError(f"no file at {self.child_url(name)}")
            if _is_copy(path, state.version):
                return path
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_path(path)
            try:
                self._download(name, state.size, temporary)
                if self._bucket.state(name) == state:
                    _keep_copy(temporary, path, state.version)
                    return path
            except OSError as error:
                if isinstance(error, TransportError):
                    raise
                raise TransportError(f"{path}: can't be written: {error.strerror or error}") from error
            finally:
                temporary.unlink(missing_ok=True)
        raise TransportError(f"{self.child_url(name)}: was replaced while it was read, {_DOWNLOADS} times")

    def _download(self, name: str, size: int, to: Path) -> None:
        assert self._bucket is not None
        url = self.child_url(name)
        if size > _WHOLE_BYTES and not url.startswith(("http://", "https://")):  # which may know no ranges
            with open(to, "wb") as file:
                self._bucket.download(name, size, file)
            return
        content, encoding = self._bucket.read(name) or (b"", None)
        # A server may compress what it sends; a file that is compressed itself stays so.
        if encoding and not name.endswith((".gz", ".zst", ".br")):
            try:
                content = bytes(strip_compression(content, encoding))
            except CorruptDataError as error:
                raise TransportError(f"{url}: {error}") from error
        to.write_bytes(content)

    def sweep(self, pattern: str) -> None:
        """Delete what killed processes left half-written of files like `pattern`. Only for who holds their lock."""
        target = self.path(pattern)
        ours = re.compile(r"\.tmp-\d+-[0-9a-f]{8}-" + fnmatch.translate(target.name))
        for leftover in target.parent.glob(".tmp-*"):
            if ours.fullmatch(leftover.name):
                leftover.unlink(missing_ok=True)

    @contextlib.contextmanager
    def lock(self, name: str, doing: str) -> Iterator[None]:
        """Hold a lock file for this process; wait, and say so, while another process of this machine holds it."""
        path = self.path(name)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            lock = open_lock(path)
        except OSError as error:
            raise TransportError(f"{path}: can't be written: {error.strerror or error}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for another process that is at %s", doing)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield


def temporary_path(target: Path) -> Path:
    """Return a name beside `target` that no other process uses and that `Folder.sweep` knows."""
    return target.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{target.name}")


def _stat(path: Path) -> FileState:
    stat = path.stat()
    return FileState(stat.st_size, f"{stat.st_size} {stat.st_mtime_ns}")


def _flush(path: Path) -> str:
    """Bring a file to the disk, and return its version."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())
    return _stat(path).version


def _keep_copy(temporary: Path, path: Path, version: str) -> None:
    """Make a finished file the local copy of an object, with a note of which version of it that is."""
    # Part of a large table's fingerprint: the same for every copy of the same object.
    moment = int.from_bytes(hashlib.blake2b(version.encode(), digest_size=6).digest(), "big")
    os.utime(temporary, ns=(moment, moment))
    _flush(temporary)
    content = _note(temporary, version)
    os.replace(temporary, path)
    # The note names the very file: whatever comes between, or another process, it is never taken for another's.
    note = temporary_path(_note_path(path))
    note.write_text(content)
    os.replace(note, _note_path(path))


def _is_copy(path: Path, version: str) -> bool:
    """Return whether a local copy is there, untouched, of an object's version."""
    try:
        return bool(version) and _note_path(path).read_text() == _note(path, version)
    except (OSError, UnicodeDecodeError):
        return False


def _note(path: Path, version: str) -> str:
    stat = path.stat()
    return f"{version}\n{stat.st_ino} {stat.st_size} {stat.st_mtime_ns}\n"


def _note_path(path: Path) -> Path:
    # Not a name that a folder of tables is searched for.
    return path.with_name(f".{path.name}.version")
