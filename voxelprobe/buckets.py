"""A run's folder in a bucket: every object written by one request, and told from others of its name by a version.

cloud-files has the credentials and the connections, but its own `put` takes the whole object into memory, and above
100 MB writes it in parts, on GCS as objects of their own that it puts together and deletes again.
"""

from __future__ import annotations

import base64
import hashlib
import inspect
import itertools
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple, TypeVar

from voxelprobe.errors import VoxelProbeError
from voxelprobe.locations import Location
from voxelprobe.transport.cloud import open_cloud_files, translate_error
from voxelprobe.transport.protocol import RetryableError
from voxelprobe.transport.silence import timeouts_seconds
from voxelprobe.transport.sources import open_source, wait_after

# S3 takes no more in one PUT, and some stores like it a little less than these 5 GB.
SINGLE_PUT_BYTES = 5_000_000_000
# A larger object goes up in parts, 10,000 at most, and appears when the last request says that it is complete.
_PART_BYTES = 64 << 20
_MOST_PARTS = 9_000
# So many names are cheaper to list than to ask for one by one.
_NAMES_TO_LIST = 8
_CONTENT_TYPES = {".json": "application/json", ".csv": "text/csv"}
_READ_BYTES = 1 << 20
# What outputs replace under their own names must not come out of a cache between.
_CACHE_CONTROL = "no-cache"

Answer = TypeVar("Answer")


class ObjectState(NamedTuple):
    """An object's size in bytes, and what changes when it is replaced by another, also by one of the same size.

    The version is the MD5 of the content wherever the store tells it, so that two machines that write the same bytes
    agree on it; "" if a web server says nothing that would change.
    """

    size: int
    version: str


class Bucket:
    """A folder in a bucket, or on a web server, where nothing can be written."""

    def __init__(self, location: Location) -> None:
        self.location = location

    def put(self, name: str, content: Path | bytes) -> str:
        """Write an object whole by one request, in place of any of its name, and return its version.

        A file is sent as it is read. Above 5 GB S3 takes it in parts only; they are no object until the last request.

        Raises
        ------
        AuthorizationError, TransportError
            If the store refuses, or fails for some tries.
        """
        return self._repeat(name, lambda kind, interface: _put(kind, interface, name, content, create=False))

    def create(self, name: str, content: bytes) -> bool:
        """Write a small object unless there is one of its name; return whether it was written."""
        try:
            self._repeat(name, lambda kind, interface: _put(kind, interface, name, content, create=True))
        except _ExistsError:
            return False
        return True

    def state(self, name: str) -> ObjectState | None:
        """Return an object's state, or None if there is none."""
        state = self._repeat(name, lambda kind, interface: _head(kind, interface, name))
        if state is None and self.location.url.startswith(("http://", "https://")):
            # cloud-files takes a refusal for an absence.
            with closing(open_source(self.location, threads=1)) as source:
                source.fetch(name, 0, 1)
        return state

    def states(self, names: Sequence[str]) -> dict[str, ObjectState | None]:
        """Return the states of objects by name; of many in one folder by listing it."""
        parents = {name.rpartition("/")[0] for name in names}
        if len(names) >= _NAMES_TO_LIST and len(parents) == 1 and self.location.url.startswith(("s3://", "gs://")):
            prefix = f"{parents.pop()}/".lstrip("/")
            listed = self._repeat(prefix, lambda kind, interface: _list(kind, interface, prefix))
            return {name: listed.get(name) for name in names}
        return {name: self.state(name) for name in names}

    def read(self, name: str) -> tuple[bytes, str | None] | None:
        """Return an object's bytes and `Content-Encoding`, or None if there is none."""
        with closing(open_source(self.location, threads=1)) as source:
            answer = source.fetch(name)
            return None if answer is None else (answer.content, answer.encoding)

    def download(self, name: str, size: int, file: BinaryIO) -> bool:
        """Write an object's bytes to a file, a part at a time; return False if there is none."""
        with closing(open_source(self.location, threads=1)) as source:
            for start in range(0, size, _PART_BYTES):
                answer = source.fetch(name, start, min(start + _PART_BYTES, size))
                if answer is None:
                    return False
                file.write(answer.content)
        return True

    def _repeat(self, name: str, action: Callable[[str, Any], Answer]) -> Answer:
        """Return what an action on cloud-files' connection gives, tried as often as that may help."""
        url = f"{self.location.url}/{name}"
        for attempt in itertools.count(1):
            try:
                files = open_cloud_files(self.location.url)
                with files._get_connection() as interface:
                    return action(files._path.protocol, interface)
            except VoxelProbeError:
                raise
            except Exception as error:
                translated = translate_error(error, url)
                if not isinstance(translated, RetryableError):
                    raise translated from error
                time.sleep(wait_after(translated, attempt))
        raise AssertionError("the last attempt returns or raises")


class _ExistsError(VoxelProbeError):
    """There is an object of that name already."""


def _put(kind: str, interface: Any, name: str, content: Path | bytes, *, create: bool) -> str:
    if isinstance(content, bytes):
        import io

        return _put_file(kind, interface, name, io.BytesIO(content), None, len(content), create)
    with open(content, "rb") as file:
        return _put_file(kind, interface, name, file, content, os.fstat(file.fileno()).st_size, create)


def _put_file(
    kind: str, interface: Any, name: str, file: BinaryIO, path: Path | None, size: int, create: bool
) -> str:
    content_type = _CONTENT_TYPES.get(Path(name).suffix, "application/octet-stream")
    if kind == "s3":
        return _put_s3(interface, name, file, path, size, content_type, create)
    if kind == "gs":
        return _put_gcs(interface, name, file, size, content_type, create)
    if create and interface.exists(name):
        raise _ExistsError(name)
    content = file.read()
    interface.put_file(name, content, content_type, None, cache_control=_CACHE_CONTROL)
    state = _head(kind, interface, name)
    return "" if state is None else state.version


def _put_s3(
    interface: Any, name: str, file: BinaryIO, path: Path | None, size: int, content_type: str, create: bool
) -> str:
    from cloudfiles.interfaces import DEFAULT_S3_ACL, S3_ACLS

    client = interface._conn
    where = {"Bucket": interface._path.bucket, "Key": interface.get_path_to_file(name)}
    said = {"ContentType": content_type, "CacheControl": _CACHE_CONTROL,
            "ACL": S3_ACLS.get(interface._path.alias, DEFAULT_S3_ACL), **interface._additional_attrs}
    if size > SINGLE_PUT_BYTES:
        from boto3.s3.transfer import TransferConfig  # type: ignore[import-untyped]

        part = max(_PART_BYTES, size // _MOST_PARTS)
        parts = TransferConfig(multipart_threshold=_PART_BYTES, multipart_chunksize=part, max_concurrency=4)
        client.upload_file(str(path), **where, ExtraArgs=said, Config=parts)
        state = _head("s3", interface, name)
        return "" if state is None else state.version
    condition = {"IfNoneMatch": "*"} if create else {}
    try:
        answer = client.put_object(**where, **said, **condition, Body=file, ChecksumCRC32C=_crc32c(file))
    except Exception as error:
        code = (getattr(error, "response", None) or {}).get("Error", {}).get("Code")
        if create and code in ("PreconditionFailed", "ConditionalRequestConflict"):
            raise _ExistsError(name) from error
        if create and code == "NotImplemented":  # an S3 of somebody else's
            return _put_s3(interface, name, file, path, size, content_type, create=False)
        raise
    return _plain_etag(answer["ETag"])


def _put_gcs(interface: Any, name: str, file: BinaryIO, size: int, content_type: str, create: bool) -> str:
    from google.api_core.exceptions import PreconditionFailed

    blob = interface._bucket.blob(interface.get_path_to_file(name), chunk_size=_PART_BYTES)
    blob.cache_control = _CACHE_CONTROL
    blob.md5_hash = _md5(file)  # which the store holds what it gets against
    try:
        blob.upload_from_file(file, size=size, content_type=content_type, if_generation_match=0 if create else None,
                              timeout=timeouts_seconds(), retry=None)
    except PreconditionFailed as error:
        raise _ExistsError(name) from error
    return str(blob.md5_hash)


def _head(kind: str, interface: Any, name: str) -> ObjectState | None:
    if kind == "s3":
        head = inspect.unwrap(type(interface).head)(interface, name)
        return None if head is None else ObjectState(head["Content-Length"], _plain_etag(head["ETag"]))
    if kind == "gs":
        blob = interface._bucket.get_blob(interface.get_path_to_file(name), timeout=timeouts_seconds(), retry=None)
        return None if blob is None else ObjectState(blob.size, blob.md5_hash or blob.etag)
    if kind == "mem":
        content = interface.get_file(name)[0]
        if content is None:
            return None
        return ObjectState(len(content), hashlib.md5(content, usedforsecurity=False).hexdigest())
    # A web server, which doesn't know the length of what it will compress on the way. Not cloud-files' own `head`: it
    # waits without a timeout.
    with interface.session.head(interface.get_path_to_file(name), timeout=timeouts_seconds()) as answer:
        if answer.status_code in (403, 404):
            return None
        answer.raise_for_status()
        head = answer.headers
    version = head.get("ETag") or head.get("Last-Modified")
    length = head.get("Content-Length") or 0
    return ObjectState(int(length), f"{length} {version}" if version else "")


def _list(kind: str, interface: Any, prefix: str) -> dict[str, ObjectState]:
    """Return the objects directly below a prefix, by name relative to the folder."""
    root = interface.get_path_to_file("")
    found: dict[str, ObjectState] = {}
    if kind == "gs":
        for blob in interface._bucket.list_blobs(prefix=root + prefix, delimiter="/", timeout=timeouts_seconds(),
                                                 retry=None):
            found[blob.name[len(root):]] = ObjectState(blob.size, blob.md5_hash or blob.etag)
        return found
    pages = interface._conn.get_paginator("list_objects_v2").paginate(
        Bucket=interface._path.bucket, Prefix=root + prefix, Delimiter="/", **interface._additional_attrs
    )
    for page in pages:
        for item in page.get("Contents", []):
            found[item["Key"][len(root):]] = ObjectState(item["Size"], _plain_etag(item["ETag"]))
    return found


def _plain_etag(etag: str) -> str:
    return etag.strip('"')


def _crc32c(file: BinaryIO) -> str:
    import google_crc32c

    value = 0
    for block in iter(lambda: file.read(_READ_BYTES), b""):
        value = google_crc32c.extend(value, block)
    file.seek(0)
    return base64.b64encode(value.to_bytes(4, "big")).decode()


def _md5(file: BinaryIO) -> str:
    digest = hashlib.md5(usedforsecurity=False)
    for block in iter(lambda: file.read(_READ_BYTES), b""):
        digest.update(block)
    file.seek(0)
    return base64.b64encode(digest.digest()).decode()
