"""Objects in buckets and in memory through cloud-files, with its secrets; its failures translated."""

from __future__ import annotations

import os
from typing import Any

from voxelprobe.errors import AuthorizationError, InputError, TransportError, VoxelProbeError
from voxelprobe.transport.protocol import RetryableError, StoredObject

SECRETS_HINT = (
    "credentials are looked for in ~/.cloudvolume/secrets and ~/.cloudfiles/secrets "
    "(BUCKET-google-secret.json, google-secret.json; BUCKET-aws-secret.json, aws-secret.json), then in the environment"
)


class CloudFilesSource:
    """A folder that cloud-files can open. It retries by itself, so its failures are final here."""

    def __init__(self, url: str, *, threads: int) -> None:
        self.url = url
        self._files = open_cloud_files(url, threads=threads)

    def fetch(self, path: str, start: int | None = None, end: int | None = None) -> StoredObject | None:
        """Return an object or a range of it; None if there is none."""
        request: Any = path
        if start is not None or end is not None:
            if end is not None and end <= (start or 0):
                return StoredObject(b"", None)
            request = {"path": path, "start": start or 0, "end": end}
        try:
            answer = self._files.get([request], raw=True)[0]
        except Exception as error:
            raise translate_error(error, f"{self.url}/{path}") from error
        if answer["content"] is None:
            return None
        return StoredObject(bytes(answer["content"]), answer["compress"] or None)

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

    if url.startswith("s3://") and "AWS_ACCESS_KEY_ID" in os.environ:
        # cloud-files 6.4 ends in a bare KeyError without it.
        os.environ.setdefault("AWS_SESSION_TOKEN", "")
    try:
        return cloudfiles.CloudFiles(url, num_threads=threads, progress=False)
    except Exception as error:
        raise InputError(f"{url}: cloud-files can't open it: {type(error).__name__}: {error}") from error


def translate_error(error: Exception, what: str) -> VoxelProbeError:
    """Return what a failure inside cloud-files, google's client or botocore means to us."""
    name = type(error).__name__
    response = getattr(error, "response", None)
    status: Any = getattr(error, "code", None)
    if isinstance(response, dict):
        status = response.get("ResponseMetadata", {}).get("HTTPStatusCode", status)
    elif response is not None:
        status = getattr(response, "status_code", status)
    if status == 416 or "InvalidRange" in str(error):
        return TransportError(f"{what}: the object ends before the range that was asked begins")
    if status in (401, 403) or name in ("NoCredentialsError", "DefaultCredentialsError", "RefreshError"):
        return AuthorizationError(f"{what}: {name} ({status or 'no credentials'}); {SECRETS_HINT}")
    if isinstance(error, KeyError):
        return AuthorizationError(f"{what}: the secret or environment lacks {error}; {SECRETS_HINT}")
    if name == "NoSuchBucket" or (isinstance(response, dict) and response.get("Error", {}).get("Code") == name):
        return TransportError(f"{what}: {error}")
    if status in (408, 429) or (isinstance(status, int) and status >= 500) or "IntegrityError" in name:
        return RetryableError(f"{what}: {name}: {error}")
    if isinstance(error, OSError | EOFError) or "Timeout" in name or "Connection" in name:
        return RetryableError(f"{what}: {name}: {error}")
    return TransportError(f"{what}: {name}: {error}")
