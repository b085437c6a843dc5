"""The compression that stored objects are wrapped in, against Python's own modules and each package's plain call."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import zlib

from fuzz.target import Target, attempt, is_refused
from voxelprobe.transport.wrappers import strip_compression

_MOST = 1 << 20
_NAMES = ("gzip", "br", "zstd", "xz", "lzma", "bz2", "gzip, br")


def inflate_gzip(payload: bytes) -> bytes:
    """Return what gzip members hold, by zlib, which takes a little less than the product's decoders do.

    Those read on where a table of codes has a gap that is never used; then what they give has to match the sum and the
    length that follow it. And what follows a member and ends with its length is passed over, the sum compared.
    """
    try:
        return gzip.decompress(payload)
    except gzip.BadGzipFile:
        stream = zlib.decompressobj(31)
        content = stream.decompress(payload)
        assert stream.eof
        assert stream.unused_data[-4:] == len(content).to_bytes(4, "little"), "something else follows"
        return content
    except zlib.error:
        content = bytes(strip_compression(payload, "gzip", max_bytes=_MOST))
        second = payload.find(b"\x1f\x8b\x08", 1)
        if second > 0 and zlib.crc32(content).to_bytes(4, "little") not in payload:  # a member of several
            return inflate_gzip(payload[:second]) + inflate_gzip(payload[second:])
        assert zlib.crc32(content).to_bytes(4, "little") + len(content).to_bytes(4, "little") in payload
        return content


def _strip_plainly(name: str, payload: bytes) -> bytes:
    if name == "gzip":
        return inflate_gzip(payload)
    if name == "br":
        import brotli

        return brotli.decompress(payload)
    if name == "zstd":
        import zstandard

        with zstandard.ZstdDecompressor().stream_reader(payload, read_across_frames=True) as stream:
            return stream.read(2 * _MOST)
    if name == "bz2":
        return bz2.decompress(payload)
    is_xz = payload.startswith(b"\xfd7zXZ\0")
    return lzma.decompress(payload, lzma.FORMAT_XZ if is_xz else lzma.FORMAT_ALONE)


def _check(data: bytes) -> bool:
    name = _NAMES[data[0] % len(_NAMES)] if data else ""
    payload = data[1:]
    found = attempt(strip_compression, payload, name, max_bytes=_MOST)
    if is_refused(found):
        return False
    assert len(found) <= _MOST
    if payload:
        for layer in reversed(name.split(", ")):
            payload = _strip_plainly(layer, payload) if payload else payload
    assert bytes(found) == payload
    return True


def _seeds() -> list[bytes]:
    import brotli
    import zstandard

    contents = [b"", b"a", b"labels " * 40, bytes(range(256)), bytes(3000)]
    pack = (
        gzip.compress, brotli.compress, zstandard.ZstdCompressor(write_checksum=True).compress, lzma.compress,
        lambda content: lzma.compress(content, lzma.FORMAT_ALONE), bz2.compress,
        lambda content: brotli.compress(gzip.compress(content)),
    )
    seeds = [bytes([kind]) + wrap(content) for kind, wrap in enumerate(pack) for content in contents]
    # Several members, streams or frames in one object.
    return seeds + [bytes([kind]) + pack[kind](contents[2]) + pack[kind](contents[3]) for kind in (0, 2, 3, 5)]


def _mend(data: bytes, rng: random.Random) -> bytes:
    """Return gzip whose length at the end is that of another content, or data with their end doubled."""
    kind = rng.randrange(6)
    if kind == 0 and len(data) > 9:
        return data + data[-rng.choice((4, 8)) :]
    if kind == 1 and len(data) > 5:
        return data[:-4] + rng.choice((0, 1, 2**20, 2**32 - 1)).to_bytes(4, "little")
    if kind == 2 and data:
        return data + bytes(rng.randint(1, 9))
    return data


TARGETS = {"wrappers": Target(_seeds, _check, _mend, most_bytes=1500)}
