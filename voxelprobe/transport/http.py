"""Objects over HTTP(S), with the status codes that cloud-files hides.

cloud-files serves HTTP too, but takes a 403 for an absent object, waits without a timeout, and
repeats refusals for minutes (docs/design/002-sources.md). Its credentials are used here.
"""

from __future__ import annotations

import base64
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from voxelprobe.errors import AuthorizationError, TransportError
from voxelprobe.transport.protocol import RetryableError, StoredObject

if TYPE_CHECKING:
    import urllib3

CONNECT_TIMEOUT_SECONDS = 10.0
# Between two received pieces, not for the whole: a slow store is not a stalled one.
READ_TIMEOUT_SECONDS = 60.0
MAX_REDIRECTS = 5
SECRET_FILE = "http-secret.json"  # noqa: S105 (the name of a file)


class HttpSource:
    """A folder on a web server."""

    def __init__(self, url: str, *, threads: int, read_timeout_seconds: float = READ_TIMEOUT_SECONDS) -> None:
        import urllib3

        self.url = url
        # As it is stored: a store that undoes gzip on the way can't be checked against its checksum.
        headers = {"Accept-Encoding": "gzip, br, zstd", "User-Agent": "voxelprobe"}
        if credentials := _basic_credentials():
            headers["Authorization"] = credentials
        self._pool = urllib3.PoolManager(
            maxsize=threads,
            headers=headers,
            timeout=urllib3.Timeout(connect=CONNECT_TIMEOUT_SECONDS, read=read_timeout_seconds),
            retries=urllib3.Retry(total=None, connect=0, read=0, redirect=MAX_REDIRECTS, status=0, other=0),
        )

    def fetch(self, path: str, start: int | None = None, end: int | None = None) -> StoredObject | None:
        """Return an object or a range of it; None for a 404."""
        import urllib3

        url = f"{self.url}/{quote(path)}"
        headers = dict(self._pool.headers)
        if start is not None or end is not None:
            if end is not None and end <= (start or 0):
                return StoredObject(b"", None)
            headers["Accept-Encoding"] = "identity"  # a range of something compressed on the way is of no use
            headers["Range"] = f"bytes={start or 0}-{'' if end is None else end - 1}"
        try:
            answer = self._pool.request("GET", url, headers=headers, decode_content=False)
        except urllib3.exceptions.MaxRetryError as error:
            if isinstance(error.reason, urllib3.exceptions.ResponseError):
                raise TransportError(f"{url}: more than {MAX_REDIRECTS} redirects") from error
            raise RetryableError(f"{url}: {_reason(error.reason)}") from error
        except urllib3.exceptions.LocationValueError as error:
            raise TransportError(f"{url}: not a URL that can be fetched: {error}") from error
        except urllib3.exceptions.HTTPError as error:
            raise RetryableError(f"{url}: {_reason(error)}") from error
        return self._read_answer(answer, url, start, end)

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _read_answer(
        self, answer: urllib3.BaseHTTPResponse, url: str, start: int | None, end: int | None
    ) -> StoredObject | None:
        status, content = answer.status, answer.data
        ranged = start is not None or end is not None
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
            raise RetryableError(f"{url}: the server answered {status}", _retry_after(answer.headers))
        if status not in (200, 206):
            raise TransportError(f"{url}: expected an answer of 200, found {status}")
        encoding = answer.headers.get("Content-Encoding") or None
        if status == 206:
            _check_content_range(answer.headers.get("Content-Range"), url, start or 0, len(content))
            return StoredObject(content, encoding)
        _check_digests(answer.headers, content, url)
        if ranged:
            # A server without ranges sends the whole object.
            return StoredObject(content[start or 0 : end], encoding)
        return StoredObject(content, encoding)


def _check_content_range(header: str | None, url: str, start: int, length: int) -> None:
    match = re.fullmatch(r"bytes (\d+)-(\d+)/(\d+|\*)", header or "")
    if match is None or int(match[1]) != start or int(match[2]) - int(match[1]) + 1 != length:
        raise RetryableError(f"{url}: asked for bytes from {start}, got {length} bytes described as {header!r}")


def _check_digests(headers: urllib3.HTTPHeaderDict, content: bytes, url: str) -> None:
    """Hold the body against the checksums that some stores give (GCS: x-goog-hash; others: Content-MD5)."""
    digests = dict(
        part.strip().split("=", 1) for part in (headers.get("x-goog-hash") or "").split(",") if "=" in part
    )
    if "Content-MD5" in headers:
        digests["md5"] = headers["Content-MD5"]
    if "crc32c" in digests:
        import google_crc32c

        found = base64.b64encode(google_crc32c.value(content).to_bytes(4, "big")).decode()
        if found != digests["crc32c"]:
            raise RetryableError(f"{url}: the store says crc32c {digests['crc32c']}, the body received has {found}")
    elif "md5" in digests:
        import hashlib

        found = base64.b64encode(hashlib.md5(content, usedforsecurity=False).digest()).decode()
        if found != digests["md5"].strip():
            raise RetryableError(f"{url}: the store says MD5 {digests['md5']}, the body received has {found}")


def _retry_after(headers: urllib3.HTTPHeaderDict) -> float | None:
    value = headers.get("Retry-After", "")
    return float(value) if re.fullmatch(r"\d+(\.\d+)?", value) else None


def _reason(error: BaseException | None) -> str:
    # urllib3 puts the pool's address in front; the URL is already said.
    return re.sub(r"^<?.*?object at 0x[0-9a-f]+>: |^\w+\(host=.*?\): ", "", str(error)) or type(error).__name__


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
    # UTF-8, as RFC 7617 has it: urllib3's own helper ends in a UnicodeEncodeError beyond Latin-1.
    return "Basic " + base64.b64encode(f"{user}:{password}".encode()).decode()
