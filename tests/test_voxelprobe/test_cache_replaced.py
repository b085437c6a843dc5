"""The cache's files locked, deleted or replaced by others while we are at work with them."""

import contextlib
import logging
import shutil
import sqlite3
import threading
import time

import pytest

from voxelprobe.cache.disk import DiskCache
from voxelprobe.cache.region_file import RegionFile
from voxelprobe.errors import TransportError
from voxelprobe.transport.protocol import StoredObject

ROWS = {8: StoredObject(b"payload-8", "gzip"), 9: StoredObject(b"payload-9" * 900, None), 10: StoredObject(b"", None)}
MORE = {11: StoredObject(b"payload-11", None)}


@pytest.fixture
def cache(tmp_path):
    cache = DiskCache(tmp_path, budget_bytes=1 << 40).of_scale("gs://bucket/seg", "f")
    cache.write(3, ROWS)
    return cache


@pytest.fixture
def path(cache, tmp_path):
    (path,) = tmp_path.glob("*/r*.sqlite")
    return path


def lock_before_the_table_opens(monkeypatch, path, seconds):
    """Have a stranger hold SQLite's lock for a while, from after the file was looked at to when it is opened."""
    prepare = RegionFile._prepare
    strangers = []

    def prepare_and_lose(self, page_bytes):
        prepare(self, page_bytes)
        stranger = sqlite3.connect(path, check_same_thread=False, isolation_level=None)
        stranger.execute("BEGIN EXCLUSIVE")
        timer = threading.Timer(seconds, stranger.close)
        timer.start()
        strangers.append(timer)

    monkeypatch.setattr(RegionFile, "_prepare", prepare_and_lose)
    return strangers


def test_a_stranger_s_lock_is_waited_for_at_every_step(cache, path, monkeypatch):
    """A lock held longer than sqlitedict's own five seconds, taken just before it opens the file, is waited for."""
    strangers = lock_before_the_table_opens(monkeypatch, path, 6)
    started = time.monotonic()
    cache.write(3, MORE)
    assert time.monotonic() - started > 5.5
    strangers[0].join()
    assert cache.read(3, [8, 9, 10, 11]) == ROWS | MORE


def test_a_stranger_s_lock_that_stays_is_an_error(cache, path, monkeypatch, capfd):
    """A lock that isn't let go in time is an error with the file's name: no hang, and nothing printed by a thread."""
    monkeypatch.setattr("voxelprobe.cache.region_file._BUSY_SECONDS", 0.2)
    strangers = lock_before_the_table_opens(monkeypatch, path, 3)
    with pytest.raises(TransportError, match=r"r00000003\.sqlite: database is locked"):
        cache.write(3, MORE)
    strangers[0].join()
    assert capfd.readouterr().err == ""
    assert cache.read(3, [8, 9, 10, 11]) == ROWS


def test_a_folder_that_was_deleted_is_made_again(cache, path, caplog):
    """With its folder gone, what was cached isn't there any more, which the log says; writing goes on."""
    shutil.rmtree(path.parent)
    assert (cache.read(3, [8]), cache.known(3, [8])) == ({}, set())
    with caplog.at_level(logging.WARNING):
        cache.write(3, MORE)
    assert "is gone; its chunks are fetched again" in caplog.text
    assert cache.read(3, [8, 11]) == MORE
    shutil.rmtree(path.parent)
    cache.discard(3, [11])
    assert cache.read(3, [11]) == {}


@pytest.mark.parametrize("suffix", ["", "-journal"])
@pytest.mark.parametrize("what", ["file", "folder"])
def test_what_is_deleted_while_it_is_written(cache, path, monkeypatch, what, suffix):
    """A file or its folder deleted between opening and committing costs its chunks and nothing else."""
    prepare = RegionFile._prepare
    times = []

    def prepare_and_delete(self, page_bytes):
        prepare(self, page_bytes)
        if not times:
            if what == "folder":
                shutil.rmtree(path.parent)
            path.with_name(path.name + suffix).unlink(missing_ok=True)
        times.append(1)

    monkeypatch.setattr(RegionFile, "_prepare", prepare_and_delete)
    cache.write(3, MORE)
    assert cache.read(3, [8, 9, 10, 11]).items() <= (ROWS | MORE).items()
    cache.write(3, MORE)
    assert cache.read(3, [11]) == MORE


def test_a_folder_in_a_file_s_place_is_put_aside(cache, path, caplog):
    """A folder of the file's name is said and put aside with what is in it; the region works as a new one."""
    for call in (lambda: cache.read(3, [8]), lambda: cache.known(3, [8]), lambda: cache.write(3, MORE),
                 lambda: cache.discard(3, [8])):
        path.unlink(missing_ok=True)
        path.mkdir()
        (path / "note").write_text("mine")
        with caplog.at_level(logging.WARNING):
            call()
        assert "is damaged" in caplog.text
        caplog.clear()
        cache.write(3, ROWS)
        assert cache.read(3, [8, 9, 10]) == ROWS
    assert [note.read_text() for note in path.parent.glob("aside-*/note")] == ["mine"] * 4


@pytest.mark.parametrize("schema", [
    "CREATE TABLE chunks (key INTEGER PRIMARY KEY, value BLOB)", "CREATE TABLE chunks (key TEXT PRIMARY KEY)",
    "CREATE TABLE unnamed (key TEXT PRIMARY KEY, value BLOB)", "CREATE TABLE chunks (id TEXT, content BLOB)",
    "CREATE VIEW chunks AS SELECT 'x' AS key, 1 AS value", "CREATE TABLE other (x); CREATE INDEX chunks ON other (x)",
])
def test_a_file_of_another_layout(cache, path, schema):
    """Tables of another version, with rows of theirs, give no chunk; the region is made anew where it has to be."""
    path.unlink()
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        database.executescript(schema)
        with contextlib.suppress(sqlite3.Error):
            database.execute("INSERT INTO chunks VALUES (8, x'0102')")
        with contextlib.suppress(sqlite3.Error):
            database.execute("INSERT INTO chunks VALUES ('9', 'text')")
    assert cache.read(3, [8, 9, 10]) == {}
    cache.write(3, ROWS)
    found = cache.read(3, [8, 9, 10])
    if not found:  # met the damage only now
        cache.write(3, ROWS)
        found = cache.read(3, [8, 9, 10])
    assert found == ROWS


def test_a_file_cut_anywhere(cache, path):
    """Cut at every page and sector, and beside them, a file gives what was written, or less."""
    cache.write(3, {chunk: StoredObject(b"%d " % chunk * 700, "br") for chunk in range(20, 40)})
    wanted = cache.read(3, range(50))
    content = path.read_bytes()
    logging.disable(logging.WARNING)
    try:
        for end in {end + by for end in range(0, len(content), 512) for by in (-1, 0, 1, 100)} - {-1}:
            path.write_bytes(content[:end])
            assert cache.read(3, range(50)).items() <= wanted.items(), end
    finally:
        logging.disable(logging.NOTSET)
