"""The calls of a graph server that we make, one attempt each.

Calls: `/segmentation/api/v1/table/NAME/…` (PyChunkedGraph, `app/segmentation/v1/routes.py`). Ids go
as little-endian uint64 or as JSON integers, never as floats. Redirects are never followed: they lead
to a log-in page, and would carry the token there.
"""

from __future__ import annotations

import gzip
import json
import re
import ssl
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import urlencode

import numpy as np

from voxelprobe.arrays import Bool, UInt64
from voxelprobe.errors import InputError, TransportError
from voxelprobe.graphene.refusals import Refusals, SilentError
from voxelprobe.graphene.timestamps import Timestamp
from voxelprobe.graphene.tokens import Token
from voxelprobe.graphene.url import GrapheneUrl
from voxelprobe.transport.protocol import RetryableError, Traffic
from voxelprobe.transport.silence import graph_timeout_seconds

CONNECT_TIMEOUT_SECONDS = 10.0
# Level 1 takes a third to a half off sorted ids at 25 MB/s or more; below a first TCP window nothing is gained.
GZIP_BYTES = 16 << 10
# Random ids don't shrink: what gzip may add to them.
GZIP_OVERHEAD_BYTES = 64 << 10
MAX_INFO_BYTES = 16 << 20
MAX_REASON_BYTES = 64 << 10


class GraphClient:
    """A table of a graph server; may be used from several threads, not across a fork.

    Parameters
    ----------
    token
        What to send along, or None: a server that asks for none needs none.
    connections
        How many requests are made at once.

    Attributes
    ----------
    traffic
        Requests made and bytes received so far.
    """

    def __init__(
        self,
        url: GrapheneUrl,
        *,
        token: Token | None,
        connections: int,
        connect_timeout_seconds: float = CONNECT_TIMEOUT_SECONDS,
        read_timeout_seconds: float | None = None,
    ) -> None:
        import urllib3

        self.url = url
        self.traffic = Traffic()
        self._token = token
        self._refusals = Refusals(url, token)
        self._pool = urllib3.PoolManager(
            maxsize=connections,
            timeout=urllib3.Timeout(connect=connect_timeout_seconds,
                                    read=read_timeout_seconds or graph_timeout_seconds()),
        )

    def fetch_info(self) -> dict[str, Any]:
        """Return the table's info as it is: see `parse_graph`."""
        url = self.url.info_url
        document = _read_json(self._request("GET", url, MAX_INFO_BYTES), url)
        if not isinstance(document, dict):
            raise InputError(f"{url}: expected a JSON object, found {type(document).__name__}")
        return document

    def fetch_roots(self, ids: UInt64, *, timestamp: Timestamp, stop_layer: int | None = None) -> UInt64:
        """Return what the server answers for each id: its parent at `stop_layer` or above, an echo, or 0.

        Parameters
        ----------
        ids
            Shape (n,), uint64. Sorted ones are quicker: neighbours are neighbours in the server's store.
        stop_layer
            None for the root.

        Returns
        -------
        Shape (n,), uint64. The length was checked, the ids were not: an unknown id may be echoed.

        Raises
        ------
        TooLargeError
            If fewer ids may pass (413, 500, 504; no answer in time: `SilentError`).
        RetryableError
            If another try may pass (429, 502, 503, lost connections, an answer of another length).
        AuthorizationError
            If the server wants a token, or another one (401, 403, a log-in page).
        InputError
            If the server knows no such table or takes no such parameter (400, 404).
        """
        if not len(ids):
            return np.empty(0, np.uint64)
        query = {"timestamp": timestamp.unix} | ({} if stop_layer is None else {"stop_layer": str(stop_layer)})
        url = f"{self.url.api_url}/roots_binary"
        body = self._request("POST", url, 8 * len(ids), query, _as_uint64(ids).astype("<u8").tobytes())
        if len(body) != 8 * len(ids):
            found = f"more than {8 * len(ids)}" if len(body) > 8 * len(ids) else str(len(body))
            page = ", which look like a page" if body.lstrip().startswith(b"<") else ""
            raise RetryableError(f"{url}: expected {8 * len(ids)} bytes for {len(ids)} ids, found {found}{page}")
        return np.frombuffer(body, "<u8").astype(np.uint64)

    def is_latest(self, roots: UInt64, timestamp: Timestamp) -> Bool:
        """Return which roots no edit had replaced at that time, the time itself included; shape (n,).

        Ask for ids of the root layer only: some versions answer 400 when another one is among them.
        Unknown ids are false or true, depending on the version. Raises as `fetch_roots` does.
        """
        if not len(roots):
            return np.empty(0, np.bool_)
        url = f"{self.url.api_url}/is_latest_roots"
        # Python's integers: numbers above 2^53 stay what they are.
        question = json.dumps({"node_ids": _as_uint64(roots).tolist()}, separators=(",", ":")).encode()
        limit = 16 * len(roots) + 1024
        # This call leaves out the edits of its last millisecond, which `roots_binary` counts (`end_time_inclusive` in
        # PyChunkedGraph's chunkedgraph.py). Where it doesn't, a root is called outdated a millisecond too early.
        after = Timestamp(timestamp.milliseconds + 1)
        body = self._request("POST", url, limit, {"timestamp": after.unix}, question)
        answer = _read_json(body, url)
        latest = answer.get("is_latest") if isinstance(answer, dict) else None
        if not isinstance(latest, list) or not all(isinstance(item, bool) for item in latest):
            raise RetryableError(f"{url}: expected a list of true and false as `is_latest`, found something else")
        if len(latest) != len(roots):
            raise RetryableError(f"{url}: expected an answer for each of {len(roots)} ids, found {len(latest)}")
        return np.array(latest, np.bool_)

    def close(self) -> None:
        """Close the connections."""
        self._pool.clear()

    def _request(
        self, method: str, url: str, limit: int, query: Mapping[str, str] | None = None, body: bytes | None = None
    ) -> bytes:
        """Return the body of an answer of 200, cut off one byte past `limit`."""
        import urllib3

        headers = {"Accept-Encoding": "gzip", "User-Agent": "voxelprobe"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token.reveal()}"
        if body is not None:
            headers["Content-Type"] = "application/json" if body[:1] == b"{" else "application/octet-stream"
            if len(body) >= GZIP_BYTES:
                body = gzip.compress(body, 1, mtime=0)
                headers["Content-Encoding"] = "gzip"
        target = f"{url}?{urlencode(query)}" if query else url
        self.traffic.add(requests=1)
        try:
            answer = self._pool.request(
                method, target, body=body, headers=headers, redirect=False, retries=False, preload_content=False
            )
            limit = limit if answer.status == 200 else MAX_REASON_BYTES
            # Not unpacked by urllib3, which takes a gzip body without its end for a whole one.
            content = answer.read(limit + GZIP_OVERHEAD_BYTES + 1, decode_content=False)
        except urllib3.exceptions.ReadTimeoutError as error:
            raise SilentError(f"{url}: no answer in time") from error
        except urllib3.exceptions.SSLError as error:
            distrusted = any(isinstance(cause, ssl.SSLCertVerificationError) for cause in error.args)
            kind = TransportError if distrusted else RetryableError
            raise kind(f"{url}: {_cause(error)}") from error
        except urllib3.exceptions.HTTPError as error:
            raise RetryableError(f"{url}: {_cause(error)}") from error
        if len(content) > limit + GZIP_OVERHEAD_BYTES:
            answer.close()  # The rest of it must not be taken for the next answer.
        answer.release_conn()
        self.traffic.add(received=len(content))
        if answer.headers.get("Content-Encoding", "").lower() == "gzip":
            unpacked = _gunzip(content, limit)
            if unpacked is None and answer.status == 200:
                raise RetryableError(f"{url}: expected a gzip body, found one that is damaged or ends early")
            content = unpacked or b""
        if answer.status != 200:
            raise self._refusals.error(url, answer.status, answer.headers, content)
        return content[: limit + 1]


def _read_json(content: bytes, url: str) -> Any:
    try:
        return json.loads(content)
    except (ValueError, RecursionError) as error:
        page = "a page" if content.lstrip().startswith(b"<") else "something else"
        raise RetryableError(f"{url}: expected JSON, found {page}") from error


def _gunzip(content: bytes, limit: int) -> bytes | None:
    """Return what was packed, cut off one byte past `limit`; None if it is damaged or not all there."""
    unpacker = zlib.decompressobj(31)
    try:
        unpacked = unpacker.decompress(content, limit + 1)
    except zlib.error:
        return None
    if len(unpacked) <= limit and (not unpacker.eof or unpacker.unused_data):
        return None
    return unpacked


def _as_uint64(ids: UInt64) -> UInt64:
    if ids.dtype != np.uint64:
        raise TypeError(f"ids are uint64, found {ids.dtype}")
    return ids


def _cause(error: BaseException) -> str:
    # urllib3 puts the pool's address in front; the URL is already said.
    return re.sub(r"^<?.*?object at 0x[0-9a-f]+>: |^\w+\(host=.*?\): ", "", str(error)) or type(error).__name__
