"""Compressors of zarr and n5 undone, each with a bound on what it may make; see `compression`.

numcodecs inflates gzip and zlib with zlib's own code; libdeflate (gzip) and ISA-L (zlib) are faster.
"""

from __future__ import annotations

import lzma
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

from voxelprobe.codecs import blosc_frame
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.transport.wrappers import strip_compression

Content: TypeAlias = bytes | bytearray | memoryview
Config: TypeAlias = Mapping[str, Any]

_XZ_MAGIC = b"\xfd7zXZ\x00"


def _undo_blosc(content: Content, most: int) -> Content:
    return blosc_frame.decompress(content, most)


def _undo_gzip(content: Content, most: int) -> Content:
    return strip_compression(bytes(content), "gzip", max_bytes=most)


def _undo_zstd(content: Content, most: int) -> Content:
    import zstandard

    size = -1
    try:
        size = zstandard.frame_content_size(content)  # -1 if the frame doesn't say
        if size > most:
            raise CorruptDataError(f"zstd: expected at most {most} bytes, the header promises {size}")
        return zstandard.ZstdDecompressor().decompress(content, max_output_size=most, allow_extra_data=False)
    except zstandard.ZstdError as error:
        if size >= 0:  # several frames, or damaged: this tells which
            return strip_compression(bytes(content), "zstd", max_bytes=most)
        raise CorruptDataError(f"zstd: expected a frame of at most {most} bytes: {error}") from error


def _undo_bz2(content: Content, most: int) -> Content:
    return strip_compression(bytes(content), "bz2", max_bytes=most)


def _undo_zlib(content: Content, most: int) -> Content:
    from isal import isal_zlib

    stream = isal_zlib.decompressobj()
    try:
        inflated: bytes = stream.decompress(content, most + 1)
    except isal_zlib.error as error:  # type: ignore[misc]  # its stub says `error: Exception`
        raise CorruptDataError(f"zlib: {error}") from error
    if len(inflated) <= most and not stream.eof:
        raise CorruptDataError(f"zlib: the data end early, after {len(inflated)} bytes")
    if len(inflated) > most or stream.unused_data:
        raise CorruptDataError(f"zlib: expected at most {most} bytes and nothing after them, found more")
    return inflated


def _undo_lz4(content: Content, most: int) -> Content:
    from numcodecs import lz4

    size = int.from_bytes(content[:4], "little")
    if len(content) < 4 or not 0 < size <= most:
        raise CorruptDataError(f"lz4: expected at most {most} bytes, the header promises {size}")
    decoded: bytes = lz4.decompress(content)
    return decoded


def make_lzma(config: Config) -> Callable[[Content, int], Content]:
    """Return what undoes numcodecs' lzma, whose `format` is that of Python's module."""
    file_format = config.get("format", lzma.FORMAT_XZ)
    if file_format not in (lzma.FORMAT_AUTO, lzma.FORMAT_XZ, lzma.FORMAT_ALONE):
        raise UnsupportedError(f"codec 'lzma' of format {file_format!r} can't be read")

    def undo(content: Content, most: int) -> Content:
        # Without its magic it would be taken for the older format, of which almost any bytes are the beginning.
        if file_format == lzma.FORMAT_XZ and content[: len(_XZ_MAGIC)] != _XZ_MAGIC:
            raise CorruptDataError(f"lzma: expected xz data, found {bytes(content[:6])!r}")
        return strip_compression(bytes(content), "xz", max_bytes=most)

    return undo


def undo_crc32c(content: Content, most: int) -> Content:
    """Return what lies before a CRC-32C, after it was compared."""
    import google_crc32c

    stored, given = bytes(content[:-4]), content[-4:]
    if len(given) < 4 or google_crc32c.value(stored) != int.from_bytes(given, "little"):
        raise CorruptDataError("crc32c: the checksum doesn't match")
    return stored


COMPRESSORS: Mapping[str, Callable[[Content, int], Content]] = {
    "blosc": _undo_blosc, "bz2": _undo_bz2, "gzip": _undo_gzip, "lz4": _undo_lz4, "zlib": _undo_zlib,
    "zstd": _undo_zstd,
}
