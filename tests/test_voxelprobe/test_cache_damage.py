import contextlib
import logging
import multiprocessing
import os
import random
import resource
import signal
import sqlite3
import tempfile
from pathlib import Path

import google_crc32c
import pytest

from voxelprobe.cache.disk import DiskCache
from voxelprobe.cache.region_file import DamagedRegionError, RegionFile
from voxelprobe.errors import TransportError
from voxelprobe.transport.protocol import StoredObject

FORK = multiprocessing.get_context("fork")
# Encodings that are a bit or a letter from each other, from none, and from others' contents.
ENCODINGS = {8: "gzip", 9: None, 10: "br", 11: "gzip, br", 12: "x-gzip", 13: "zstd"}
ROWS = {chunk: StoredObject(b"payload-%d" % chunk * 3, encoding) for chunk, encoding in ENCODINGS.items()} | {
    20: StoredObject(b"", None), 21: StoredObject(b"", "gzip"), 300: StoredObject(bytes(range(1, 251)), "bz2")}
# Beside what is there, numbers that a flipped bit turns into others' keys.
ASKED = [*ROWS, 0, 1, 7, 14, 18, 22, 24, 30, 102]


def plain(content):
    return StoredObject(content, None)


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


def facts_flipped(content):
    """Turn the gzip of a chunk into what is no ASCII and no UTF-8."""
    at = content.index(b"gzip, br") + 2
    return content[:at] + bytes([content[at] ^ 0x80]) + content[at + 1 :]


def zeros(content):
    return bytes(len(content))


@pytest.mark.parametrize("damage", [header_lost, cut_to(0.6), cut_to(0.3), cut_to(0.01), payload_flipped, facts_flipped,
                                    zeros])
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
    cache.write(3, {9: plain(b"again")})
    assert cache.read(3, ASKED) == {9: plain(b"again")}
    assert not caplog.records


@pytest.mark.parametrize("damage", [header_lost, cut_to(0.9), cut_to(0.5), cut_to(0.01), zeros])
@pytest.mark.parametrize("first", ["write", "discard", "known"])
def test_whoever_meets_the_damage_first_gets_over_it(tmp_path, damage, first):
    """Writing into a damaged file, forgetting chunks of it, or asking what it has ends in a sound file."""
    cache, path = written(tmp_path)
    put(path, damage(path.read_bytes()))
    {"write": lambda: cache.write(3, {9: plain(b"x")}), "discard": lambda: cache.discard(3, [9]),
     "known": lambda: cache.known(3, ASKED)}[first]()
    new = {9: StoredObject(b"new", "gzip"), 10: plain(b"")}
    cache.write(3, new)
    assert cache.read(3, ASKED) == new


def test_no_flipped_bit_is_ever_returned(tmp_path):
    """Whatever bits of a file flip, in rows, index, schema or header, reading gives what was written or less."""
    cache, path = written(tmp_path)
    good = path.read_bytes()
    rng = random.Random(5)
    marked = [at for at in range(len(good)) if good[at]]
    # Rows fill a page from its end: the facts, written first, are behind the contents, and those of chunk 8 last.
    facts_begin, facts_end = good.index(b" facts") - 8, good.index(b"8 facts") + len(b"8 facts") + 8
    assert good.rindex(b"payload-8") < facts_begin < facts_end <= 8192 < len(good)
    facts = [at for at in marked if facts_begin <= at < facts_end]
    # The index at the end is where a flip hands out another chunk's row.
    index = [at for at in marked if at >= facts_end]
    logging.disable(logging.WARNING)
    try:
        for at in [*rng.sample(index, 150), *rng.sample(facts, 100), *rng.sample(marked, 150)]:
            damaged = bytearray(good)
            damaged[at] ^= 1 << rng.randrange(8)
            put(path, damaged)
            got = cache.read(3, ASKED)
            assert got == {chunk: ROWS[chunk] for chunk in got}, at
            cache.write(3, {9: plain(b"new")})
            assert cache.read(3, ASKED).items() <= (ROWS | {9: plain(b"new")}).items() | {(9, ROWS[9])}, at
    finally:
        logging.disable(logging.NOTSET)


@pytest.mark.parametrize("size", [300, 9000, 70_000])
def test_pages_that_the_power_took_are_never_made_up(tmp_path, size):
    """Where the disk got only some of a commit's blocks, in any order, each chunk is one that was written, or none.

    Encoding and content are never of two different times.
    """
    cache = make_cache(tmp_path)
    before = {chunk: StoredObject(b"old %d " % chunk * (size // 8), "gzip") for chunk in range(40)}
    after = {chunk: StoredObject(b"new %d " % chunk * (size // 8), "zstd" if chunk % 2 else None)
             for chunk in range(20, 60)}
    # Of these only the encoding changes.
    after |= {chunk: before[chunk]._replace(encoding="br") for chunk in range(30, 35)}
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
            for chunk, stored in cache.read(3, range(70)).items():
                assert stored in (before.get(chunk), after.get(chunk))
            cache.write(3, {1: plain(b"x")})
            assert cache.read(3, [1]).items() <= {1: plain(b"x")}.items() | {(1, before[1])}
    finally:
        logging.disable(logging.NOTSET)


def test_rows_that_changed_places_are_not_returned(tmp_path):
    """Rows under another chunk's number have their own checksum right, and are refused all the same."""
    cache, path = written(tmp_path)
    change(path, *((statement, row) for kind in ("", " facts") for statement, row in (
        ("DELETE FROM chunks WHERE key = ?", (f"9{kind}",)),
        ("UPDATE chunks SET key = ? WHERE key = ?", (f"9{kind}", f"10{kind}")))))
    assert cache.read(3, [9]) == {}


def change(path, *statements):
    """Change the rows of a region's file as no writer of ours would; none of the statements misses."""
    with contextlib.closing(sqlite3.connect(path)) as database, database:
        for statement, values in statements:
            assert database.execute(statement, values).rowcount == 1, values


def facts_of(path, chunk):
    with contextlib.closing(sqlite3.connect(path)) as database:
        ((facts,),) = database.execute("SELECT value FROM chunks WHERE key = ?", (f"{chunk} facts",))
    return facts


def read_with_facts(cache, path, chunk, facts):
    """Return what is read of a chunk with other facts; a file that was deleted for it is made again."""
    if not path.exists():
        cache.write(3, ROWS)
    change(path, ("UPDATE chunks SET value = ? WHERE key = ?", (facts, f"{chunk} facts")))
    with contextlib.suppress(DamagedRegionError):
        RegionFile(path).read([chunk])
        pytest.fail(f"{facts} are taken for facts")
    return cache.read(3, [chunk])


@pytest.mark.parametrize("chunk", ROWS)
def test_no_flipped_bit_of_the_facts_is_another_decoding(tmp_path, chunk):
    """Each bit of the checksum and of the encoding's name, flipped, is damage; so is each that is lost or added."""
    cache, path = written(tmp_path)
    good = facts_of(path, chunk)
    assert good[4:] == (ROWS[chunk].encoding or "").encode()
    wrong = [good[: bit // 8] + bytes([good[bit // 8] ^ 1 << bit % 8]) + good[bit // 8 + 1 :]
             for bit in range(8 * len(good))]
    wrong += [good[:length] for length in range(len(good))]
    wrong += [good + behind for behind in (b"\0", b" ", b"gzip", b", gzip", b"\xff")]
    wrong += [good[:4] + name for name in (b"", b"gzip", b"GZIP", b"br", b"br, gzip", b"identity") if name != good[4:]]
    for facts in wrong:
        assert read_with_facts(cache, path, chunk, facts) == {}, facts


@pytest.mark.parametrize("name", [b"\xff", b"gzip\xe9", b"\xc3", b"\xed\xa0\x80", b"\0\x80"])
def test_an_encoding_that_is_no_text_is_damage(tmp_path, caplog, name):
    """Bytes that are no UTF-8 are damage of the file like any other, with a right checksum before them too."""
    cache, path = written(tmp_path)
    checksum = google_crc32c.value(b"9 " + name + ROWS[9].content).to_bytes(4, "little")
    with caplog.at_level(logging.WARNING):
        assert read_with_facts(cache, path, 9, checksum + name) == {}
    assert "is damaged" in caplog.text
    assert not path.exists()


@pytest.mark.parametrize("key", ["9", "9 facts", "10", "10 facts"])
@pytest.mark.parametrize("value", ["text", 7, None, b"abc", b"", 1.5])
def test_a_value_of_another_kind_is_damage(tmp_path, key, value):
    """A content or facts that are anything but the bytes that were written are none."""
    cache, path = written(tmp_path)
    change(path, ("UPDATE chunks SET value = ? WHERE key = ?", (value, key)))
    assert cache.read(3, [int(key.split()[0])]) == {}


@pytest.mark.parametrize("key", ["9", "9 facts", "10", "10 facts"])
def test_half_a_chunk_is_no_chunk(tmp_path, key):
    """A content without its facts isn't returned, and facts without their content are no chunk."""
    cache, path = written(tmp_path)
    change(path, ("DELETE FROM chunks WHERE key = ?", (key,)))
    chunk = int(key.split()[0])
    assert cache.read(3, [chunk]) == {}
    assert chunk not in cache.known(3, [chunk])


def test_damage_met_on_the_way_ends_the_reading(tmp_path, caplog):
    """One by one, what comes before the damage is right, and the rest counts as not there."""
    cache, path = written(tmp_path)
    put(path, payload_flipped(path.read_bytes()))
    with caplog.at_level(logging.WARNING):
        got = {chunk: stored for asked in ASKED for chunk, stored in cache.read(3, [asked]).items()}
    assert got == {chunk: ROWS[chunk] for chunk in (8, 9, 10)}
    assert "is damaged" in caplog.text
    assert not path.exists()


def test_a_stranger_who_reads_makes_writing_fail_not_hang(tmp_path, monkeypatch):
    """SQLite's own lock, held by a program that knows nothing of ours, is an error that says so; rows stay."""
    monkeypatch.setattr("voxelprobe.cache.region_file._BUSY_SECONDS", 0.1)
    cache, path = written(tmp_path)
    with sqlite3.connect(path) as stranger:
        stranger.execute("BEGIN").execute("SELECT * FROM chunks").fetchone()
        kind, message = in_a_child(lambda: cache.write(3, {9: plain(b"new")}))
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
        cache.write(3, {9: plain(b"new")})
    assert cache.read(3, ASKED) == {9: plain(b"new")}
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
    cache.write(3, {9: plain(b"new")})
    assert cache.read(3, ASKED) == {9: plain(b"new")}


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
    earlier = {1: StoredObject(b"earlier", "gzip")} if before else {}
    if before:
        cache.write(1, earlier)

    def fill():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
        cache.write(1, {chunk: plain(os.urandom(50_000)) for chunk in range(2, 30)})

    kind, message = in_a_child(fill)
    assert (kind, "chunk cache" in message, str(tmp_path) in message) == ("TransportError", True, True)
    assert cache.read(1, [1]) == earlier
    cache.write(1, {2: plain(b"room again")})
    assert cache.read(1, [1, 2]) == earlier | {2: plain(b"room again")}


def test_a_folder_that_cant_be_written_is_a_transport_error(tmp_path):
    """Rows can still be asked for nowhere, but each call says so at once instead of hanging."""
    (tmp_path / "file").write_text("")
    with pytest.raises(TransportError, match=r"chunk cache .*: Not a directory"):
        make_cache(tmp_path / "file")


@pytest.mark.skipif(os.geteuid() != 0, reason="becomes another user, which takes root")
def test_another_users_folder_is_a_transport_error():
    """Without the right to write, a write fails at once with the folder's name."""
    with tempfile.TemporaryDirectory() as folder:  # pytest's own folders can't be entered by others
        os.chmod(folder, 0o755)
        cache = make_cache(Path(folder))
        cache.write(1, {1: plain(b"mine")})

        def write():
            os.setuid(65534)
            cache.write(1, {2: plain(b"x")})

        kind, message = in_a_child(write)
        assert (kind, "Permission denied" in message, folder in message) == ("TransportError", True, True)
        assert cache.read(1, [1]) == {1: plain(b"mine")}
