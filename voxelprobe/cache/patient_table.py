"""sqlitedict's table for who shares a file with programs that know nothing of our lock.

sqlitedict 2.1 waits five seconds for SQLite's lock when it opens a file, prints a stack if it didn't get it, and may
then leave its caller waiting for ever.
"""

from __future__ import annotations

import contextlib
import sqlite3
import sys
from pathlib import Path
from typing import Any

from sqlitedict import SqliteDict, SqliteMultithread


class PatientTable(SqliteDict):  # type: ignore[misc]  # sqlitedict has no types
    """A `SqliteDict` of bytes that waits `busy_seconds` for SQLite's lock, and raises what opening ended with."""

    def __init__(self, path: Path, table: str, *, busy_seconds: float) -> None:
        self._busy_seconds = busy_seconds
        # Bytes as they are: by itself sqlitedict unpickles what it finds (CVE-2024-35515).
        super().__init__(str(path), tablename=table, autocommit=False, journal_mode="DELETE", encode=sqlite3.Binary,
                         decode=bytes, outer_stack=False)

    def _new_conn(self) -> _PatientThread:
        return _PatientThread(self.filename, self._busy_seconds, self.autocommit, self.journal_mode, self._outer_stack)


class _PatientThread(SqliteMultithread):  # type: ignore[misc]  # the same
    def __init__(
        self, filename: str, busy_seconds: float, autocommit: bool, journal_mode: str, outer_stack: bool
    ) -> None:
        self._busy_seconds = busy_seconds
        self.exception: Any = None
        super().__init__(filename, autocommit, journal_mode, outer_stack)

    def run(self) -> None:
        """Serve requests; what opening ended with is for the caller, who is told at the first request."""
        # What is caught is kept already, by `_connect` or by sqlitedict.
        with contextlib.suppress(sqlite3.Error):
            super().run()

    def _connect(self) -> tuple[sqlite3.Connection, sqlite3.Cursor]:
        try:
            connection = sqlite3.connect(self.filename, timeout=self._busy_seconds, check_same_thread=False)
            connection.execute("PRAGMA journal_mode = DELETE")
            connection.execute("PRAGMA synchronous = OFF")
        except sqlite3.Error:
            self.exception = sys.exc_info()
            raise
        return connection, connection.cursor()
