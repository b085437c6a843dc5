import bz2
import contextlib
import gzip
import lzma
import pathlib
import random
import struct
import subprocess
import sys
import tracemalloc
import zlib

import brotli
import pytest
import zstandard
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.transport.wrappers import LOCAL_SUFFIXES, check_encoding, strip_compression


def zstd_unsized(content: bytes) -> bytes:
    return zstandard.ZstdCompressor(write_content_size=False).compress(content)


def gzip_named(content: bytes) -> bytes:
    """A member whose header carries a file name, a comment and an extra field, one with a member's magic in it."""
    body = gzip.compress(content)
    extra = b"ab\x03\0\x1f\x8b\x08"
    return (b"\x1f\x8b\x08" + bytes([4 | 8 | 16]) + body[4:10] + struct.pack("<H", len(extra)) + extra + b"name\0note\0"
            + body[10:])


# Encoding, and a writer of it.
WRITERS = {
    "gzip": ("gzip", gzip.compress),
    "gzip stored": ("x-gzip", lambda c: gzip.compress(c, 0)),
    "gzip named": ("gzip", gzip_named),
    "br": ("br", lambda c: brotli.compress(c, quality=5)),
    "zstd": ("zstd", zstandard.compress),
    "zstd unsized": ("zstd", zstd_unsized),
    "xz": ("xz", lzma.compress),
    "lzma": ("lzma", lambda c: lzma.compress(c, lzma.FORMAT_ALONE)),
    "bz2": ("bz2", bz2.compress),
    "bzip2": ("bzip2", bz2.compress),
    "identity": ("identity", lambda c: c),
}
PACKED = {name: pair for name, pair in WRITERS.items() if name != "identity"}
# Formats that may be written as several parts one after the other; a .lzma may not.
REPEATABLE = ["gzip", "gzip stored", "gzip named", "zstd", "zstd unsized", "xz", "bz2"]
CHECKED = ["gzip", "gzip stored", "gzip named", "xz", "bz2"]

every_writer = pytest.mark.parametrize("writer", list(WRITERS))
every_packer = pytest.mark.parametrize("writer", list(PACKED))
SAMPLE = bytes(range(256)) + b"voxelprobe " * 40 + bytes(300)

contents = st.one_of(st.binary(max_size=300), st.tuples(st.binary(max_size=20), st.integers(0, 20_000)).map(
    lambda pair: pair[0] * (pair[1] // 10)))


@every_writer
@settings(max_examples=40, deadline=None)
@given(content=contents)
def test_what_was_wrapped_comes_back(writer, content):
    """Every encoding gives back exactly what was written, as bytes or, out of gzip, as a bytearray."""
    encoding, wrap = WRITERS[writer]
    stripped = strip_compression(wrap(content), encoding)
    assert type(stripped) is bytes or (type(stripped) is bytearray and writer.startswith("gzip"))
    assert stripped == content


@every_writer
def test_an_empty_object_is_empty(writer):
    """A zero-byte object is a legal empty chunk whatever the encoding; so is one that unwraps to nothing."""
    encoding, wrap = WRITERS[writer]
    assert strip_compression(b"", encoding) == b""
    assert strip_compression(wrap(b""), encoding) == b""
    assert strip_compression(wrap(b""), f"gzip, {encoding}") == b""


@every_packer
@pytest.mark.parametrize("sample", [SAMPLE, bytes(2000), b"x"])
def test_truncation_at_every_byte_is_corrupt(writer, sample):
    """Cut anywhere, an object is an error, never short (cut to nothing, it is an empty chunk)."""
    encoding, wrap = WRITERS[writer]
    packed = wrap(sample)
    for length in range(1, len(packed)):
        with pytest.raises(CorruptDataError, match=f"found {length} bytes"):
            strip_compression(packed[:length], encoding)


@every_packer
@pytest.mark.parametrize("behind", [b"x", b"garbage behind the end", b"\x1f\x8b", b"\0\0\0\0\0x", b"\xff" * 40])
def test_something_behind_the_end_is_corrupt(writer, behind):
    """What follows the end and isn't another part of the same format is an error, with and without a limit."""
    encoding, wrap = WRITERS[writer]
    for max_bytes in (None, len(SAMPLE), 10**6):
        with pytest.raises(CorruptDataError):
            strip_compression(wrap(SAMPLE) + behind, encoding, max_bytes=max_bytes)


@pytest.mark.parametrize("writer", CHECKED)
def test_a_flipped_bit_is_noticed_where_there_is_a_checksum(writer):
    """Any flipped bit gives an error or the exact content."""
    encoding, wrap = WRITERS[writer]
    packed = wrap(SAMPLE)
    for position in range(len(packed)):
        for bit in (0, 3, 7):
            flipped = bytearray(packed)
            flipped[position] ^= 1 << bit
            try:
                stripped = strip_compression(bytes(flipped), encoding)
            except CorruptDataError:
                continue
            assert stripped == SAMPLE, (position, bit)


@every_packer
def test_noise_is_an_error_of_ours(writer):
    """Whatever bytes come, nothing but CorruptDataError is raised."""
    encoding, wrap = WRITERS[writer]
    packed = wrap(SAMPLE)
    rng = random.Random(5)
    for _ in range(300):
        noise = bytearray(packed if rng.random() < 0.7 else rng.randbytes(rng.randrange(1, 60)))
        for _ in range(rng.randrange(1, 6)):
            noise[rng.randrange(len(noise))] = rng.randrange(256)
        with contextlib.suppress(CorruptDataError):
            strip_compression(bytes(noise), encoding, max_bytes=10**6)


@pytest.mark.parametrize("writer", REPEATABLE)
@settings(max_examples=30, deadline=None)
@given(parts=st.lists(contents, min_size=2, max_size=4), same=st.booleans())
def test_all_parts_of_an_object_are_read(writer, parts, same):
    """Members, frames and streams one after the other give their contents one after the other, equal ones too."""
    encoding, wrap = WRITERS[writer]
    if same:
        parts = [parts[0]] * len(parts)
    packed = b"".join(wrap(part) for part in parts)
    assert strip_compression(packed, encoding) == b"".join(parts)
    assert strip_compression(packed, encoding, max_bytes=len(b"".join(parts))) == b"".join(parts)


@pytest.mark.parametrize("first", range(40, 60))
def test_equally_long_gzip_members_are_all_read(first):
    """The last member's length says nothing of how many there are: each place of a second member is looked at."""
    one, other = random.Random(1).randbytes(first), bytes(first)
    assert strip_compression(gzip.compress(one) + gzip.compress(other), "gzip") == one + other
    assert strip_compression(gzip.compress(one) * 2, "gzip") == one * 2


@pytest.mark.parametrize("zeros", [1, 3, 4, 8, 18, 1000])
def test_zeros_behind_gzip_are_padding(zeros):
    """Tapes and block devices pad with zeros: the content is whole."""
    assert strip_compression(gzip.compress(SAMPLE) + bytes(zeros), "gzip") == SAMPLE
    assert strip_compression(gzip.compress(SAMPLE) * 2 + bytes(zeros), "gzip") == SAMPLE * 2
    with pytest.raises(CorruptDataError):
        strip_compression(gzip.compress(SAMPLE)[:-4] + bytes(zeros + 4), "gzip")


def test_gzip_s_checksum_and_length_are_checked():
    """Right data with a wrong CRC, or a wrong length, in the trailer is corrupt; in any member."""
    packed = gzip.compress(SAMPLE)
    crc, length = struct.unpack("<II", packed[-8:])
    for trailer in [(crc ^ 1, length), (crc, length + 1), (crc, 0), (crc, 2**32 - 1), (0, length)]:
        bad = packed[:-8] + struct.pack("<II", *trailer)
        for content in (bad, bad + packed, packed + bad):
            with pytest.raises(CorruptDataError, match="gzip"):
                strip_compression(content, "gzip")


@pytest.mark.parametrize("lure", [b"\x1f\x8b\x08\0", b"\x1f\x8b\x09-", b"\x1f\x8b\x1f\x8b\x09"])
@pytest.mark.parametrize("shift", [0, 1])
@pytest.mark.parametrize("count", [1, 2, 30])
def test_what_looks_like_a_member_s_beginning_is_content(lure, shift, count):
    """A member's first bytes inside of the data neither end it nor hide the member that follows."""
    content = b"a" * shift + lure * count
    assert strip_compression(gzip.compress(content, 0), "gzip") == content
    assert strip_compression(gzip.compress(content, 0) * 2, "gzip") == content * 2


def test_skippable_zstd_frames_are_skipped():
    """Frames for somebody else (seek tables, pzstd) hold nothing and hide nothing."""
    skippable = b"\x50\x2a\x4d\x18\x04\0\0\0abcd"
    frame, empty = zstandard.compress(SAMPLE), zstandard.compress(b"")
    for content in (skippable + frame, frame + skippable, empty + frame, frame + empty):
        assert strip_compression(content, "zstd") == SAMPLE


@settings(max_examples=40, deadline=None)
@given(content=contents, names=st.lists(st.sampled_from(list(WRITERS)), min_size=1, max_size=4), data=st.data())
def test_a_list_of_encodings_is_undone_in_reverse(content, names, data):
    """`a, b` was written a first; case, spaces, empty members and aws-chunked don't matter."""
    packed = content
    for name in names:
        packed = WRITERS[name][1](packed)
    encodings = [WRITERS[name][0] for name in names]
    encodings.insert(data.draw(st.integers(0, len(names))), data.draw(st.sampled_from(["aws-chunked", "", "identity"])))
    header = data.draw(st.sampled_from([",", ", ", " ,  "])).join(encodings)
    if data.draw(st.booleans()):
        header = header.upper()
    check_encoding(header)
    assert strip_compression(packed, header, max_bytes=len(content)) == content


@pytest.mark.parametrize("header", [None, "", "identity", "aws-chunked", " Identity "])
def test_no_encoding_leaves_the_content_alone(header):
    """Without an encoding, content comes back as it is, even if it looks compressed."""
    packed = gzip.compress(SAMPLE)
    assert strip_compression(packed, header) is packed
    check_encoding(header)


@pytest.mark.parametrize("header", ["compress", "gzip, rot13", "rot13, gzip", "gzip;q=1", "raw"])
def test_an_unknown_encoding_is_unsupported(header):
    """An encoding we can't undo is named; nothing is guessed."""
    with pytest.raises(UnsupportedError, match=r"content encoding '(compress|rot13|gzip;q=1|raw)' is not one of "):
        strip_compression(gzip.compress(SAMPLE), header)
    with pytest.raises(UnsupportedError, match=r"content encoding '(compress|rot13|gzip;q=1|raw)' is not one of "):
        check_encoding(header)


@every_writer
def test_the_limit_is_exact(writer):
    """As much as `max_bytes` is given back, one more is an error; in lists too."""
    encoding, wrap = WRITERS[writer]
    for content in (SAMPLE, bytes(40_000), random.Random(2).randbytes(10_000)):
        for header, packed in [(encoding, wrap(content)), (f"gzip, {encoding}", wrap(gzip.compress(content)))]:
            assert strip_compression(packed, header, max_bytes=len(content)) == content
            with pytest.raises(CorruptDataError, match=f"at most {len(content) - 1} bytes"):
                strip_compression(packed, header, max_bytes=len(content) - 1)


BOMBS = {
    "gzip": ("gzip", lambda n: zlib.compress(bytes(n), 9, 31)),
    "gzip members": ("gzip", lambda n: zlib.compress(bytes(n // 8), 9, 31) * 8),
    "br": ("br", lambda n: brotli.compress(bytes(n), quality=3)),
    "zstd": ("zstd", lambda n: zstandard.compress(bytes(n))),
    "zstd unsized": ("zstd", lambda n: zstd_unsized(bytes(n))),
    "xz": ("xz", lambda n: lzma.compress(bytes(n), preset=0)),
    "bz2": ("bz2", lambda n: bz2.compress(bytes(n))),
}


@pytest.mark.parametrize("name", list(BOMBS))
def test_a_bomb_is_refused_in_bounded_memory(name):
    """What would make 128 MB is refused at 1 MB without most of it ever being held."""
    encoding, make = BOMBS[name]
    bomb = make(2**27)
    tracemalloc.start()
    try:
        with pytest.raises(CorruptDataError, match="at most 1000000 bytes"):
            strip_compression(bomb, encoding, max_bytes=10**6)
        assert tracemalloc.get_traced_memory()[1] < 80e6
    finally:
        tracemalloc.stop()


def test_a_lying_length_is_not_believed():
    """A header or trailer that promises gigabytes is corrupt before it is allocated, without any limit given."""
    gz = gzip.compress(SAMPLE)[:-4] + b"\xff\xff\xff\xff"
    # A zstd frame of single-segment form with an 8-byte content size, and an empty last block.
    zst = b"\x28\xb5\x2f\xfd\xe0" + struct.pack("<Q", 2**40) + b"\x01\0\0"
    tracemalloc.start()
    try:
        for content, encoding in ((gz, "gzip"), (zst, "zstd")):
            with pytest.raises(CorruptDataError):
                strip_compression(content, encoding)
        assert tracemalloc.get_traced_memory()[1] < 10e6
    finally:
        tracemalloc.stop()


def with_dictionary(content, size):
    """Return xz data whose header asks for a dictionary of `size` bytes, 2^n or 3 * 2^n; and .lzma."""
    payload = bytearray(lzma.compress(content))
    assert (payload[12:15], payload[16]) == (b"\x02\0\x21", 22)  # a block's header: LZMA2, with 8 MiB
    payload[16] = next(bits for bits in range(40) if (2 | bits & 1) << bits // 2 + 11 == size)
    payload[20:24] = zlib.crc32(payload[12:20]).to_bytes(4, "little")
    alone = bytearray(lzma.compress(content, lzma.FORMAT_ALONE))
    alone[1:5] = size.to_bytes(4, "little")
    return bytes(payload), bytes(alone)


def test_a_header_of_xz_doesnt_make_us_allocate():
    """A dictionary of gigabytes, which a header of xz can ask for, is refused; those of every preset are made."""
    for size in (3 << 30, 1 << 30, 1 << 28):
        for payload in with_dictionary(SAMPLE, size):
            with pytest.raises(CorruptDataError, match=r"(?i)memory usage limit"):
                strip_compression(payload, "xz", max_bytes=10_000)
    for payload in with_dictionary(SAMPLE, 64 << 20):
        assert strip_compression(payload, "xz", max_bytes=10_000) == SAMPLE


def test_foreign_errors_are_the_cause():
    """The package's own complaint is kept as the cause."""
    for encoding in ("gzip", "br", "zstd", "xz", "bz2"):
        with pytest.raises(CorruptDataError, match="found 30 bytes") as caught:
            strip_compression(b"certainly not compressed bytes", encoding)
        assert caught.value.__cause__ is not None


def test_local_suffixes_are_those_of_cloud_files():
    """Every suffix that cloud-files looks for on a local disk is known, in its order, and can be stripped."""
    from cloudfiles.interfaces import EXT_TEST_SEQUENCE, FileInterface

    assert sorted(LOCAL_SUFFIXES, key=str) == sorted(EXT_TEST_SEQUENCE, key=str)
    assert LOCAL_SUFFIXES[0] == ("", None)
    for suffix, encoding in LOCAL_SUFFIXES:
        assert FileInterface.get_extension(encoding) == suffix
        assert strip_compression(b"", encoding) == b""


@pytest.mark.parametrize("encoding", ["gzip", "br", "zstd", "xz", "bz2"])
def test_what_cloud_files_wrote_is_read(tmp_path: pathlib.Path, encoding):
    """A file that cloud-files compressed on a local disk is found by its suffix and unwrapped."""
    from cloudfiles import CloudFiles

    CloudFiles(f"file://{tmp_path}", progress=False).put("chunk", SAMPLE, compress=encoding)
    (path,) = [p for p in tmp_path.iterdir() if p.is_file()]
    suffixes = dict(LOCAL_SUFFIXES)
    assert strip_compression(path.read_bytes(), suffixes[path.suffix]) == SAMPLE


def test_importing_loads_no_codec():
    """Start-up is a feature: the compression packages are loaded when first used."""
    code = ("import sys, voxelprobe.transport.wrappers; "
            "print([m for m in ('brotli', 'zstandard', 'deflate', 'isal', 'lzma', 'bz2') if m in sys.modules])")
    before = subprocess.run([sys.executable, "-c", "import sys, numpy; print([m for m in ('brotli', 'zstandard', "
                             "'deflate', 'isal', 'lzma', 'bz2') if m in sys.modules])"],
                            capture_output=True, text=True, check=True)
    after = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert after.stdout == before.stdout
