"""Which bucket a cloudpath names, and at which server: as cloud-files takes it.

Source: `extract` in cloudfiles/paths.py, 6.4; a test holds this against it. `s3://` and `gs://` are taken apart here,
since importing that takes half a second. Every other scheme, an alias among them, is cloud-files' to know.
"""

from __future__ import annotations

import re
from typing import NamedTuple

from voxelprobe.errors import InputError

_BUCKET = re.compile(r"(/?[~\w_.\-]+(?::\d+)?)(?:/|$)")
_ENDPOINT = re.compile(r"(https?://[^/?#]+)/?")


class Address(NamedTuple):
    """A folder in a bucket, or on a web server.

    Attributes
    ----------
    protocol
        `s3`, `gs`, `http`, `https`, or whatever else cloud-files knows.
    bucket, folder
        The folder is without a slash at its end.
    endpoint
        The server, as in `https://host:443`, or None for the provider's own.
    service
        Which credentials it takes: `aws`, or the alias that it was named by.
    """

    protocol: str
    bucket: str
    folder: str
    endpoint: str | None = None
    service: str = "aws"


def parse_address(url: str) -> Address:
    """Return what a cloudpath names.

    Raises
    ------
    InputError
        If nothing knows its scheme, or it names no bucket.
    """
    protocol, _, rest = url.partition("://")
    if protocol not in ("s3", "gs"):
        return _ask_cloud_files(url)
    endpoint = None
    if protocol == "s3" and (match := _ENDPOINT.match(rest)):
        endpoint, rest = match[1], rest[match.end() :]
    match = _BUCKET.match(rest)
    if match is None or re.match(r"\w+://", rest[match.end() :]):
        raise InputError(f"{url}: expected {protocol}://BUCKET/PATH"
                         f"{' or s3://https://SERVER/BUCKET/PATH' if protocol == 's3' else ''}")
    return Address(protocol, match[1].replace("/", ""), rest[match.end() :].rstrip("/"), endpoint)


def _ask_cloud_files(url: str) -> Address:
    from cloudfiles import paths

    try:
        path = paths.extract(url)
    except Exception as error:
        # Not its message, which is a page with colours for a terminal.
        raise InputError(f"{url}: cloud-files can't open it: {type(error).__name__}") from error
    folder = (path.path or "").rstrip("/")
    return Address(path.protocol, path.bucket or "", folder, path.host, path.alias or "aws")
