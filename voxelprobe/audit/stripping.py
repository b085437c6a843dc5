"""The compression that an object is wrapped in, taken off by Python's own modules where it has one.

`voxelprobe.transport.wrappers` uses libdeflate and isal for the same; of br and zstd there is one package.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import zlib
from collections.abc import Callable
from io import BytesIO

from voxelprobe.errors import CorruptDataError


def strip(content: bytes, encodings: str | None, max_bytes: int) -> bytes:
    """Return an object's content without its compression.

    Parameters
    ----------
    encodings
        As `Content-Encoding` has it: `gzip`, or `gzip, br` in the order in which they were applied.
    max_bytes
        Most that the result may have.

    Raises
    ------
    CorruptDataError
        If it can't be done.
    """
    for name in reversed((encodings or "").lower().split(",")):
        if not content:
            break
        if name.strip() in ("", "identity", "aws-chunked"):
            continue
        if name.strip() not in _READERS:
            raise CorruptDataError(f"content encoding {name.strip()!r} is unknown here")
        try:
            content = _READERS[name.strip()](content, max_bytes + 1)
        except (OSError, EOFError, ValueError, RuntimeError, zlib.error, lzma.LZMAError, MemoryError) as error:
            raise CorruptDataError(f"expected whole {name.strip()} data, found {len(content)} bytes that aren't: "
                                   f"{error}") from error
    if len(content) > max_bytes:
        raise CorruptDataError(f"expected at most {max_bytes} bytes, found more")
    return content


def _read_gzip(content: bytes, most: int) -> bytes:
    with gzip.GzipFile(fileobj=BytesIO(content)) as file:
        return _read_to_end(file.read, most)


def _read_xz(content: bytes, most: int) -> bytes:
    with lzma.LZMAFile(BytesIO(content)) as file:
        return _read_to_end(file.read, most)


def _read_bz2(content: bytes, most: int) -> bytes:
    with bz2.BZ2File(BytesIO(content)) as file:
        return _read_to_end(file.read, most)


def _read_brotli(content: bytes, most: int) -> bytes:
    import brotli

    stripper = brotli.Decompressor()
    try:
        pieces = [stripper.process(content, output_buffer_limit=most)]
        while not stripper.is_finished() and sum(map(len, pieces)) < most:
            if stripper.can_accept_more_data():
                raise EOFError("it ends early")
            pieces.append(stripper.process(b"", output_buffer_limit=most))
    except brotli.error as error:
        raise ValueError(str(error)) from error
    return b"".join(pieces)


def _read_zstd(content: bytes, most: int) -> bytes:
    import zstandard

    pieces: list[bytes] = []
    total = begin = 0
    stripper = None
    try:
        # In small pieces, for its output can't be limited; not as a file, for that takes a cut frame for its end.
        while begin < len(content) and total < most:
            stripper = stripper or zstandard.ZstdDecompressor().decompressobj()
            pieces.append(stripper.decompress(content[begin : begin + 2048]))
            total += len(pieces[-1])
            begin += min(2048, len(content) - begin) - len(stripper.unused_data)
            stripper = None if stripper.eof else stripper
        if stripper is not None and total < most:
            raise EOFError("it ends early")
        return b"".join(pieces)
    except zstandard.ZstdError as error:
        raise ValueError(str(error)) from error


def _read_to_end(read: Callable[[int], bytes], most: int) -> bytes:
    """Return what a stream holds, no more than `most` bytes; its checksums are compared at its end."""
    pieces: list[bytes] = []
    total = 0
    while total < most and (piece := read(min(most - total, 1 << 20))):
        pieces.append(piece)
        total += len(piece)
    return b"".join(pieces)


_READERS: dict[str, Callable[[bytes, int], bytes]] = {
    "gzip": _read_gzip, "x-gzip": _read_gzip, "br": _read_brotli, "zstd": _read_zstd,
    "xz": _read_xz, "lzma": _read_xz, "bz2": _read_bz2, "bzip2": _read_bz2,
}
