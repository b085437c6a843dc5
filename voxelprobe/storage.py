"""Folders of files that a run leaves, on a local disk or in a bucket: written whole or not at all."""

from __future__ import annotations

import contextlib
import fcntl
import fnmatch
import logging
import os
import re
import secrets
from collections.abc import Iterator
from pathlib import Path

from voxelprobe.errors import InputError, TransportError
from voxelprobe.locations import Location
from voxelprobe.transport.cloud import open_cloud_files, translate_error
from voxelprobe.transport.sources import open_source

logger = logging.getLogger(__name__)


class Folder:
    """A folder of outputs.

    A file appears under its name only when it is complete: locally it is flushed and renamed, on a
    bucket it is one PUT. `scratch` is a local folder for what is under way or downloaded; for a
    local folder it is the folder itself, so that the rename stays on one file system.
    """

    def __init__(self, location: Location, scratch: Path | None = None) -> None:
        self.location = location
        if location.path is None and scratch is None:
            raise ValueError("a folder on a bucket needs a scratch folder")
        self.local = scratch if location.path is None else location.path
        assert self.local is not None

    def path(self, name: str) -> Path:
        """Return where a file is on the local disk, or would be."""
        assert self.local is not None
        return self.local / name

    def child_url(self, name: str) -> str:
        """Return where a file is, as the user would name it."""
        return str(self.path(name)) if self.location.path is not None else f"{self.location.url}/{name}"

    @contextlib.contextmanager
    def new_file(self, name: str) -> Iterator[Path]:
        """Give a temporary local path to write to, and publish it as `name` if the block succeeds.

        Raises
        ------
        TransportError
            If the disk is full or the store refuses; the temporary file is gone then.
        """
        target = self.path(name)
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            # The suffix stays last: it tells writers the format.
            temporary = temporary_path(target)
            try:
                yield temporary
                with open(temporary, "rb") as file:
                    os.fsync(file.fileno())
                if self.location.path is None:
                    self._upload(name, temporary.read_bytes())
                os.replace(temporary, target)
            finally:
                temporary.unlink(missing_ok=True)
        except OSError as error:
            if isinstance(error, TransportError):
                raise
            raise TransportError(f"{self.location.url}/{name}: can't be written: {error.strerror or error}") from error

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file whole."""
        with self.new_file(name) as path:
            path.write_bytes(content)

    def read_bytes(self, name: str) -> bytes | None:
        """Return a file's content, or None if there is none."""
        if self.location.path is None:
            with contextlib.closing(open_source(self.location, threads=1)) as source:
                answer = source.fetch(name)
                return None if answer is None else answer.content
        try:
            return self.path(name).read_bytes()
        except (FileNotFoundError, NotADirectoryError):
            return None
        except OSError as error:
            raise TransportError(f"{self.path(name)}: {error.strerror or error}") from error

    def size(self, name: str) -> int | None:
        """Return a file's size in bytes, or None if there is none."""
        if self.location.path is None:
            url = f"{self.location.url}/{name}"
            try:
                # Not `head`: for an absent object it fails on GCS and in memory.
                size = open_cloud_files(self.location.url).size(name)
            except Exception as error:
                raise translate_error(error, url) from error
            return None if size is None else int(size)
        try:
            return self.path(name).stat().st_size
        except (OSError, ValueError):  # a name that no file can have
            return None

    def version(self, name: str) -> str | None:
        """Return what changes when a file is replaced, also by one of the same size; None if there is none."""
        if self.location.path is None:
            url = f"{self.location.url}/{name}"
            try:
                files = open_cloud_files(self.location.url)
                # `head` of an absent object fails on GCS and in memory.
                head = None if files.size(name) is None else files.head(name)
            except Exception as error:
                raise translate_error(error, url) from error
            return None if head is None else f"{head['Content-Length']} {head.get('ETag', '')}"
        try:
            stat = self.path(name).stat()
        except (OSError, ValueError):
            return None
        return f"{stat.st_size} {stat.st_mtime_ns}"

    def local_copy(self, name: str) -> Path:
        """Return a local path with a file's content: the file itself, or a download of it.

        Raises
        ------
        InputError
            If there is no such file.
        """
        path = self.path(name)
        if self.location.path is not None:
            if not path.exists():
                raise InputError(f"no file or folder at {path}")
            return path
        if not path.exists() or path.stat().st_size != self.size(name):
            content = self.read_bytes(name)
            if content is None:
                raise InputError(f"no file at {self.location.url}/{name}")
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = temporary_path(path)
            temporary.write_bytes(content)
            os.replace(temporary, path)
        return path

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
            lock = open(path, "ab")  # noqa: SIM115 (closed below, apart from what opening it may raise)
        except OSError as error:
            raise TransportError(f"{path}: can't be written: {error.strerror or error}") from error
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                logger.info("waiting for another process that is at %s", doing)
                fcntl.flock(lock, fcntl.LOCK_EX)
            yield

    def _upload(self, name: str, content: bytes) -> None:
        try:
            open_cloud_files(self.location.url).put(name, content, cache_control="no-cache")
        except Exception as error:
            raise translate_error(error, f"{self.location.url}/{name}") from error


def temporary_path(target: Path) -> Path:
    """Return a name beside `target` that no other process uses and that `Folder.sweep` knows."""
    return target.with_name(f".tmp-{os.getpid()}-{secrets.token_hex(4)}-{target.name}")
