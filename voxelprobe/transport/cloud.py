"""What cloud-files does for us: memory, schemes of its own, and writing to buckets; its failures translated.

Buckets are read by s3.py and gcs.py, at a fraction of the cost (docs/design/012-buckets.md).
"""

from __future__ import annotations

import functools
import inspect
import os
import sys
import threading
from typing import Any

from voxelprobe.errors import AuthorizationError, InputError, TransportError, VoxelProbeError
from voxelprobe.transport.protocol import Request, RetryableError, StoredObject
from voxelprobe.transport.silence import timeouts_seconds
from voxelprobe.transport.threads import ThreadTransfers

SECRETS_HINT = (
    "credentials are looked for in ~/.cloudvolume/secrets and ~/.cloudfiles/secrets "
    "(BUCKET-google-secret.json, google-secret.json; BUCKET-aws-secret.json, aws-secret.json), then in the environment"
)


_NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError", "DefaultCredentialsError", "RefreshError")


class CloudFilesSource:
    """A folder that cloud-files can open."""

    def __init__(self, url: str, *, threads: int) -> None:
        self.url = url
        self._files = open_cloud_files(url, threads=threads)
        self._files._interface_cls = _make_single_tries(self._files._interface_cls)

    def fetch(self, path: str, start: int | None = None, end: int | None = None) -> StoredObject | None:
        """Return an object or a range of it; None if there is none."""
        asked = Request(path, start, end)
        if asked.is_empty:
            return StoredObject(b"", None)
        request: Any = path
        # The last bytes are cut from the whole: cloud-files can't ask for them.
        from_end = start is not None and start < 0
        if asked.is_ranged and not from_end:
            request = {"path": path, "start": start or 0, "end": end}
        try:
            answer = self._files.get([request], raw=True)[0]
        except Exception as error:
            if isinstance(request, dict) and _status(error) == 416:
                # The object ends before the range begins: as many bytes as there are, which is none.
                return StoredObject(b"", None)
            raise translate_error(error, f"{self.url}/{path}") from error
        if answer["content"] is None:
            return None
        content, encoding = bytes(answer["content"]), answer["compress"] or None
        return StoredObject(content[start:], encoding, len(content)) if from_end else StoredObject(content, encoding)

    def open_transfers(self, *, limit: int) -> ThreadTransfers:
        """Return what makes up to `limit` requests at once, a thread each."""
        return ThreadTransfers(self.fetch, limit=limit)

    def close(self) -> None:
        """Do nothing: cloud-files keeps its connection pools for the process."""


def open_cloud_files(url: str, *, threads: int = 1) -> Any:
    """Return a `CloudFiles` at `url`.

    Raises
    ------
    InputError
        If cloud-files doesn't know the scheme or can't take the URL apart.
    """
    import cloudfiles

    if url.startswith("s3://"):
        _limit_s3_clients()
        if "AWS_ACCESS_KEY_ID" in os.environ:
            # cloud-files 6.4 ends in a bare KeyError without it.
            os.environ.setdefault("AWS_SESSION_TOKEN", "")
    try:
        files = cloudfiles.CloudFiles(url, num_threads=threads, progress=False)
    except Exception as error:
        raise InputError(f"{url}: cloud-files can't open it: {type(error).__name__}: {error}") from error
    _check_endpoint(url, files)
    return files


def _limit_s3_clients() -> None:
    """Have the clients that cloud-files makes give up silent connections, and leave it to us to try again.

    By themselves they wait for a minute, five times. A session that the program has set up for boto3 stays as it is.
    """
    import boto3  # type: ignore[import-untyped]
    import botocore.session
    from botocore.config import Config

    if boto3.DEFAULT_SESSION is not None:
        return
    connect, read = timeouts_seconds()
    session = botocore.session.get_session()
    session.set_default_client_config(
        Config(connect_timeout=connect, read_timeout=read, retries={"total_max_attempts": 1})
    )
    boto3.setup_default_session(botocore_session=session)


_endpoints: dict[tuple[str, str], str] = {}


def _check_endpoint(url: str, files: Any) -> None:
    """Raise if a bucket of this name was opened at another endpoint: cloud-files 6.4 would go on asking there."""
    path = files._path
    endpoint = path.host or "the default endpoint"
    first = _endpoints.setdefault((path.alias or path.protocol, path.bucket or ""), endpoint)
    if path.protocol == "s3" and first != endpoint:
        raise InputError(f"{url}: this process has opened a bucket {path.bucket} at {first}; a bucket of the same name "
                         f"at {endpoint} takes another process, since cloud-files mixes up their connections")


@functools.cache
def _make_single_tries(interface: type) -> type:
    """Return cloud-files' class for a kind of store without its retries.

    It repeats every failure seven times with waits of up to a minute, refusals and damaged requests included; what is
    worth repeating is for our own retries to say.
    """
    methods = {name: getattr(interface, name) for name in dir(interface)}
    single = {name: inspect.unwrap(method) for name, method in methods.items() if hasattr(method, "retry")}
    return type(interface.__name__, (interface,), single)


def _status(error: Exception) -> Any:
    """Return the HTTP status of a failure, as botocore and google's client tell it, or None."""
    status: Any = getattr(error, "code", None)
    response = getattr(error, "response", None)
    if isinstance(response, dict):
        return response.get("ResponseMetadata", {}).get("HTTPStatusCode", status)
    return status if response is None else getattr(response, "status_code", status)


def translate_error(error: Exception, what: str) -> VoxelProbeError:
    """Return what a failure inside cloud-files, google's client or botocore means to us."""
    name = type(error).__name__
    response = getattr(error, "response", None)
    status = _status(error)
    if status in (401, 403) or name in _NO_CREDENTIALS:
        return AuthorizationError(f"{what}: {name} ({status or 'no credentials'}); {SECRETS_HINT}")
    if isinstance(error, KeyError):
        return AuthorizationError(f"{what}: the secret or environment lacks {error}; {SECRETS_HINT}")
    if status in (408, 429) or (isinstance(status, int) and status >= 500) or "IntegrityError" in name:
        return RetryableError(f"{what}: {name}: {error}")
    if name == "NoSuchBucket" or (isinstance(response, dict) and response.get("Error", {}).get("Code") == name):
        return TransportError(f"{what}: {error}")
    if isinstance(error, OSError | EOFError) or "Timeout" in name or "Connection" in name:
        return RetryableError(f"{what}: {name}: {error}")
    return TransportError(f"{what}: {name}: {error}")


_inherited: list[Any] = []


def _forget_connections() -> None:
    """Let a forked process open connections of its own: on one that it shares, it may get what its parent asked for."""
    interfaces = sys.modules.get("cloudfiles.interfaces")
    if interfaces is None:
        return
    for name in ("S3_POOL", "GC_POOL"):
        pool: Any = getattr(interfaces, name)
        # Kept, and not closed: another thread may have held its locks when we were forked.
        _inherited.append(pool)
        setattr(interfaces, name, type(pool)(pool.default_factory))
    for name in ("S3_BUCKET_POOL_LOCK", "GCS_BUCKET_POOL_LOCK"):
        setattr(interfaces, name, threading.Lock())


os.register_at_fork(after_in_child=_forget_connections)
