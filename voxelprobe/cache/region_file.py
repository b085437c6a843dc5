"""One region's chunks in one SQLite file, in the table that sqlitedict keeps.

Written through sqlitedict, as bytes and never as pickles. Read through sqlite3 itself: an error
while reading ends sqlitedict's thread and leaves its caller waiting for ever (docs/design/001-records.md).
Each value is the CRC32C of the payload, 4 bytes little-endian, then the payload; an empty payload
says that the store has no such chunk. SQLite has no checksums of its own, and a flipped bit here
would be a wrong label.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import sqlite3
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import google_crc32c

from voxelprobe.errors import TransportError

TABLE = "chunks"
_KEYS_A_QUERY = 500
_BUSY_SECONDS = 60.0


class DamagedRegionError(Exception):
    """The file isn't the database it should be; nothing in it can be trusted."""


class RegionFile:
    """A region's file. Every call opens and closes it: no connection outlives a fork."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self, chunks: Sequence[int]) -> set[int]:
        """Return which chunks the file has a row for."""
        return {int(row[0]) for row in self._select("key", chunks)}

    def read(self, chunks: Sequence[int]) -> dict[int, bytes]:
        """Return the payloads of those chunks that the file has, each held against its checksum."""
        payloads = {}
        for key, value in self._select("key, value", chunks):
            payload = bytes(value[4:])
            if len(value) < 4 or google_crc32c.value(payload) != int.from_bytes(value[:4], "little"):
                raise DamagedRegionError(f"row {key} doesn't match its checksum")
            payloads[int(key)] = payload
        return payloads

    def write(self, payloads: Mapping[int, bytes]) -> int:
        """Add or replace rows, commit them, and return their size in bytes."""
        rows = {str(chunk): google_crc32c.value(payload).to_bytes(4, "little") + payload
                for chunk, payload in payloads.items()}
        with self._writing() as table:
            table.update(rows)
        return sum(map(len, rows.values()))

    def discard(self, chunks: Iterable[int]) -> None:
        """Remove rows."""
        with self._locked(fcntl.LOCK_EX):
            if not self._path.exists():
                return
            with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as database, database:
                database.executemany(f"DELETE FROM {TABLE} WHERE key = ?", [(str(chunk),) for chunk in chunks])  # noqa: S608 (a constant)

    def remove(self) -> bool:
        """Delete the file unless another process is at work with it; return whether it is gone."""
        try:
            with self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB):
                for suffix in ("-wal", "-shm", ""):
                    with contextlib.suppress(FileNotFoundError):
                        os.remove(f"{self._path}{suffix}")
        except BlockingIOError:
            return False
        return True

    @contextlib.contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        # A file of its own: closing any handle of the database's file would drop SQLite's own locks.
        with open(self._path.with_suffix(".lock"), "ab") as lock:
            fcntl.flock(lock, mode)
            os.utime(lock.fileno())
            yield

    def _select(self, columns: str, chunks: Sequence[int]) -> Iterator[tuple[Any, ...]]:
        if not self._path.exists():
            return
        with self._locked(fcntl.LOCK_SH):
            if not self._path.exists():
                return
            try:
                with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as database:
                    for begin in range(0, len(chunks), _KEYS_A_QUERY):
                        keys = [str(chunk) for chunk in chunks[begin : begin + _KEYS_A_QUERY]]
                        marks = ",".join("?" * len(keys))
                        yield from database.execute(f"SELECT {columns} FROM {TABLE} WHERE key IN ({marks})", keys)  # noqa: S608 (constants and marks)
            except sqlite3.OperationalError as error:
                if "no such table" not in str(error):
                    raise TransportError(f"chunk cache {self._path}: {error}") from error
                # Killed between making the file and its table: nothing was stored yet.
            except sqlite3.DatabaseError as error:
                raise DamagedRegionError(str(error)) from error

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Any]:
        from sqlitedict import SqliteDict

        with self._locked(fcntl.LOCK_EX):
            try:
                self._probe()
                table = SqliteDict(
                    str(self._path), tablename=TABLE, autocommit=False, journal_mode="WAL",
                    encode=sqlite3.Binary, decode=bytes, outer_stack=False,
                )
                try:
                    yield table
                    _commit(table, self._path)
                finally:
                    # Forced: an ordinary close waits for a thread that an error may have ended.
                    thread = table.conn
                    table.close(do_log=False, force=True)
                    thread.join(_BUSY_SECONDS)
            except sqlite3.OperationalError as error:
                raise TransportError(f"chunk cache {self._path}: {error}") from error
            except sqlite3.DatabaseError as error:
                raise DamagedRegionError(str(error)) from error

    def _probe(self) -> None:
        """Raise `sqlite3.DatabaseError` here if the file is none: in sqlitedict's thread it would be printed."""
        if self._path.exists():
            with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as database:
                database.execute("PRAGMA journal_mode = WAL")


def _commit(table: Any, path: Path) -> None:
    """Commit, and fail if sqlitedict's thread dies of it (a full disk) instead of waiting for ever."""
    thread = table.conn
    answer: Queue[object] = Queue()
    thread.execute("--commit--", res=answer)
    while True:
        try:
            answer.get(timeout=0.5)
            break
        except Empty:
            if not thread.is_alive():
                raise TransportError(f"chunk cache {path}: a commit failed; is the disk full?") from None
    thread.check_raise_error()
