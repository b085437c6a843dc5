"""Objects over HTTP(S), with the status codes that cloud-files hides.

cloud-files serves HTTP too, but takes a 403 for an absent object, waits without a timeout, and
repeats refusals for minutes (docs/design/002-sources.md). Its credentials are used here.
"""

from __future__ import annotations

import base64
import os
import re
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from voxelprobe.errors import AuthorizationError, TransportError, VoxelProbeError
from voxelprobe.transport.protocol import Outcome, Request, RetryableError, StoredObject

if TYPE_CHECKING:
    from voxelprobe.transport.curl import Answer, Gets

SECRET_FILE = "http-secret.json"  # noqa: S105 (the name of a file)
_CONTENT_RANGE = re.compile(r"bytes (\d+)-(\d+)/(\d+|\*)")


class HttpSource:
    """A folder on a web server."""

    def __init__(self, url: str, *, read_timeout_seconds: int | None = None) -> None:
        from voxelprobe.transport import curl

        self.url = url
        timeout = curl.READ_TIMEOUT_SECONDS if read_timeout_seconds is None else read_timeout_seconds
        self._session = curl.Session(user_agent="voxelprobe", read_timeout_seconds=timeout)
        credentials = _basic_credentials()
        self._credentials = [f"Authorization: {credentials}"] if credentials else []
        # As it is stored: a store that undoes gzip on the way can't be checked against its checksum.
        self._whole = [*self._credentials, "Accept-Encoding: gzip, br, zstd"]

    def fetch(self, path: str, start: int | None = None, end: int | None = None) -> StoredObject | None:
        """Return an object or a range of it; None for a 404."""
        request = Request(path, start, end)
        if _is_empty(request):
            return StoredObject(b"", None)
        url = self.locate(path)
        return read_answer(self._session.get(url, self.fields(request)), url, request)

    def open_transfers(self, *, limit: int) -> HttpTransfers:
        """Return what makes up to `limit` requests at once, in one thread."""
        return HttpTransfers(self, self._session.open_gets(limit))

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def locate(self, path: str) -> str:
        """Return the URL of an object."""
        return f"{self.url}/{quote(path)}"

    def fields(self, request: Request) -> list[str]:
        """Return the header fields of a request."""
        if not _is_ranged(request):
            return self._whole
        last = "" if request.end is None else request.end - 1
        # A range of something compressed on the way is of no use.
        return [*self._credentials, "Accept-Encoding: identity", f"Range: bytes={request.start or 0}-{last}"]


class HttpTransfers:
    """Requests of one `HttpSource` under way at once."""

    def __init__(self, source: HttpSource, gets: Gets) -> None:
        self._source = source
        self._gets = gets
        self._known: list[tuple[Any, Outcome]] = []

    def start(self, key: Any, request: Request) -> None:
        """Begin a request; see `Transfers.start`."""
        if _is_empty(request):
            self._known.append((key, StoredObject(b"", None)))
            return
        url = self._source.locate(request.path)
        error = self._gets.start((key, url, request), url, self._source.fields(request))
        if error is not None:
            self._known.append((key, error))

    def wait(self, timeout_seconds: float | None) -> list[tuple[Any, Outcome]]:
        """Return what has ended since the last call; see `Transfers.wait`."""
        ended, self._known = self._known, []
        for (key, url, request), answer in self._gets.wait(0.0 if ended else timeout_seconds):
            outcome: Outcome
            try:
                outcome = answer if isinstance(answer, TransportError) else read_answer(answer, url, request)
            except VoxelProbeError as error:
                outcome = error
            ended.append((key, outcome))
        return ended

    def close(self) -> None:
        """Give up what is under way."""
        self._gets.close()


def read_answer(answer: Answer, url: str, request: Request) -> StoredObject | None:
    """Return the object that a server answered with, or None for a 404; see `Source.fetch`."""
    status, content = answer.status, answer.content
    start, end = request.start or 0, request.end
    ranged = _is_ranged(request)
    if status == 404:
        return None
    if status in (401, 403):
        raise AuthorizationError(
            f"{url}: the server answered {status}; credentials are looked for in "
            f"{' and '.join(_secret_folders())} as {SECRET_FILE} (user, password)"
        )
    if status == 416 and ranged:
        # The object ends before the range begins: as many bytes as there are, which is none.
        return StoredObject(b"", None)
    if status in (408, 425, 429) or status >= 500:
        raise RetryableError(f"{url}: the server answered {status}", _retry_after(answer.field(b"retry-after")))
    if status not in (200, 206):
        raise TransportError(f"{url}: expected an answer of 200, found {status}")
    encoding = answer.field(b"content-encoding") or None
    if status == 206:
        _check_content_range(answer.field(b"content-range"), url, start, len(content))
        return StoredObject(content, encoding)
    _check_digests(answer, url)
    # A server without ranges sends the whole object.
    return StoredObject(content[start:end] if ranged else content, encoding)


def _is_ranged(request: Request) -> bool:
    return request.start is not None or request.end is not None


def _is_empty(request: Request) -> bool:
    return request.end is not None and request.end <= (request.start or 0)


def _check_content_range(value: str, url: str, start: int, length: int) -> None:
    match = _CONTENT_RANGE.fullmatch(value)
    if match is None or int(match[1]) != start or int(match[2]) - int(match[1]) + 1 != length:
        raise RetryableError(f"{url}: asked for bytes from {start}, got {length} bytes described as {value!r}")


def _check_digests(answer: Answer, url: str) -> None:
    """Hold the body against the checksums that some stores give (GCS: x-goog-hash; others: Content-MD5)."""
    said = answer.field(b"x-goog-hash")
    digests = dict(part.strip().split("=", 1) for part in said.split(",") if "=" in part)
    if "crc32c" in digests:
        import google_crc32c

        found = base64.b64encode(google_crc32c.value(answer.content).to_bytes(4, "big")).decode()
        if found != digests["crc32c"]:
            raise RetryableError(f"{url}: the store says crc32c {digests['crc32c']}, the body received has {found}")
    elif md5 := answer.field(b"content-md5") or digests.get("md5"):
        import hashlib

        found = base64.b64encode(hashlib.md5(answer.content, usedforsecurity=False).digest()).decode()
        if found != md5:
            raise RetryableError(f"{url}: the store says MD5 {md5}, the body received has {found}")


def _retry_after(value: str) -> float | None:
    return float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else None


def _secret_folders() -> list[str]:
    # Where cloud-files looks, in its order.
    volume = os.environ.get("CLOUD_VOLUME_DIR") or os.path.expanduser("~/.cloudvolume")
    files = os.environ.get("CLOUD_FILES_DIR") or os.path.expanduser("~/.cloudfiles")
    return [os.path.join(volume, "secrets"), os.path.join(files, "secrets")]


def _basic_credentials() -> str | None:
    # cloud-files takes a second to import: not without a file for it to read.
    if not any(os.path.exists(os.path.join(folder, SECRET_FILE)) for folder in _secret_folders()):
        return None
    from cloudfiles.secrets import http_credentials

    try:
        secret = http_credentials() or {}
        user, password = secret["user"], secret["password"]
    except ValueError as error:
        raise AuthorizationError(f"{SECRET_FILE}: expected JSON, found: {error}") from error
    except (KeyError, TypeError) as error:
        raise AuthorizationError(f"{SECRET_FILE}: expected `user` and `password`, found {list(secret)}") from error
    # UTF-8, as RFC 7617 has it.
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
