"""The compression a stored object is wrapped in, taken off and checked; pure, no I/O.

Names are those of HTTP's `Content-Encoding` (RFC 9110, 8.4) and of cloud-files on a local disk. Formats: gzip RFC 1952,
brotli RFC 7932, zstd RFC 8878, xz https://tukaani.org/xz/xz-file-format.txt, bzip2 (no specification; its own source).

What a format lets us notice: gzip, xz and bzip2 carry checksums, so a flipped bit is an error. brotli has none, .lzma
neither, and zstd's is seldom written: a flip there may go unnoticed. Where an object is cut between whole gzip members,
zstd frames, or xz and bzip2 streams, nobody can tell but the store (`Content-Length`).

Packages are imported when first needed: most volumes need one of them.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import Any

import numpy as np

from voxelprobe.errors import CorruptDataError, UnsupportedError

# What libdeflate returns: a copy into `bytes` would cost a third of inflating.
Stripped = bytes | bytearray

# What cloud-files appends to a file's name on a local disk, and the encoding that stands for; "" is the bare name.
LOCAL_SUFFIXES: tuple[tuple[str, str | None], ...] = (
    ("", None), (".gz", "gzip"), (".br", "br"), (".zstd", "zstd"), (".xz", "xz"), (".bz2", "bzip2"),
)

# Deflate makes at most 1,032 bytes of one (258 bytes from 2 bits), zstd 128 KiB of a 4-byte block: a header or trailer
# that promises more is damaged, and must not make us allocate it.
_DEFLATE_MOST = 1032
_ZSTD_MOST = 2**15
# Given to a decompressor at once. Where its output can't be limited (zstd), 2 KiB make at most 64 MiB.
_PIECE_BYTES = 2048
# xz's strongest preset takes 65 MiB to undo; a header can ask for 4 GiB.
_XZ_MEMORY_BYTES = 128 << 20


def strip_compression(content: bytes, content_encoding: str | None, *, max_bytes: int | None = None) -> Stripped:
    """Return the content of a stored object without the compression it is wrapped in.

    Parameters
    ----------
    content
        The whole object. If it is empty so is the result, whatever the encoding: an empty chunk is legal.
    content_encoding
        `gzip`, `x-gzip`, `br`, `zstd`, `xz`, `lzma`, `bz2`, `bzip2`; `identity`, empty or None for none; or a list as
        in `gzip, br`, in the order in which they were applied. `aws-chunked`, which S3 keeps though it is undone by
        then, is passed over.
    max_bytes
        Most that the result may have. Memory stays within about twice that, plus 64 MiB (of xz 128 MiB).

    Raises
    ------
    CorruptDataError
        If `content` is damaged, cut short, followed by something else, or makes more than `max_bytes`.
    UnsupportedError
        If there is an encoding of another name.
    """
    limit = sys.maxsize if max_bytes is None else max_bytes
    stripped: Stripped = content
    strip = _STRIPPERS.get(content_encoding or "")
    if strip is not None:
        stripped = strip(content, limit) if content else content
    elif content:
        # Incompressible bytes get longer: what one layer leaves for the next is granted 2 %.
        inner_limit = limit if max_bytes is None else limit + limit // 50 + 1024
        for strip in _parse_encodings(content_encoding or ""):
            stripped = strip(bytes(stripped), inner_limit) if stripped else stripped
    if len(stripped) > limit:
        raise _too_long(limit)
    return stripped


def check_encoding(content_encoding: str | None) -> None:
    """Raise `UnsupportedError` if there is an encoding that `strip_compression` can't undo."""
    if content_encoding and content_encoding not in _STRIPPERS:
        _parse_encodings(content_encoding)


def _parse_encodings(content_encoding: str) -> list[Callable[[bytes, int], Stripped]]:
    """Return what undoes a list of encodings, in the order of doing so."""
    layers = []
    for name in reversed(content_encoding.lower().split(",")):
        strip = _STRIPPERS.get(name.strip())
        if strip is None:
            raise UnsupportedError(f"content encoding {name.strip()!r} is not one of "
                                   f"{', '.join(filter(None, _STRIPPERS))}")
        layers.append(strip)
    return layers


def _strip_nothing(content: bytes, limit: int) -> bytes:
    return content


def _strip_gzip(content: bytes, limit: int) -> Stripped:
    """Return what all members of a gzip file hold, CRC and length of each checked.

    libdeflate is the fastest, but stops after the first member without saying so. Its result is the whole only if no
    other member can follow, and its length is the one that the file ends with. (The length alone doesn't do: two
    members may be equally long.) A length of 0 is never left to `deflate`: it returns nothing then, without a look at
    the data, and a file padded with zeros or cut within zeros ends like that. What else follows a member is noticed
    unless it ends with the member's length; the content is right then too, by the sum that libdeflate compares.
    """
    import deflate

    length = int.from_bytes(content[-4:], "little")
    plausible = len(content) >= 18 and 0 < length <= min(limit, _DEFLATE_MOST * len(content))
    if plausible and not _may_have_more_members(content):
        try:
            result = deflate.gzip_decompress(content, length)
        except deflate.DeflateError:
            # Multi-member, padded, or corrupt: the next one tells which.
            pass
        else:
            if len(result) == length:
                return result
    return _strip_gzip_members(content, limit)


def _may_have_more_members(content: bytes) -> bool:
    """Return whether the first bytes of a gzip member (1f 8b 08) occur after the beginning.

    Compared as 16-bit words, once for each alignment: 5 times as fast as `bytes.find`, which has a short pattern here.
    """
    for offset in (1, 2):
        is_magic = np.frombuffer(content, "<u2", count=(len(content) - offset) // 2, offset=offset) == 0x8B1F
        row = int(is_magic.argmax())
        while is_magic[row]:
            if content[2 * row + offset + 2 : 2 * row + offset + 3] == b"\x08":
                return True
            is_magic[row] = False
            row += int(is_magic[row:].argmax())
    return False


def _strip_gzip_members(content: bytes, limit: int) -> bytes:
    from io import BytesIO

    from isal import igzip, igzip_lib

    pieces, total = [], 0
    try:
        with igzip.open(BytesIO(content), "rb") as file:
            while piece := file.read(2**20):
                pieces.append(piece)
                total += len(piece)
                if total > limit:
                    raise _too_long(limit)
    except (OSError, EOFError, igzip_lib.IsalError) as error:  # type: ignore[misc]  # its stub says `IsalError: Exception`
        raise _corrupt("gzip", content, error) from error
    return b"".join(pieces)


def _strip_brotli(content: bytes, limit: int) -> bytes:
    import brotli

    pieces, total = [], 0
    decompressor = brotli.Decompressor()
    try:
        # It refuses by itself what follows after the end.
        piece = decompressor.process(content, output_buffer_limit=min(limit + 1, 2**30))
        while True:
            pieces.append(piece)
            total += len(piece)
            if total > limit:
                raise _too_long(limit)
            if decompressor.is_finished():
                return b"".join(pieces)
            if decompressor.can_accept_more_data():
                raise _corrupt("br", content, "it ends early")
            piece = decompressor.process(b"", output_buffer_limit=min(limit + 1 - total, 2**30))
    except brotli.error as error:
        raise _corrupt("br", content, error) from error


def _strip_zstd(content: bytes, limit: int) -> bytes:
    import zstandard

    try:
        length = zstandard.frame_content_size(content)
        # Unknown is -1. A skippable frame counts as 0, and so hides what follows it.
        if 0 < length <= min(limit, _ZSTD_MOST * len(content)):
            try:
                return zstandard.ZstdDecompressor().decompress(content, allow_extra_data=False)
            except zstandard.ZstdError:
                # Several frames, or corrupt: the loop below tells which.
                pass
        return _strip_streams("zstd", content, limit, lambda: zstandard.ZstdDecompressor().decompressobj())
    except zstandard.ZstdError as error:
        raise _corrupt("zstd", content, error) from error


def _strip_xz(content: bytes, limit: int) -> bytes:
    import lzma

    # The older .lzma has no magic: almost any bytes begin one, so it is never looked for behind another stream.
    is_xz = content.startswith(b"\xfd7zXZ\x00")
    file_format = lzma.FORMAT_XZ if is_xz else lzma.FORMAT_ALONE
    try:
        return _strip_streams("xz", content, limit, lambda: lzma.LZMADecompressor(file_format, _XZ_MEMORY_BYTES),
                              several=is_xz, yields=2**20)
    except lzma.LZMAError as error:
        raise _corrupt("xz", content, error) from error


def _strip_bzip2(content: bytes, limit: int) -> bytes:
    import bz2

    try:
        return _strip_streams("bzip2", content, limit, bz2.BZ2Decompressor, yields=2**20)
    except OSError as error:
        raise _corrupt("bzip2", content, error) from error


def _strip_streams(name: str, content: bytes, limit: int, start: Callable[[], Any], *, several: bool = True,
                   yields: int | None = None) -> bytes:
    """Return what the streams hold that `content` consists of, to its last byte.

    Parameters
    ----------
    start
        Makes the decompressor of one stream, as those of zstandard, lzma and bz2 are.
    yields
        Most that it is to give at once, where it can be told (lzma and bz2: 2 KiB of bzip2 may make gigabytes).
    """
    pieces, total, position = [], 0, 0
    while position < len(content):
        if position and not several:
            raise _corrupt(name, content, f"{len(content) - position} bytes follow its end")
        stream = start()
        while not stream.eof:
            piece = b""
            if yields is None or stream.needs_input:
                if position == len(content):
                    raise _corrupt(name, content, "it ends early")
                piece = content[position : position + _PIECE_BYTES]
                position += len(piece)
            pieces.append(stream.decompress(piece) if yields is None else stream.decompress(piece, yields))
            total += len(pieces[-1])
            if total > limit:
                raise _too_long(limit)
        position -= len(stream.unused_data)
    return b"".join(pieces)


def _corrupt(name: str, content: bytes, error: object) -> CorruptDataError:
    return CorruptDataError(f"expected whole {name} data, found {len(content)} bytes that aren't: {error}")


def _too_long(limit: int) -> CorruptDataError:
    return CorruptDataError(f"expected at most {limit} bytes, found more")


_STRIPPERS: dict[str, Callable[[bytes, int], Stripped]] = {
    "": _strip_nothing, "identity": _strip_nothing, "aws-chunked": _strip_nothing,
    "gzip": _strip_gzip, "x-gzip": _strip_gzip, "br": _strip_brotli, "zstd": _strip_zstd,
    "xz": _strip_xz, "lzma": _strip_xz, "bz2": _strip_bzip2, "bzip2": _strip_bzip2,
}
