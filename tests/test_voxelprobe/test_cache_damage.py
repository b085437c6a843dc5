import logging
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import tempfile
from pathlib import Path

import pytest

from voxelprobe.cache.disk import DiskCache
from voxelprobe.errors import TransportError

FORK = multiprocessing.get_context("fork")
ROWS = {chunk: b"payload-%d" % chunk * 3 for chunk in range(8, 14)} | {20: b"", 300: bytes(range(1, 251))}
# Beside what is there, numbers that a flipped bit turns into others' keys.
ASKED = [*ROWS, 0, 1, 7, 14, 18, 21, 24, 30, 102]


def make_cache(root):
    return DiskCache(root, budget_bytes=1 << 40).of_scale("gs://bucket/seg", "f")


def written(root):
    cache = make_cache(root)
    cache.write(3, ROWS)
    (path,) = root.glob("*/r*.sqlite")
    return cache, path


def put(path, content):
    """Replace a region's file, as a damaged disk does, and nothing of the log that belonged to it."""
    Path(f"{path}-journal").unlink(missing_ok=True)
    path.write_bytes(content)


def header_lost(content):
    return b"not a database" + content[14:]


def cut_to(share):
    return lambda content: content[: int(len(content) * share)]


def payload_flipped(content):
    at = content.index(b"payload-11") + 4
    return content[:at] + bytes([content[at] ^ 0x10]) + content[at + 1 :]


def zeros(content):
    return bytes(len(content))


@pytest.mark.parametrize("damage", [header_lost, cut_to(0.6), cut_to(0.3), cut_to(0.01), payload_flipped, zeros])
def test_a_damaged_file_is_said_and_made_anew(tmp_path, caplog, damage):
    """Nothing is read from a damaged file; the log names it; afterwards the region works as a new one."""
    cache, path = written(tmp_path)
    put(path, damage(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        assert cache.read(3, ASKED) == {}
    assert "is damaged" in caplog.text
    assert "r00000003" in caplog.text
    assert "fetched again" in caplog.text
    caplog.clear()
    assert cache.known(3, ASKED) == set()
    cache.write(3, {9: b"again"})
    assert cache.read(3, ASKED) == {9: b"again"}
    assert not caplog.records


@pytest.mark.parametrize("damage", [header_lost, cut_to(0.9), cut_to(0.5), cut_to(0.01), zeros])
@pytest.mark.parametrize("first", ["write", "discard", "known"])
def test_whoever_meets_the_damage_first_gets_over_it(tmp_path, damage, first):
    """Writing into a damaged file, forgetting chunks of it, or asking what it has ends in a sound file."""
    cache, path = written(tmp_path)
    put(path, damage(path.read_bytes()))
    {"write": lambda: cache.write(3, {9: b"x"}), "discard": lambda: cache.discard(3, [9]),
     "known": lambda: cache.known(3, ASKED)}[first]()
    cache.write(3, {9: b"new", 10: b""})
    assert cache.read(3, ASKED) == {9: b"new", 10: b""}


def test_no_flipped_bit_is_ever_returned(tmp_path):
    """Whatever bits of a file flip, in rows, index, schema or header, reading gives what was written or less."""
    cache, path = written(tmp_path)
    good = path.read_bytes()
    rng = random.Random(5)
    marked = [at for at in range(len(good)) if good[at]]
    # The index at the end is where a flip hands out another chunk's row.
    index = [at for at in marked if at > good.rindex(b"payload-13")]
    logging.disable(logging.WARNING)
    try:
        for at in [*rng.sample(index, 150), *rng.sample(marked, 150)]:
            damaged = bytearray(good)
            damaged[at] ^= 1 << rng.randrange(8)
            put(path, damaged)
            got = cache.read(3, ASKED)
            assert got == {chunk: ROWS[chunk] for chunk in got}, at
            cache.write(3, {9: b"new"})
            assert cache.read(3, ASKED).items() <= (ROWS | {9: b"new"}).items() | {(9, ROWS[9])}, at
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("size", [300, 9000, 70_000])
def test_pages_that_the_power_took_are_never_made_up(tmp_path, size):
    """Where the disk got only some of a commit's blocks, in any order, each chunk is one that was written, or none."""
    cache = make_cache(tmp_path)
    before = {chunk: b"old %d " % chunk * (size // 8) for chunk in range(40)}
    after = {chunk: b"new %d " % chunk * (size // 8) for chunk in range(20, 60)}
    cache.write(3, before)
    (path,) = tmp_path.glob("*/r*.sqlite")
    old = path.read_bytes()
    cache.write(3, after)
    new = path.read_bytes()
    rng = random.Random(size)
    logging.disable(logging.WARNING)
    try:
        for _ in range(60):
            lost = rng.random()
            blocks = [rng.choice([old[at : at + 4096].ljust(4096, b"\0"), bytes(4096)]) if rng.random() < lost
                      else new[at : at + 4096] for at in range(0, len(new), 4096)]
            put(path, b"".join(blocks)[: rng.choice([len(new), rng.randrange(len(old), len(new))])])
            assert cache.known(3, range(70)) <= before.keys() | after.keys()
            for chunk, payload in cache.read(3, range(70)).items():
                assert payload in (before.get(chunk), after.get(chunk))
            cache.write(3, {1: b"x"})
            assert cache.read(3, [1]).items() <= {1: b"x"}.items() | {(1, before[1])}
    finally:
        logging.disable(logging.NOTSET)


def test_rows_that_changed_places_are_not_returned(tmp_path):
    """Rows under another chunk's number have their own checksum right, and are refused all the same."""
    cache, path = written(tmp_path)
    with sqlite3.connect(path) as database:
        for kind in ("", " crc32c"):
            database.execute("DELETE FROM chunks WHERE key = ?", (f"9{kind}",))
            database.execute("UPDATE chunks SET key = ? WHERE key = ?", (f"9{kind}", f"10{kind}"))
    database.close()
    assert cache.read(3, [9]) == {}


@pytest.mark.parametrize("key", ["9", "9 crc32c"])
@pytest.mark.parametrize("value", ["text", 7, None, b"abc", b"", 1.5])
def test_a_value_of_another_kind_is_damage(tmp_path, key, value):
    """A payload or a checksum that is anything but the bytes that were written is none."""
    cache, path = written(tmp_path)
    with sqlite3.connect(path) as database:
        database.execute("UPDATE chunks SET value = ? WHERE key = ?", (value, key))
    database.close()
    assert cache.read(3, [9]) == {}


@pytest.mark.parametrize("key", ["9", "9 crc32c"])
def test_half_a_chunk_is_no_chunk(tmp_path, key):
    """A payload without its checksum isn't returned, and a checksum without its payload is no chunk."""
    cache, path = written(tmp_path)
    with sqlite3.connect(path) as database:
        database.execute("DELETE FROM chunks WHERE key = ?", (key,))
    database.close()
    assert cache.read(3, [9]) == {}
    assert 9 not in cache.known(3, [9])


def test_damage_met_on_the_way_ends_the_reading(tmp_path, caplog):
    """One by one, what comes before the damage is right, and the rest counts as not there."""
    cache, path = written(tmp_path)
    put(path, payload_flipped(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        got = dict(cache.each(3, ASKED))
    assert got.items() <= ROWS.items()
    assert 11 not in got
    assert "is damaged" in caplog.text
    assert not path.exists()


def test_a_stranger_who_reads_makes_writing_fail_not_hang(tmp_path, monkeypatch):
    """SQLite's own lock, held by a program that knows nothing of ours, is an error that says so; rows stay."""
    monkeypatch.setattr("voxelprobe.cache.region_file._BUSY_SECONDS", 0.1)
    cache, path = written(tmp_path)
    with sqlite3.connect(path) as stranger:
        stranger.execute("BEGIN").execute("SELECT * FROM chunks").fetchone()
        kind, message = in_a_child(lambda: cache.write(3, {9: b"new"}))
    stranger.close()
    assert (kind, "database is locked" in message, str(path) in message) == ("TransportError", True, True)
    assert cache.read(3, ASKED) == ROWS


def test_a_file_without_its_table_is_empty(tmp_path, caplog):
    """A kill between making the file and its table leaves nothing stored, and that is no damage."""
    cache, path = written(tmp_path)
    put(path, b"")
    sqlite3.connect(path).close()
    with caplog.at_level(logging.WARNING):
        assert (cache.read(3, ASKED), cache.known(3, ASKED)) == ({}, set())
        cache.write(3, {9: b"new"})
    assert cache.read(3, ASKED) == {9: b"new"}
    assert not caplog.records


def test_damage_while_another_process_reads_is_waited_for(tmp_path):
    """A damaged file that another process reads is removed when that process lets go, and not left to the next."""
    import fcntl

    cache, path = written(tmp_path)
    put(path, header_lost(path.read_bytes()))

    def child(ready, leave):
        with open(path.with_suffix(".lock"), "ab") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH)
            ready.set()
            leave.wait(0.3)

    ready = FORK.Event()
    process = FORK.Process(target=child, args=(ready, FORK.Event()))
    process.start()
    assert ready.wait(30)
    assert cache.read(3, ASKED) == {}
    assert not path.exists()
    process.join(30)
    cache.write(3, {9: b"new"})
    assert cache.read(3, ASKED) == {9: b"new"}


def in_a_child(work):
    """Return what `work` returns, or the class and message of what it raises, from a forked process."""
    receive, send = FORK.Pipe(duplex=False)

    def child():
        try:
            send.send(("returned", work()))
        except Exception as error:
            send.send((type(error).__name__, str(error)))

    process = FORK.Process(target=child)
    process.start()
    try:
        assert receive.poll(60), "it hangs"
        return receive.recv()
    finally:
        process.kill()
        process.join()


@pytest.mark.parametrize("limit", [0, 3000, 20_000, 200_000])
@pytest.mark.parametrize("before", [False, True])
def test_a_full_disk_is_a_transport_error(tmp_path, before, limit):
    """Whenever in the making of a file the disk is full: no hang, a message with the file; earlier rows stay."""
    cache = make_cache(tmp_path)
    if before:
        cache.write(1, {1: b"earlier"})

    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        cache.write(1, {chunk: os.urandom(50_000) for chunk in range(2, 30)})

    kind, message = in_a_child(fill)
    assert (kind, "chunk cache" in message, str(tmp_path) in message) == ("TransportError", True, True)
    assert cache.read(1, [1]) == ({1: b"earlier"} if before else {})
    cache.write(1, {2: b"room again"})
    assert cache.read(1, [1, 2]) == ({1: b"earlier"} if before else {}) | {2: b"room again"}


def test_a_folder_that_cant_be_written_is_a_transport_error(tmp_path):
    """Rows can still be asked for nowhere, but each call says so at once instead of hanging."""
    (tmp_path / "file").write_text("")
    with pytest.raises(TransportError, match=r"chunk cache .*: Not a directory"):
        make_cache(tmp_path / "file")
    cache, path = written(tmp_path / "cache")
    path.with_name("r00000004.sqlite").mkdir()
    for call in (lambda: cache.read(4, [1]), lambda: cache.known(4, [1]), lambda: cache.write(4, {1: b"x"}),
                 lambda: cache.discard(4, [1])):
        with pytest.raises(TransportError, match=r"chunk cache .*r00000004\.sqlite: unable to open database file"):
            call()


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")
def test_another_users_folder_is_a_transport_error():
    """Without the right to write, a write fails at once with the folder's name."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders can't be entered by others
        os.chmod(folder, 0o755)
        cache = make_cache(Path(folder))
        cache.write(1, {1: b"mine"})

        def write():
            os.setuid(65534)
            cache.write(1, {2: b"x"})

        kind, message = in_a_child(write)
        assert (kind, "Permission denied" in message, folder in message) == ("TransportError", True, True)
        assert cache.read(1, [1]) == {1: b"mine"}
