import fcntl
import multiprocessing
import os

import pytest

from voxelprobe.cache.disk import DiskCache
from voxelprobe.transport.protocol import StoredObject

FORK = multiprocessing.get_context("fork")


def make_cache(root, budget_bytes=1 << 40):
    return DiskCache(root, budget_bytes=budget_bytes).of_scale("gs://bucket/seg", "f")


def plain(content):
    return StoredObject(content, None)


def region_files(root):
    return {int(path.stem[1:]): path for path in root.glob("*/r*.sqlite")}


def fill(root, regions, size=100_000):
    """Write a region each, the first used longest ago, the last just now."""
    cache = make_cache(root)
    for age, region in enumerate(regions):
        cache.write(region, {1: plain(os.urandom(size))})
        lock = region_files(root)[region].with_suffix(".lock")
        os.utime(lock, (10**9 + age, 10**9 + age))
    return cache


def disk_bytes(root):
    return sum(path.stat().st_size for path in root.glob("*/*"))


def test_eviction_deletes_the_least_recently_used_until_the_budget_holds(tmp_path):
    """Files go by their last use, not by number or size, and no more of them than needed."""
    fill(tmp_path, [3, 1, 4, 2, 5])
    each = disk_bytes(tmp_path) // 5
    budget = 3 * each + each // 2
    assert DiskCache(tmp_path, budget_bytes=budget).evict() == 2 * each
    assert sorted(region_files(tmp_path)) == [2, 4, 5]
    assert disk_bytes(tmp_path) <= budget
    assert DiskCache(tmp_path, budget_bytes=budget).evict() == 0
    assert make_cache(tmp_path).read(3, [1]) == {}


@pytest.mark.parametrize("use", ["read", "known", "write"])
def test_using_a_region_keeps_it(tmp_path, use):
    """Reading counts as use, as writing does."""
    cache = fill(tmp_path, [1, 2, 3])
    cache.write(1, {2: plain(b"")}) if use == "write" else getattr(cache, use)(1, [1])
    DiskCache(tmp_path, budget_bytes=disk_bytes(tmp_path) // 3 + 1000).evict()
    assert list(region_files(tmp_path)) == [1]


def test_a_region_that_another_process_works_with_isnt_deleted(tmp_path):
    """A locked file is passed over, and what is next goes in its place."""
    fill(tmp_path, [1, 2, 3])
    lock = region_files(tmp_path)[1].with_suffix(".lock")

    def child(ready, leave):
        with open(lock, "ab") as file:
            fcntl.flock(file, fcntl.LOCK_SH)
            ready.set()
            leave.wait(30)

    ready, leave = FORK.Event(), FORK.Event()
    process = FORK.Process(target=child, args=(ready, leave))
    process.start()
    assert ready.wait(30)
    disk = DiskCache(tmp_path, budget_bytes=disk_bytes(tmp_path) * 2 // 3 + 1000)
    disk.evict()
    assert sorted(region_files(tmp_path)) == [1, 3]
    leave.set()
    process.join(30)
    DiskCache(tmp_path, budget_bytes=0).evict()
    assert region_files(tmp_path) == {}


def test_writing_keeps_to_the_budget_by_itself(tmp_path):
    """However much goes through a small cache, the folder stays near its budget."""
    cache = make_cache(tmp_path, budget_bytes=1_000_000)
    for region in range(40):
        cache.write(region, {1: StoredObject(os.urandom(100_000), "gzip")})
        assert disk_bytes(tmp_path) < 1_200_000
    assert cache.read(39, [1])
    assert cache.read(0, [1]) == {}


def test_an_evicted_region_is_written_again(tmp_path):
    """Eviction under a cache in use costs a fetch and nothing else."""
    cache = fill(tmp_path, [1])
    DiskCache(tmp_path, budget_bytes=0).evict()
    assert (cache.known(1, [1]), cache.read(1, [1])) == (set(), {})
    cache.discard(1, [1])
    cache.write(1, {1: StoredObject(b"again", "br")})
    assert cache.read(1, [1]) == {1: StoredObject(b"again", "br")}


def test_many_who_write_little_keep_to_the_budget(tmp_path):
    """A process is a task, and none of them writes a share of the budget: together they keep to it all the same."""
    for region in range(400):
        make_cache(tmp_path, budget_bytes=1_000_000).write(region, {1: plain(os.urandom(6000))})
    assert disk_bytes(tmp_path) < 2_000_000


def test_what_an_earlier_layout_left_goes_first(tmp_path):
    """Files that nobody uses any more, with their logs, make room before any that are in use."""
    earlier = tmp_path / "seg-0123456789abcdef" / "r00000007.sqlite"
    earlier.parent.mkdir()
    for suffix in ("", "-wal", "-shm"):
        earlier.with_name(earlier.name + suffix).write_bytes(bytes(50_000))
    earlier.with_suffix(".lock").touch()
    os.utime(earlier.with_suffix(".lock"), (10**9 - 1, 10**9 - 1))
    fill(tmp_path, [1, 2])
    DiskCache(tmp_path, budget_bytes=disk_bytes(tmp_path) - 100).evict()
    assert [path.name for path in earlier.parent.iterdir()] == ["r00000007.lock"]
    assert sorted(region_files(tmp_path)) == [1, 2]


def test_the_journal_of_a_killed_writer_counts_and_goes(tmp_path):
    """What SQLite left beside a file is part of its size, and is deleted with it."""
    fill(tmp_path, [1])
    path = region_files(tmp_path)[1]
    journal = path.with_name(path.name + "-journal")
    journal.write_bytes(bytes(70_000))
    size = path.stat().st_size
    assert DiskCache(tmp_path, budget_bytes=size + 70_000).evict() == 0
    assert DiskCache(tmp_path, budget_bytes=size + 69_999).evict() == size + 70_000
    assert not journal.exists()
