import contextlib
import multiprocessing
import os
import random
import resource
import signal
import sqlite3

import pytest

from voxelprobe.cache.disk import DiskCache
from voxelprobe.transport.protocol import StoredObject

FORK = multiprocessing.get_context("fork")
# More than SQLite holds back: part of a batch is in the file long before it is committed.
BATCH = 20
BYTES = 100_000


def make_cache(root):
    return DiskCache(root, budget_bytes=1 << 40).of_scale("gs://bucket/seg", "f")


def the_file(root):
    (path,) = root.glob("*/r*.sqlite")
    return path


def journal_of(root):
    return next(iter(root.glob("*/r*.sqlite-journal")), None)


def stored(chunk, version):
    """Return an object that tells whose it is and when it was written, by its content and by its encoding."""
    return StoredObject(b"%d %d " % (chunk, version) * (BYTES // 8), f"v{version}")


def version_of(chunk, found):
    """Return when an object was written; it has to be whole."""
    version = int(found.content[:20].split()[1])
    assert found == stored(chunk, version)
    return version


def write_for_ever(root, receipts):
    """Write a new batch, then the one before it anew, and so on; a receipt after each."""
    cache = make_cache(root)
    for batch in range(1000):
        for first in ({batch, max(batch - 1, 0)}):
            cache.write(3, {chunk: stored(chunk, batch) for chunk in range(first * BATCH, (first + 1) * BATCH)})
        os.write(receipts, b".")


def killed_writer(root, *, limit=None, wait=None):
    """Let a process write until its file has `limit` bytes or `wait()` is over, kill it; return its receipts."""
    receive, send = os.pipe()
    pid = os.fork()
    if pid == 0:
        with contextlib.suppress(BaseException):
            os.close(receive)
            if limit is not None:
                # The kernel's kill at an exact byte: whoever writes beyond the limit gets the signal.
                signal.signal(signal.SIGXFSZ, signal.SIG_DFL)
                resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
                resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
            write_for_ever(root, send)
        os._exit(0)
    os.close(send)
    with open(receive, "rb") as receipts:
        if wait is not None:
            wait(receipts)
            os.kill(pid, signal.SIGKILL)
        done = receipts.read()
    _, status = os.waitpid(pid, 0)
    assert os.WIFSIGNALED(status)
    return len(done)


def check(cache, root, done):
    """What was committed is there, and nothing is there but whole batches; the file is sound."""
    found = cache.read(3, range((done + 2) * BATCH))
    versions = {chunk: version_of(chunk, one) for chunk, one in found.items()}
    assert versions.keys() >= set(range(done * BATCH))
    for first in range(0, (done + 2) * BATCH, BATCH):
        assert len({versions.get(chunk) for chunk in range(first, first + BATCH)}) == 1, "part of a batch"
        batch = first // BATCH
        assert versions.get(first, batch) in {batch, batch + 1}
        assert batch >= done - 1 or versions[first] == batch + 1
    if found:
        with contextlib.closing(sqlite3.connect(the_file(root))) as database:
            assert database.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def go_on(cache, root):
    """Life goes on, without anything left of the kill."""
    cache.write(3, {1: StoredObject(b"new", None)})
    assert cache.read(3, [1]) == {1: StoredObject(b"new", None)}
    assert journal_of(root) is None


FIRST = {
    "read": lambda cache: cache.read(3, [0]),
    "known": lambda cache: cache.known(3, [0]),
    "discard": lambda cache: cache.discard(3, [10**9]),
    "write": lambda cache: cache.write(3, {10**9: StoredObject(b"x", None)}),
}


@pytest.mark.parametrize("first", FIRST)
def test_a_kill_at_any_byte_loses_nothing_committed(tmp_path, first, caplog):
    """Wherever in a batch a writer dies, whoever comes next, reader or writer, finds the committed batches whole."""
    hot = 0
    rng = random.Random(first)
    for case, limit in enumerate([5_000, 20_000, *(rng.randrange(10**5, 10**7) for _ in range(12))]):
        root = tmp_path / str(case)
        done = killed_writer(root, limit=limit)
        hot += journal_of(root) is not None
        cache = make_cache(root)
        FIRST[first](cache)
        check(cache, root, done)
        go_on(cache, root)
    assert hot > 5
    assert not caplog.records


def test_a_kill_at_any_moment_loses_nothing_committed(tmp_path, caplog):
    """The same for kill -9 at random instants: while opening, writing, rewriting, committing or closing."""
    rng = random.Random(11)
    for case in range(30):
        root = tmp_path / str(case)

        def wait(receipts):
            receipts.read(rng.randrange(4))
            FORK.Event().wait(rng.uniform(0, 0.02))

        done = killed_writer(root, wait=wait)
        check(make_cache(root), root, done)
        go_on(make_cache(root), root)
    assert not caplog.records


def test_two_readers_meet_what_a_kill_left(tmp_path):
    """Readers who both find an unfinished batch, at once, both read the committed ones."""
    done = killed_writer(tmp_path, limit=5_000_000)
    assert journal_of(tmp_path)
    start = FORK.Barrier(3)

    def child():
        cache = make_cache(tmp_path)
        start.wait(30)
        check(cache, tmp_path, done)

    readers = [FORK.Process(target=child) for _ in range(3)]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join(60)
    assert [reader.exitcode for reader in readers] == [0, 0, 0]


def test_a_journal_whose_file_is_gone_is_nobodys(tmp_path, caplog):
    """A kill between the deletion of a file and of its journal: nothing of it comes back into the next file."""
    killed_writer(tmp_path, limit=5_000_000)
    assert journal_of(tmp_path)
    the_file(tmp_path).unlink()
    cache = make_cache(tmp_path)
    assert cache.read(3, range(BATCH)) == {}
    cache.write(3, {1: StoredObject(b"new", None)})
    assert cache.read(3, range(BATCH)) == {1: StoredObject(b"new", None)}
    assert not caplog.records
    assert journal_of(tmp_path) is None


def test_a_killed_writers_file_can_be_evicted(tmp_path):
    """An unfinished batch leaves with its file."""
    killed_writer(tmp_path, limit=5_000_000)
    DiskCache(tmp_path, budget_bytes=0).evict()
    assert {path.suffix for path in tmp_path.glob("*/*")} == {".lock"}
