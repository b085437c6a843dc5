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
from voxelprobe.transport.protocol import StoredObject

PLENTY = 1 << 40
FORK = multiprocessing.get_context("fork")
# As servers say it: names, lists, and what may stand in a header by its rules or against them.
ENCODINGS = [None, "", "gzip", "br", "gzip, br", "br,gzip", " GZIP ;q=1", "identity", "\xe9\xff", "N facts", "x" * 300]


def make_cache(root, budget_bytes=PLENTY, url="gs://bucket/seg", fingerprint="f"):
    return DiskCache(Path(root), budget_bytes=budget_bytes).of_scale(url, fingerprint)


def plain(content):
    return StoredObject(content, None)


def same(objects):
    """Return objects with one name for no compression."""
    return {chunk: StoredObject(content, encoding or None) for chunk, (content, encoding, _) in objects.items()}


def region_files(root):
    return {int(path.stem[1:]): path for path in Path(root).glob("*/r*.sqlite")}


class CacheMachine(RuleBasedStateMachine):
    """A cache beside the dictionary that it should be like; reopened now and then."""

    regions = st.integers(0, 3)
    numbers = st.integers(0, 12)
    several = st.lists(numbers, max_size=8)
    contents = st.one_of(st.binary(max_size=40), st.integers(1, 9).map(lambda n: b"\0" * n * 2000))
    objects = st.just(ABSENT) | st.builds(StoredObject, contents, st.sampled_from(ENCODINGS) | st.text(max_size=9))

    @staticmethod
    def name(region, number):
        """A chunk's number: of few or of many digits, and of no other region, as in a volume."""
        return region + 4 * number * (2**55 + 1)

    @initialize()
    def start(self):
        """Begin with nothing."""
        self.oracle = {region: {} for region in range(4)}
        self.open()

    @rule(region=regions, objects=st.dictionaries(numbers, objects, max_size=5))
    def write(self, region, objects):
        """Add or replace objects."""
        objects = {self.name(region, number): stored for number, stored in objects.items()}
        self.cache.write(region, objects)
        self.oracle[region] |= objects

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
        assert same(self.cache.read(region, chunks)) == same(expected)
        one_by_one = {chunk: found for chunk in chunks for found in self.cache.read(region, [chunk]).values()}
        assert same(one_by_one) == same(expected)
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
    expected = {chunk: StoredObject(b"%d" % chunk, ENCODINGS[chunk % 5] or None) for chunk in range(0, 3000, 2)}
    cache.write(7, expected)
    assert cache.read(7, range(3000)) == expected
    assert cache.known(7, range(3000)) == set(range(0, 3000, 2))


def test_a_region_that_isnt_there_is_empty_and_stays_so(tmp_path):
    """Asking makes no files."""
    cache = make_cache(tmp_path)
    assert cache.read(1, [1]) == {}
    assert cache.known(1, [1]) == set()
    cache.discard(1, [1])
    cache.write(2, {})
    assert region_files(tmp_path) == {}


def test_values_are_contents_and_facts_and_no_pickles(tmp_path):
    """A chunk's rows are the content as it came, and the CRC32C of all with the encoding: nothing to be executed."""
    make_cache(tmp_path).write(4, {12: StoredObject(b"content", "gzip, br"), 13: ABSENT, 14: plain(b"content")})
    with sqlite3.connect(region_files(tmp_path)[4]) as database:
        rows = dict(database.execute("SELECT key, value FROM chunks"))
    database.close()
    contents = {"12": b"content", "13": b"", "14": b"content"}
    encodings = {"12": b"gzip, br", "13": b"", "14": b""}
    facts = {f"{key} facts": google_crc32c.value(key.encode() + b" " + encodings[key] + content).to_bytes(4, "little")
             + encodings[key] for key, content in contents.items()}
    assert rows == contents | facts


@pytest.mark.parametrize("make", [make_cache, lambda root: MemoryCache()], ids=["disk", "memory"])
def test_an_encoding_comes_back_as_it_was(tmp_path, make):
    """Every name and list, to the letter, also beside no bytes; none is none, and never what was there before."""
    cache = make(tmp_path)
    for turn in range(len(ENCODINGS)):
        objects = {2 * number + empty: StoredObject(b"" if empty else b"content", encoding)
                   for number, encoding in enumerate(ENCODINGS[turn:] + ENCODINGS[:turn]) for empty in (0, 1)}
        cache.write(1, objects)
        found = cache.read(1, list(objects))
        assert same(found) == same(objects)
        assert {(type(stored), type(stored.content)) for stored in found.values()} == {(StoredObject, bytes)}


@pytest.mark.parametrize(("sizes", "page"), [
    ([], None), ([0], 4096), ([100] * 64, 4096), ([30_000] * 64, 8192), ([130_000] * 64, 32_768),
    ([131_072] * 64, 65_536), ([10**6] * 32, 65_536), ([131_072], 4096), ([131_072] * 8, 16_384),
])
def test_pages_are_as_large_as_the_first_chunks_are_worth(tmp_path, sizes, page):
    """Half a chunk, and a 64th of the batch; later batches, of other sizes, find their place in pages of that size."""
    cache = make_cache(tmp_path)
    cache.write(1, {chunk: plain(bytes(size)) for chunk, size in enumerate(sizes)})
    for path in region_files(tmp_path).values():
        assert int.from_bytes(path.read_bytes()[16:18], "big") % 65_535 == page % 65_535
    later = {1000: plain(b"x"), 1001: plain(bytes(300_000))}
    cache.write(1, later)
    assert cache.read(1, [0, 1000, 1001]) == later | dict(enumerate(plain(bytes(size)) for size in sizes[:1]))


def test_a_byte_is_written_once(tmp_path):
    """What a batch has cost when it is committed is its bytes, and a tenth more at most; nothing is left beside it."""
    cache = make_cache(tmp_path)
    cache.write(1, {chunk: StoredObject(os.urandom(200_000), "gzip") for chunk in range(64)})
    before = bytes_written()
    cache.write(1, {chunk: StoredObject(os.urandom(200_000), "gzip") for chunk in range(64, 128)})
    assert 64 * 200_000 < bytes_written() - before < 1.1 * 64 * 200_000
    assert {path.suffix for path in tmp_path.glob("*/*")} == {".sqlite", ".lock"}


def bytes_written():
    """Return how many bytes this process has handed to the kernel."""
    return int(dict(line.split(": ") for line in Path("/proc/self/io").read_text().splitlines())["wchar"])


def test_what_was_written_survives_the_process(tmp_path):
    """Once write() has returned, the process may end without any goodbye."""
    def child():
        make_cache(tmp_path).write(1, expected)
        os._exit(9)

    expected = {chunk: StoredObject(bytes([chunk]) * 5000, "br" if chunk % 2 else None) for chunk in range(100)}

    process = FORK.Process(target=child)
    process.start()
    process.join(30)
    assert process.exitcode == 9
    assert make_cache(tmp_path).read(1, range(200)) == expected


def test_two_processes_writing_one_region_lose_no_row(tmp_path):
    """Writers wait for each other; all that both wrote is there."""
    def child(start):
        cache = make_cache(tmp_path)
        for chunk in range(start, 120, 2):
            cache.write(5, {chunk: plain(b"%d" % chunk * 300)})
            assert cache.read(5, [chunk]) == {chunk: plain(b"%d" % chunk * 300)}

    processes = [FORK.Process(target=child, args=(start,)) for start in (0, 1)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    assert make_cache(tmp_path).read(5, range(120)) == {chunk: plain(b"%d" % chunk * 300) for chunk in range(120)}


def test_scales_and_volumes_never_share(tmp_path):
    """The same region and chunk of another scale, another volume, or a remade volume is another entry."""
    whose = [("gs://bucket/seg", "f"), ("gs://bucket/seg", "g"), ("gs://other/seg", "f"), ("gs://bucket/seg/", "f"),
             ("gs://bucket/s/../seg", "f"), ("file:///data/a b", "f"), ("file:///data/a_b", "f"),
             ("gs://b/" + 99 * "x", "f")]
    for number, (url, fingerprint) in enumerate(whose):
        make_cache(tmp_path, url=url, fingerprint=fingerprint).write(1, {1: plain(b"%d" % number)})
    for number, (url, fingerprint) in enumerate(whose):
        assert make_cache(tmp_path, url=url, fingerprint=fingerprint).read(1, [1]) == {1: plain(b"%d" % number)}
    assert all(path.parent.parent == tmp_path for path in region_files(tmp_path).values())
