"""What a web server's answer to a GET means, and whether its body is what the store says: pure, no I/O."""

from __future__ import annotations

import base64
import re
import zlib
from typing import TYPE_CHECKING

from voxelprobe.errors import TransportError
from voxelprobe.transport.protocol import Request, RetryableError, StoredObject

if TYPE_CHECKING:
    from voxelprobe.transport.curl import Answer

# 18 digits at most: an answer doesn't make us parse numbers of any length.
_CONTENT_RANGE = re.compile(r"bytes (?:(\d{1,18})-(\d{1,18})|\*)/(?:(\d{1,18})|\*)")
_ETAG_MD5 = re.compile(r'"?([0-9a-f]{32})"?', re.IGNORECASE)


def read_object(answer: Answer, name: str, request: Request, *, etag_is_md5: bool = False) -> StoredObject:
    """Return the object, or the range of one, in an answer; what 401, 403 and 404 mean is for the caller to say.

    Parameters
    ----------
    name
        The object, as errors name it.
    etag_is_md5
        Whether the store's `ETag`, if it looks like an MD5, is that of the body.

    Raises
    ------
    RetryableError, TransportError
        If it is another answer, or contradicts its own description or its checksum.
    """
    status, content = answer.status, answer.content
    if status == 416 and request.is_ranged:
        # The object ends before the range begins: as many bytes as there are, which is none.
        match = _CONTENT_RANGE.fullmatch(answer.field(b"content-range"))
        return StoredObject(b"", None, int(match[3]) if match and match[3] else None)
    if status in (408, 425, 429) or status >= 500:
        raise RetryableError(f"{name}: the server answered {status}", _retry_after(answer.field(b"retry-after")))
    if status not in (200, 206):
        raise TransportError(f"{name}: expected an answer of 200, found {status}")
    encoding = _stored_encoding(answer, name)
    if status == 206:
        return StoredObject(content, encoding, _check_content_range(answer, name, request))
    _check_digest(answer, name, etag_is_md5)
    if request.is_ranged:
        # A server without ranges sends the whole object.
        content = content[request.start : request.end]
    return StoredObject(content, encoding)


def byte_range(request: Request) -> str:
    """Return the value of `Range` for a request."""
    start, end = request.start or 0, request.end
    return f"bytes={start}" if start < 0 else f"bytes={start}-{'' if end is None else end - 1}"


def _stored_encoding(answer: Answer, name: str) -> str | None:
    encoding = answer.field(b"content-encoding")
    if answer.field(b"x-goog-stored-content-encoding") not in ("", "identity") and not encoding:
        # Google's store undoes gzip for who doesn't take it: neither its ranges nor its checksums are of that.
        raise TransportError(f"{name}: expected the object as it is stored, found it with its encoding undone")
    if encoding in ("", "gzip", "br"):
        return encoding or None
    # S3 keeps aws-chunked, which was undone when the object was written.
    layers = [layer.strip() for layer in encoding.split(",")]
    return ", ".join(layer for layer in layers if layer.lower() not in ("", "aws-chunked", "identity")) or None


def _check_content_range(answer: Answer, name: str, request: Request) -> int | None:
    """Return the size of the whole object, if the answer tells; raise if these aren't the bytes that were asked for."""
    value, length, start = answer.field(b"content-range"), len(answer.content), request.start or 0
    asked = f"{name}: asked for bytes from {start}"
    match = _CONTENT_RANGE.fullmatch(value)
    if match and match[1]:
        first, last = int(match[1]), int(match[2])
        size = int(match[3]) if match[3] else None
        if size is not None:
            start, end, _ = slice(start, request.end).indices(size)
            whole = last + 1 == end
        else:
            whole = start >= 0  # how long it is to be nobody knows
        if whole and first == start and last - first + 1 == length:
            return size
    raise RetryableError(f"{asked}, got {length} bytes described as {value!r}")


def _check_digest(answer: Answer, name: str, etag_is_md5: bool) -> None:
    """Hold the body against the cheapest of the checksums that the store gives."""
    said = answer.field(b"x-goog-hash")
    google = dict(part.strip().split("=", 1) for part in said.split(",") if "=" in part)
    kind, found = "", ""
    # Those of S3 with a `-` are of the checksums of parts.
    if expected := google.get("crc32c") or _whole_checksum(answer, b"x-amz-checksum-crc32c"):
        import google_crc32c

        kind, found = "crc32c", _base64(google_crc32c.value(answer.content).to_bytes(4, "big"))
    elif expected := _whole_checksum(answer, b"x-amz-checksum-crc32"):
        kind, found = "crc32", _base64(zlib.crc32(answer.content).to_bytes(4, "big"))
    elif expected := _whole_checksum(answer, b"x-amz-checksum-sha256"):
        kind, found = "SHA-256", _base64(_digest("sha256", answer.content))
    elif expected := answer.field(b"content-md5") or google.get("md5", ""):
        kind, found = "MD5", _base64(_digest("md5", answer.content))
    elif etag_is_md5 and (expected := _etag_md5(answer)):
        kind, found = "MD5", _digest("md5", answer.content).hex()
    if found != expected:
        raise RetryableError(f"{name}: the store says {kind} {expected}, the body received has {found}")


def _whole_checksum(answer: Answer, field: bytes) -> str:
    value = answer.field(field)
    return "" if "-" in value else value


def _etag_md5(answer: Answer) -> str:
    """Return the MD5 that an ETag of S3 is, for an object that was put by one request and not encrypted by a key."""
    encrypted = answer.field(b"x-amz-server-side-encryption") not in ("", "AES256")
    if encrypted or answer.field(b"x-amz-server-side-encryption-customer-algorithm"):
        return ""
    match = _ETAG_MD5.fullmatch(answer.field(b"etag"))
    return match[1].lower() if match else ""


def _digest(kind: str, content: bytes) -> bytes:
    import hashlib

    return hashlib.new(kind, content, usedforsecurity=False).digest()


def _base64(digest: bytes) -> str:
    return base64.b64encode(digest).decode()


def _retry_after(value: str) -> float | None:
    return float(value) if re.fullmatch(r"\d{1,9}(\.\d{1,9})?", value) else None
