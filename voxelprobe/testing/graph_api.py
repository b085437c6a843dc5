"""What a PyChunkedGraph server answers, as functions of a graph and a call; no sockets here.

Version 2 returns the ids of a batch in which none has a parent, version 3 returns 0: seen on real servers. That 2
fails where nothing was edited in an interval, and leaves out the interval's end, was seen of some versions only. What
happens in the very millisecond of an edit, and to `root_timestamps` of unknown ids, is from the server's source.
"""

from __future__ import annotations

import datetime
import gzip
import json
import re
import time
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from voxelprobe.testing.graph_info import Version
from voxelprobe.testing.graph_model import ChunkedGraph, Ids
from voxelprobe.testing.graph_replies import (
    HTML,
    LOGIN_PATH,
    RefusedError,
    Reply,
    bad_request_reply,
    failure_reply,
    html_reply,
    json_reply,
    login_reply,
)

Refusal = Literal["missing_permission", "missing_tos"]
APP_VERSIONS: dict[int, str] = {2: "2.18.4", 3: "3.0.7"}


@dataclass(frozen=True)
class Call:
    """One request: path without the query, the query's values, headers with lower-case names, the body as sent."""

    method: str
    path: str
    query: Mapping[str, str]
    headers: Mapping[str, str]
    body: bytes

    @cached_property
    def payload(self) -> bytes:
        """Return the body without gzip."""
        return gzip.decompress(self.body) if self.headers.get("content-encoding") == "gzip" else self.body

    @cached_property
    def ids(self) -> Ids:
        """Return the ids asked about; none where the call has none or they can't be read."""
        try:
            return read_ids(self)
        except (ValueError, KeyError, TypeError, OverflowError, EOFError, OSError, zlib.error):
            return np.zeros(0, np.uint64)


def read_ids(call: Call) -> Ids:
    """Return the ids in a body: JSON `node_ids`, or uint64le for `roots_binary`."""
    if call.path.endswith("/roots_binary"):
        return np.frombuffer(call.payload, "<u8")
    if not call.payload:
        return np.zeros(0, np.uint64)
    return np.array(json.loads(call.payload)["node_ids"], np.uint64)


@dataclass(slots=True)
class GraphApi:
    """The calls of one table.

    Attributes
    ----------
    info
        As the server sends it.
    token, refusal
        The token without which nothing is answered, None for a server that asks for none; and why the user of a
        right token is sent away, None where they are not.
    clock
        Seconds since 1970, for calls without a timestamp.
    """

    graph: ChunkedGraph
    table: str
    info: Mapping[str, Any]
    version: Version
    token: str | None = None
    refusal: Refusal | None = None
    clock: Callable[[], float] = time.time

    def answer(self, call: Call, url: str) -> Reply:
        """Return the answer to a call at the server's address `url`."""
        try:
            if call.path == LOGIN_PATH:
                return Reply(200, b"<html><body>Please log in.</body></html>\n", HTML)
            self._check_token(call, url)
            return self._dispatch(call)
        except RefusedError as refused:
            return refused.reply
        except Exception as error:
            return failure_reply(error)

    def _check_token(self, call: Call, url: str) -> None:
        if self.token is None:
            return
        sent = call.headers.get("authorization")
        if sent is None:
            raise RefusedError(login_reply(url))
        if sent != f"Bearer {self.token}":
            raise RefusedError(json_reply(401, {"error": "invalid_token"}))

    def _dispatch(self, call: Call) -> Reply:
        if call.path == "/segmentation/api/versions":
            return json_reply(200, [0, 1])
        if call.path == "/segmentation/api/version":
            return json_reply(200, APP_VERSIONS[self.version])
        match = re.fullmatch(r"/segmentation/(api/v1/)?table/([^/]+)/(.+)", call.path)
        if match is None:
            raise RefusedError(html_reply(404))
        api, table, name = match.groups()
        if table != self.table:
            raise RefusedError(json_reply(400, {"error": "invalid_table_id", "message": f"no table {table}"}))
        if self.refusal is not None:
            raise RefusedError(json_reply(403, {"error": self.refusal, "message": f"refused: {self.refusal}",
                                                "data": {"tos_form_url": "http://127.0.0.1:9/tos"}}))
        if not api and name == "info":
            return json_reply(200, self.info)
        if api and (node := re.fullmatch(r"node/(\d+)/root", name)):
            root = self._roots(call, np.array([int(node.group(1))], np.uint64))
            return json_reply(200, {"root_id": int(root[0])})
        calls: dict[str, tuple[str, Callable[[Call], Reply]]] = {
            "roots_binary": ("POST", self._roots_binary),
            "roots": ("POST", lambda call: json_reply(200, {"root_ids": self._roots(call, read_ids(call)).tolist()})),
            "is_latest_roots": ("POST", self._is_latest_roots),
            "root_timestamps": ("POST", self._root_timestamps),
            "delta_roots": ("GET", self._delta_roots),
            "oldest_timestamp": ("GET", self._oldest_timestamp),
        }
        method, function = calls.get(name, ("", None)) if api else ("", None)
        if function is None:
            raise RefusedError(html_reply(404))
        if call.method != method:
            raise RefusedError(html_reply(405))
        return function(call)

    def _roots(self, call: Call, ids: Ids) -> Ids:
        at = self._timestamp(call, "timestamp")
        # int() of a bad text fails as the server's does; 0 counts as left out there too.
        stop_layer = int(call.query.get("stop_layer", self.graph.layout.n_layers))
        return self.graph.roots_at(ids, at, stop_layer=stop_layer, keep_orphans=self.version == 2)

    def _roots_binary(self, call: Call) -> Reply:
        return Reply(200, self._roots(call, read_ids(call)).astype("<u8").tobytes(), HTML)

    def _is_latest_roots(self, call: Call) -> Reply:
        latest = self.graph.latest(read_ids(call), self._timestamp(call, "timestamp"))
        return json_reply(200, {"is_latest": latest.tolist()})

    def _root_timestamps(self, call: Call) -> Reply:
        ids = read_ids(call)
        if not self.graph.is_root(ids).any():
            return json_reply(200, {"timestamp": []})
        made = self.graph.root_timestamps(ids)
        if call.query.get("latest", "").lower() in ("true", "1"):
            made = np.minimum(self.graph.root_ends(ids), self._timestamp(call, "timestamp"))
        return json_reply(200, {"timestamp": made.tolist()})

    def _delta_roots(self, call: Call) -> Reply:
        if "timestamp_past" not in call.query:
            raise RefusedError(bad_request_reply("Timestamp parameter timestamp_past is mandatory"))
        old, new = self.graph.delta(self._timestamp(call, "timestamp_past"), self._timestamp(call, "timestamp_future"),
                                    include_future=self.version == 3)
        if self.version == 2 and not len(new):
            raise ValueError("need at least one array to concatenate")
        return json_reply(200, {"old_roots": old.tolist(), "new_roots": new.tolist()})

    def _oldest_timestamp(self, call: Call) -> Reply:
        oldest = self.graph.oldest_timestamp()
        if oldest is None:
            raise AttributeError("'NoneType' object has no attribute 'isoformat'")
        text = datetime.datetime.fromtimestamp(oldest, datetime.UTC).isoformat(call.query.get("delimiter", " "))
        return json_reply(200, {"iso": text})

    def _timestamp(self, call: Call, name: str) -> float:
        try:
            seconds = float(call.query.get(name, self.clock()))
            datetime.datetime.fromtimestamp(seconds, datetime.UTC)
        except (ValueError, OverflowError):
            message = f"Timestamp parameter {name} is not a valid unix timestamp"
            raise RefusedError(bad_request_reply(message)) from None
        return seconds
