"""One region's chunks in one SQLite file, in the table that sqlitedict keeps.

Written through sqlitedict, as bytes and never as pickles. Read through sqlite3 itself: an error
while reading ends sqlitedict's thread and leaves its caller waiting for ever (docs/design/001-records.md).
A chunk has two rows: its content as the store has it, and facts: a CRC32C of number, compression and content, 4 bytes
little-endian, and the compression's name. In one row they would cost a copy of each content. No content says that the
store has no such chunk. SQLite has no checksums of its own, and a flipped bit here would be a wrong label; in its
index, another chunk's row.

A rollback journal, since each byte is written once then, and large pages (docs/design/007-cache.md). Nobody else has
the file open while it is written: `flock` sees to that. A journal that a kill left, whoever comes next plays back.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import logging
import os
import sqlite3
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from queue import Empty, Queue
from typing import Any

import google_crc32c

from voxelprobe.errors import TransportError
from voxelprobe.local_files import describe_open_files, open_lock
from voxelprobe.transport.protocol import StoredObject

TABLE = "chunks"
# Keys are bound as one JSON list, so that a statement is the same for any number of them.
_KNOWN = "SELECT key FROM chunks WHERE key IN (SELECT value FROM json_each(?))"
_ROWS = "SELECT key, value FROM chunks WHERE key IN (SELECT value FROM json_each(?))"
_DISCARD = "DELETE FROM chunks WHERE key = ?"
_CREATE = "CREATE TABLE IF NOT EXISTS chunks (key TEXT PRIMARY KEY, value BLOB)"
_PAGE_BYTES = (4096, 65536)
# Pages that SQLite holds: few, so that they are filled and written, or read, while the processor's cache has them.
_HELD = "cache_size = -512"  # KiB
# What SQLite writes beside the file while it writes, and after a kill leaves.
_JOURNAL = "-journal"
# How sqlitedict's thread ends the answer to a statement.
_NO_MORE = "--no more--"
# How long SQLite's lock is waited for, which programs that know nothing of ours may hold.
_BUSY_SECONDS = 60.0
# What SQLite complains of when the disk, and not the file's content, is at fault.
_DISK_ERRORS = frozenset({
    sqlite3.SQLITE_PERM, sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_NOMEM, sqlite3.SQLITE_READONLY,
    sqlite3.SQLITE_INTERRUPT, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_FULL, sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_PROTOCOL, sqlite3.SQLITE_NOLFS, sqlite3.SQLITE_AUTH,
})


logger = logging.getLogger(__name__)


class DamagedRegionError(Exception):
    """The file isn't the database it should be; nothing in it can be trusted."""


class RegionFile:
    """A region's file. Every call opens and closes it: no connection outlives a fork."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def known(self, chunks: Sequence[int]) -> set[int]:
        """Return which chunks the file has a row for."""
        with self._reading() as database:
            return {int(key) for (key,) in _select(database, _KNOWN, map(str, chunks))}

    def read(self, chunks: Sequence[int]) -> dict[int, StoredObject]:
        """Return those chunks that the file has, each held against its checksum."""
        objects = {}
        with self._reading() as database:
            facts = dict(_select(database, _ROWS, map(_facts_key, chunks)))
            for key, content in _select(database, _ROWS, map(str, chunks)):
                chunk = int(key)
                objects[chunk] = parse_row(chunk, facts.get(_facts_key(chunk)), content)
        return objects

    def write(self, objects: Mapping[int, StoredObject]) -> int:
        """Add or replace rows, commit them, and return by how many bytes the file grew."""
        if not objects:
            return 0
        facts = {_facts_key(chunk): _facts(chunk, stored) for chunk, stored in objects.items()}
        contents = {str(chunk): stored.content for chunk, stored in objects.items()}
        before = self._size()
        with self._writing(_page_bytes(len(contents), sum(map(len, contents.values())))) as table:
            # The facts beside each other: whoever reads wants them all before the first content.
            table.update(facts)
            table.update(contents)
        return max(self._size() - before, 0)

    def discard(self, chunks: Iterable[int]) -> None:
        """Remove rows."""
        with self._locked(fcntl.LOCK_EX), self._translated():
            if not self._path.exists():
                return
            keys = [(key(chunk),) for chunk in chunks for key in (str, _facts_key)]
            with self._connected() as database, database:
                if not _has_table(database):
                    return
                database.executemany(_DISCARD, keys)

    def remove(self, *, wait: bool = False) -> bool:
        """Delete the file, unless another process is at work with it and we don't `wait`; return whether it is gone."""
        try:
            with self._locked(fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB):
                # A log (of an earlier layout) first: SQLite would play it into the file that comes after. A journal
                # last: without it a half-written file looks whole, while alone it is thrown away by SQLite.
                for suffix in ("-wal", "-shm", "", _JOURNAL):
                    with contextlib.suppress(FileNotFoundError):
                        if not suffix and self._path.is_dir():  # not ours, and so not ours to delete
                            self._path.rename(self._path.with_name(f"aside-{time.time_ns()}-{self._path.name}"))
                        else:
                            os.remove(f"{self._path}{suffix}")
        except BlockingIOError:
            return False
        return True

    def _is_replaced(self, code: int) -> bool:
        """Return whether an error of the disk is of a file that somebody deleted meanwhile, or put a folder in for."""
        if self._path.is_dir() or not self._path.parent.exists():
            return True
        return code & 0xFF in (sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY) and not self._path.exists()

    def _size(self) -> int:
        try:
            return self._path.stat().st_size
        except FileNotFoundError:
            return 0

    @contextlib.contextmanager
    def _locked(self, mode: int) -> Iterator[None]:
        # A file of its own: closing any handle of the database's file would drop SQLite's own locks.
        place = self._path.with_suffix(".lock")
        if not place.parent.exists():  # deleted while we are at work
            logger.warning("the folder %s of the chunk cache is gone; its chunks are fetched again", place.parent)
            place.parent.mkdir(parents=True, exist_ok=True)
        with open_lock(place) as lock:
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
            is_disk = code & 0xFF in _DISK_ERRORS and code != sqlite3.SQLITE_IOERR_SHORT_READ and forbidden
            if is_disk and not self._is_replaced(code):
                raise TransportError(f"chunk cache {self._path}: {error}{describe_open_files()}") from error
            raise DamagedRegionError(str(error)) from error
        except (TypeError, ValueError) as error:
            # A flipped bit makes a text or a number of a blob, or a message of bytes that are no text.
            raise DamagedRegionError(f"a row can't be understood: {error}") from error
        except RuntimeError as error:  # sqlitedict's own word for it
            if self._path.parent.exists():
                raise
            raise DamagedRegionError("its folder was deleted") from error

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
            with self._connected() as database:
                yield database if _has_table(database) else None

    @contextlib.contextmanager
    def _writing(self, page_bytes: int) -> Iterator[Any]:
        from voxelprobe.cache.patient_table import PatientTable

        with self._locked(fcntl.LOCK_EX), self._translated():
            self._prepare(page_bytes)
            # Its errors are raised here; it would log them too, with stacks.
            logging.getLogger("sqlitedict").setLevel(logging.CRITICAL)
            table = PatientTable(self._path, TABLE, busy_seconds=_BUSY_SECONDS)
            try:
                table.conn.execute(f"PRAGMA {_HELD}")
                yield table
                _commit(table, self._path)
            finally:
                # Forced: an ordinary close waits for a thread that an error may have ended.
                thread = table.conn
                table.close(do_log=False, force=True)
                thread.join(_BUSY_SECONDS)

    def _prepare(self, page_bytes: int) -> None:
        """Make the file and its table, or raise here: in sqlitedict's thread an error would be printed."""
        with self._connected() as database:
            database.execute(f"PRAGMA page_size = {page_bytes:d}")  # a file that is there keeps its own
            database.execute(_CREATE)

    @contextlib.contextmanager
    def _connected(self) -> Iterator[sqlite3.Connection]:
        with contextlib.closing(sqlite3.connect(self._path, timeout=_BUSY_SECONDS)) as database:
            # As sqlitedict has it: what is lost with the power is fetched again.
            database.execute("PRAGMA synchronous = OFF")
            database.execute(f"PRAGMA {_HELD}")
            yield database


def parse_row(chunk: int, facts: object, content: object) -> StoredObject:
    """Return a chunk of its two rows, held against their checksum.

    Raises
    ------
    DamagedRegionError, UnicodeDecodeError
        If it doesn't match, or the rows aren't bytes, or name no encoding.
    """
    if not isinstance(content, bytes) or not isinstance(facts, bytes):
        raise DamagedRegionError(f"row {chunk} lacks its checksum, or isn't bytes")
    stored = StoredObject(content, facts[4:].decode() or None)
    if facts != _facts(chunk, stored):
        raise DamagedRegionError(f"row {chunk} doesn't match its checksum")
    return stored


def _facts_key(chunk: int) -> str:
    return f"{chunk} facts"


def _facts(chunk: int, stored: StoredObject) -> bytes:
    """Return what stands beside a chunk: the CRC32C of number, compression and content, and the compression."""
    encoding = (stored.encoding or "").encode()
    checksum = google_crc32c.extend(google_crc32c.value(b"%d %s" % (chunk, encoding)), stored.content)
    return int(checksum).to_bytes(4, "little") + encoding


def _has_table(database: sqlite3.Connection) -> bool:
    return database.execute("SELECT 1 FROM sqlite_master WHERE name = ?", (TABLE,)).fetchone() is not None


def _page_bytes(rows: int, size: int) -> int:
    """Return the page size for a new file, given its first rows: at most half a payload, and a 64th of them all.

    Large pages cost less to write and to read. Twice as large, they would leave much of themselves empty.
    """
    smallest, largest = _PAGE_BYTES
    return max(smallest, min(largest, 1 << max(min(size // rows // 2, size // 64), 1).bit_length() - 1))


def _select(database: sqlite3.Connection | None, statement: str, keys: Iterable[str]) -> Iterable[tuple[Any, ...]]:
    """Return the rows of those of `keys` that are there."""
    return [] if database is None else database.execute(statement, (json.dumps(list(keys)),))


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
