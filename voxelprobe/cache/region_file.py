"""One region's chunks in one SQLite file, in the table that sqlitedict keeps.

Written through sqlitedict, as bytes and never as pickles. Read through sqlite3 itself: an error
while reading ends sqlitedict's thread and leaves its caller waiting for ever (docs/design/001-records.md).
Each value is a CRC32C, 4 bytes little-endian, then the payload; an empty payload says that the store
has no such chunk. SQLite has no checksums of its own, and a flipped bit here would be a wrong label.
The checksum covers the chunk's number too: a flipped bit in SQLite's index hands out another chunk's row.
"""

from __future__ import annotations

import contextlib
import fcntl
import logging
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
# How sqlitedict's thread ends the answer to a statement.
_NO_MORE = "--no more--"
_BUSY_SECONDS = 60.0
# What SQLite complains of when the disk, and not the file's content, is at fault.
_DISK_ERRORS = frozenset({
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_AUTH,
})


class DamagedRegionError(Exception):
    """The file isn't the database it should be; nothing in it can be trusted."""


class RegionFile:
    """A region's file. Every call opens and closes it: no connection outlives a fork."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self, chunks: Sequence[int]) -> set[int]:
        """Return which chunks the file has a row for."""
        known = set()
        with self._reading() as database:
            for (key,) in _select(database, "key", chunks):
                known.add(int(key))
        return known

    def read(self, chunks: Sequence[int]) -> dict[int, bytes]:
        """Return the payloads of those chunks that the file has, each held against its checksum."""
        payloads = {}
        with self._reading() as database:
            for key, value in _select(database, "key, value", chunks):
                payload = value[4:]
                if not isinstance(payload, bytes) or _checksum(str(key), payload) != value[:4]:
                    raise DamagedRegionError(f"row {key} doesn't match its checksum")
                payloads[int(key)] = payload
        return payloads

    def write(self, payloads: Mapping[int, bytes]) -> int:
        """Add or replace rows, commit them, and return their size in bytes."""
        rows = {str(chunk): _checksum(str(chunk), payload) + payload for chunk, payload in payloads.items()}
        if not rows:
            return 0
        with self._writing() as table:
            table.update(rows)
        return sum(map(len, rows.values()))

    def discard(self, chunks: Iterable[int]) -> None:
        """Remove rows."""
        with self._locked(fcntl.LOCK_EX), self._translated():
            if not self._path.exists():
                return
            with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as database, database:
                database.executemany(f"DELETE FROM {TABLE} WHERE key = ?", [(str(chunk),) for chunk in chunks])  # noqa: S608 (a constant)

    def remove(self, *, wait: bool = False) -> bool:
        """Delete the file, unless another process is at work with it and we don't `wait`; return whether it is gone."""
        try:
            with self._locked(fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB):
                # The log first: SQLite would play an old one into the file that comes after.
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

    @contextlib.contextmanager
    def _translated(self) -> Iterator[None]:
        """Turn what SQLite raises into an error of the disk, or into one of the file's content."""
        try:
            yield
        except sqlite3.Error as error:
            code = getattr(error, "sqlite_errorcode", sqlite3.SQLITE_CORRUPT)
            # A damaged header may forbid writing to a file that we may write to.
            forbidden = code & 0xFF != sqlite3.SQLITE_READONLY or not os.access(self._path, os.W_OK)
            if code & 0xFF in _DISK_ERRORS and code != sqlite3.SQLITE_IOERR_SHORT_READ and forbidden:
                raise TransportError(f"chunk cache {self._path}: {error}") from error
            raise DamagedRegionError(str(error)) from error
        except (TypeError, ValueError) as error:
            # A flipped bit makes a text or a number of a blob, or a message of bytes that are no text.
            raise DamagedRegionError(f"a row can't be understood: {error}") from error

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection | None]:
        """Open the file for reading; None if there is none, or if a kill left it without its table."""
        if not self._path.exists():
            yield None
            return
        with self._locked(fcntl.LOCK_SH), self._translated():
            if not self._path.exists():
                yield None
                return
            with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as database:
                made = database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone()
                yield database if made else None

    @contextlib.contextmanager
    def _writing(self) -> Iterator[Any]:
        from sqlitedict import SqliteDict

        with self._locked(fcntl.LOCK_EX), self._translated():
            self._prepare()
            # Its errors are raised here; it would log them too, with stacks.
            logging.getLogger("sqlitedict").setLevel(logging.CRITICAL)
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

    def _prepare(self) -> None:
        """Make the file and its table, or raise here: in sqlitedict's thread an error would be printed."""
        with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as database:
            database.execute("PRAGMA journal_mode = WAL")
            database.execute(f"CREATE TABLE IF NOT EXISTS {TABLE} (key TEXT PRIMARY KEY, value BLOB)")


def _checksum(key: str, payload: bytes) -> bytes:
    return int(google_crc32c.extend(google_crc32c.value(key.encode()), payload)).to_bytes(4, "little")


def _select(
    database: sqlite3.Connection | None, columns: str, chunks: Sequence[int]
) -> Iterator[tuple[Any, ...]]:
    """Yield the rows of those of `chunks` that are there."""
    if database is None:
        return
    for begin in range(0, len(chunks), _KEYS_A_QUERY):
        keys = [str(chunk) for chunk in chunks[begin : begin + _KEYS_A_QUERY]]
        marks = ",".join("?" * len(keys))
        yield from database.execute(f"SELECT {columns} FROM {TABLE} WHERE key IN ({marks})", keys)  # noqa: S608 (constants and marks)


def _commit(table: Any, path: Path) -> None:
    """Commit what was queued, or raise what went wrong.

    As a statement of its own: an error in sqlitedict's `commit()` ends its thread, and the caller waits for ever.
    """
    for statement in ("SELECT 1", "COMMIT"):  # the first is answered when all rows are in
        answer: Queue[object] = Queue()
        table.conn.execute(statement, res=answer)
        while True:
            try:
                if answer.get(timeout=0.5) == _NO_MORE:
                    break
            except Empty:
                if not table.conn.is_alive():
                    raise TransportError(f"chunk cache {path}: sqlitedict's thread has ended") from None
        table.conn.check_raise_error()
