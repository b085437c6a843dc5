import multiprocessing
import os
import shutil
import sqlite3
import tempfile
from pathlib import Path

import google_crc32c
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from voxelprobe.cache.disk import DiskCache
from voxelprobe.cache.memory import MemoryCache
from voxelprobe.cache.protocol import ABSENT

PLENTY = 1 << 40
FORK = multiprocessing.get_context("fork")


def make_cache(root, budget_bytes=PLENTY, url="gs://bucket/seg", fingerprint="f"):
    return DiskCache(Path(root), budget_bytes=budget_bytes).of_scale(url, fingerprint)


def region_files(root):
    return {int(path.stem[1:]): path for path in Path(root).glob("*/r*.sqlite")}


class CacheMachine(RuleBasedStateMachine):
    """A cache beside the dictionary that it should be like; reopened now and then."""

    regions = st.integers(0, 3)
    numbers = st.integers(0, 12)
    several = st.lists(numbers, max_size=8)
    payloads = st.one_of(st.just(ABSENT), st.binary(max_size=40), st.integers(1, 9).map(lambda n: b"\0" * n * 2000))

    @staticmethod
    def name(region, number):
        """A chunk's number: of few or of many digits, and of no other region, as in a volume."""
        return region + 4 * number * (2**55 + 1)

    @initialize()
    def start(self):
        """Begin with nothing."""
        self.oracle = {region: {} for region in range(4)}
        self.open()

    @rule(region=regions, payloads=st.dictionaries(numbers, payloads, max_size=5))
    def write(self, region, payloads):
        """Add or replace payloads."""
        payloads = {self.name(region, number): payload for number, payload in payloads.items()}
        self.cache.write(region, payloads)
        self.oracle[region] |= payloads

    @rule(region=regions, numbers=several)
    def discard(self, region, numbers):
        """Forget chunks, known or not."""
        chunks = [self.name(region, number) for number in numbers]
        self.cache.discard(region, iter(chunks))
        for chunk in chunks:
            self.oracle[region].pop(chunk, None)

    @rule(region=regions, numbers=several)
    def ask(self, region, numbers):
        """What is read and known is what the dictionary has."""
        chunks = [self.name(region, number) for number in numbers]
        expected = {chunk: self.oracle[region][chunk] for chunk in chunks if chunk in self.oracle[region]}
        assert self.cache.read(region, chunks) == expected
        one_by_one = list(self.cache.each(region, chunks))
        assert (dict(one_by_one), len(one_by_one)) == (expected, len(expected))
        assert self.cache.known(region, chunks) == expected.keys()

    @rule()
    def reopen(self):
        """Go on as another process would."""
        self.open()


class DiskMachine(CacheMachine):
    def __init__(self):
        super().__init__()
        self.root = tempfile.mkdtemp()

    def open(self):
        """Open the same folder anew."""
        self.cache = make_cache(self.root)

    @invariant()
    def only_written_regions_have_files(self):
        """No file appears beside those of the four regions."""
        assert all(region in range(4) for region in region_files(self.root))

    def teardown(self):
        """Delete the folder."""
        shutil.rmtree(self.root)


class MemoryMachine(CacheMachine):
    def open(self):
        """Keep the one there is: it lives as long as one call."""
        self.cache = getattr(self, "cache", None) or MemoryCache()


DiskMachine.TestCase.settings = settings(deadline=None, max_examples=40, stateful_step_count=15)
MemoryMachine.TestCase.settings = settings(deadline=None, max_examples=20)
TestDiskIsADictionary = DiskMachine.TestCase
TestMemoryIsADictionary = MemoryMachine.TestCase


def test_many_chunks_are_asked_for_at_once(tmp_path):
    """A question of more chunks than SQLite takes at once is answered whole."""
    cache = make_cache(tmp_path)
    cache.write(7, {chunk: str(chunk).encode() for chunk in range(0, 3000, 2)})
    assert cache.read(7, range(3000)) == {chunk: str(chunk).encode() for chunk in range(0, 3000, 2)}
    assert cache.known(7, range(3000)) == set(range(0, 3000, 2))


def test_a_region_that_isnt_there_is_empty_and_stays_so(tmp_path):
    """Asking makes no files."""
    cache = make_cache(tmp_path)
    assert cache.read(1, [1]) == {}
    assert cache.known(1, [1]) == set()
    cache.discard(1, [1])
    cache.write(2, {})
    assert region_files(tmp_path) == {}


def test_values_are_payloads_and_checksums_and_no_pickles(tmp_path):
    """A chunk's rows are the payload as it came, and the CRC32C of number and payload: nothing to be executed."""
    make_cache(tmp_path).write(4, {12: b"payload", 13: ABSENT})
    with sqlite3.connect(region_files(tmp_path)[4]) as database:
        rows = dict(database.execute("SELECT key, value FROM chunks"))
    database.close()
    payloads = {"12": b"payload", "13": b""}
    sums = {f"{key} crc32c": google_crc32c.value(key.encode() + payload).to_bytes(4, "little")
            for key, payload in payloads.items()}
    assert rows == payloads | sums


@pytest.mark.parametrize(("sizes", "page"), [
    ([], None), ([0], 4096), ([100] * 64, 4096), ([30_000] * 64, 8192), ([130_000] * 64, 32_768),
    ([131_072] * 64, 65_536), ([10**6] * 32, 65_536), ([131_072], 4096), ([131_072] * 8, 16_384),
])
def test_pages_are_as_large_as_the_first_chunks_are_worth(tmp_path, sizes, page):
    """Half a chunk, and a 64th of the batch; later batches, of other sizes, find their place in pages of that size."""
    cache = make_cache(tmp_path)
    cache.write(1, {chunk: bytes(size) for chunk, size in enumerate(sizes)})
    for path in region_files(tmp_path).values():
        assert int.from_bytes(path.read_bytes()[16:18], "big") % 65_535 == page % 65_535
    cache.write(1, {1000: b"x", 1001: bytes(300_000)})
    expected = {1000: b"x", 1001: bytes(300_000), **dict(enumerate(map(bytes, sizes[:1])))}
    assert cache.read(1, [0, 1000, 1001]) == expected


def test_a_byte_is_written_once(tmp_path):
    """What a batch has cost when it is committed is its bytes, and a tenth more at most; nothing is left beside it."""
    cache = make_cache(tmp_path)
    cache.write(1, {chunk: os.urandom(200_000) for chunk in range(64)})
    before = bytes_written()
    cache.write(1, {chunk: os.urandom(200_000) for chunk in range(64, 128)})
    assert 64 * 200_000 < bytes_written() - before < 1.1 * 64 * 200_000
    assert {path.suffix for path in tmp_path.glob("*/*")} == {".sqlite", ".lock"}


def bytes_written():
    """Return how many bytes this process has handed to the kernel."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["wchar"])


def test_a_reader_that_stops_early_lets_go(tmp_path):
    """Whoever takes one chunk of many and leaves is in nobody's way afterwards."""
    cache = make_cache(tmp_path)
    cache.write(1, {chunk: b"%d" % chunk for chunk in range(100)})
    reader = cache.each(1, range(100))
    chunk, payload = next(reader)
    assert payload == b"%d" % chunk
    reader.close()
    cache.write(1, {100: b"more"})
    assert cache.read(1, [0, 100]) == {0: b"0", 100: b"more"}


def test_what_was_written_survives_the_process(tmp_path):
    """Once write() has returned, the process may end without any goodbye."""
    def child():
        make_cache(tmp_path).write(1, {chunk: bytes([chunk]) * 5000 for chunk in range(100)})
        os._exit(9)

    process = FORK.Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 9
    assert make_cache(tmp_path).read(1, range(200)) == {chunk: bytes([chunk]) * 5000 for chunk in range(100)}


def test_two_processes_writing_one_region_lose_no_row(tmp_path):
    """Writers wait for each other; all that both wrote is there."""
    def child(start):
        cache = make_cache(tmp_path)
        for chunk in range(start, 120, 2):
            cache.write(5, {chunk: b"%d" % chunk * 300})
            assert cache.read(5, [chunk]) == {chunk: b"%d" % chunk * 300}

    processes = [FORK.Process(target=child, args=(start,)) for start in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert make_cache(tmp_path).read(5, range(120)) == {chunk: b"%d" % chunk * 300 for chunk in range(120)}


def test_scales_and_volumes_never_share(tmp_path):
    """The same region and chunk of another scale, another volume, or a remade volume is another entry."""
    whose = [("gs://bucket/seg", "f"), ("gs://bucket/seg", "g"), ("gs://other/seg", "f"), ("gs://bucket/seg/", "f"),
             ("gs://bucket/s/../seg", "f"), ("file:///data/a b", "f"), ("file:///data/a_b", "f"),
             ("gs://b/" + 99 * "x", "f")]
    for number, (url, fingerprint) in enumerate(whose):
        make_cache(tmp_path, url=url, fingerprint=fingerprint).write(1, {1: b"%d" % number})
    for number, (url, fingerprint) in enumerate(whose):
        assert make_cache(tmp_path, url=url, fingerprint=fingerprint).read(1, [1]) == {1: b"%d" % number}
    assert all(path.parent.parent == tmp_path for path in region_files(tmp_path).values())
