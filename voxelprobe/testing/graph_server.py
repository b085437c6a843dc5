"""A real chunked-graph server on the loopback, which answers from a `ChunkedGraph` and fails when told to."""

from __future__ import annotations

import gzip
import threading
from collections.abc import Callable, Mapping
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import parse_qsl, urlsplit

from voxelprobe.testing.faults import Fault, FaultPlan
from voxelprobe.testing.graph_api import Call, GraphApi, Refusal
from voxelprobe.testing.graph_info import Version, graph_info
from voxelprobe.testing.graph_model import ChunkedGraph, Ids
from voxelprobe.testing.graph_replies import Reply, fault_reply, html_reply, takes_gzip
from voxelprobe.testing.loopback import Served, reset_connection

__all__ = ["Fault", "GraphRequest", "GraphServer"]


class GraphRequest(NamedTuple):
    """What a client asked for.

    `path` has neither the query nor a slash at the start; `ids` are those in the body, in its order; `body_bytes` and
    `encoding` are of the body as sent; `authorized` tells whether the call carried an `Authorization` header.
    """

    method: str
    path: str
    query: Mapping[str, str]
    ids: Ids
    body_bytes: int
    encoding: str | None
    authorized: bool


class GraphServer(Served):
    """Serve a graph at `url` inside a `with` block.

    Parameters
    ----------
    data_dir
        The watershed volume: a folder, or a cloudpath with `watershed_info` beside it.
    watershed_info
        The volume's `info`; read from the folder where not given.
    version
        2 or 3; see `graph_api`.
    name
        Of the table.
    token, refusal
        The token that every call must bear, None for a server that asks for none; and why its user is sent away.
    ocdbt_seg
        Version 3: the info says that supervoxels may have been split.
    max_body_bytes
        Bodies above it, as sent, are refused with 413, in HTML; may be changed at any time.
    latency_seconds
        Waited before each answer; may be changed at any time.

    Attributes
    ----------
    api
        What answers: its `token`, `refusal` and `clock` may be changed.
    fault_for
        Asked at each call; where it returns None, the faults planned by `fail` are looked at.
    requests
        Every `GraphRequest` so far, in order of arrival, also those that a fault met.
    ids_asked, ids_answered
        Ids in the bodies of all calls, and of those answered with 200 and no fault.
    bytes_received, bytes_sent
        Of bodies.
    peak_in_flight
        The most requests that were being answered at one time.
    """

    def __init__(
        self,
        graph: ChunkedGraph,
        *,
        data_dir: Path | str,
        watershed_info: Mapping[str, Any] | None = None,
        version: Version = 3,
        name: str = "probe",
        token: str | None = None,
        refusal: Refusal | None = None,
        ocdbt_seg: bool = False,
        max_body_bytes: int | None = None,
        latency_seconds: float = 0.0,
    ) -> None:
        info = graph_info(graph.layout, data_dir, watershed_info, version=version, ocdbt_seg=ocdbt_seg)
        self.api = GraphApi(graph, name, info, version, token, refusal)
        self.max_body_bytes = max_body_bytes
        self.latency_seconds = latency_seconds
        self.fault_for: Callable[[GraphRequest], Fault | None] | None = None
        self.requests: list[GraphRequest] = []
        self.ids_asked = self.ids_answered = self.bytes_received = self.bytes_sent = self.peak_in_flight = 0
        self._in_flight = 0
        self._lock = threading.Lock()
        self._plan = FaultPlan()

    def fail(self, path: str, fault: Fault, *, times: int | None = 1, skip: int = 0) -> None:
        """Plan a fault for the next `times` requests of `path` (as `*roots_binary`) after `skip` good ones.

        A `status` of 500 comes as JSON with a traceback, 302 as a redirect to the login page, others as a proxy's
        HTML.
        """
        self._plan.add(path, fault, times=times, skip=skip)

    def heal(self) -> None:
        """Forget every planned fault."""
        self._plan.clear()

    def clear(self) -> None:
        """Begin counting anew."""
        with self._lock:
            self.requests.clear()
            self.ids_asked = self.ids_answered = self.bytes_received = self.bytes_sent = self.peak_in_flight = 0

    def calls(self, name: str) -> list[GraphRequest]:
        """Return the requests so far whose path ends with `/name`."""
        with self._lock:
            return [request for request in self.requests if request.path.endswith(f"/{name}")]

    @property
    def cloudpath(self) -> str:
        """Return the graph's cloudpath, as CloudVolume takes it."""
        return f"graphene://{self.url}/segmentation/table/{self.api.table}"

    def handler(self) -> type[BaseHTTPRequestHandler]:
        """Return a handler that answers for this graph."""
        return type("GraphHandler", (_Handler,), {"graph": self})

    def begin(self, call: Call) -> Fault | None:
        """Count a call and return the fault that it meets."""
        request = GraphRequest(call.method, call.path.lstrip("/"), call.query, call.ids, len(call.body),
                               call.headers.get("content-encoding"), "authorization" in call.headers)
        with self._lock:
            self.requests.append(request)
            self.ids_asked += len(request.ids)
            self.bytes_received += len(call.body)
            self._in_flight += 1
            self.peak_in_flight = max(self.peak_in_flight, self._in_flight)
        chosen = self.fault_for(request) if self.fault_for is not None else None
        return chosen or self._plan.take(request.path)

    def end(self, *, answered: int = 0) -> None:
        """Count an answered call, and the ids that were answered in it."""
        with self._lock:
            self._in_flight -= 1
            self.ids_answered += answered

    def count_sent(self, size: int) -> None:
        """Count bytes of a body."""
        with self._lock:
            self.bytes_sent += size


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    wbufsize = -1  # Head and body leave together; flushed after each answer.
    graph: GraphServer

    def do_GET(self) -> None:
        self.ended = False
        target = urlsplit(self.path)
        headers = {name.lower(): value for name, value in self.headers.items()}
        body = self.rfile.read(int(headers.get("content-length", "0")))
        call = Call(self.command, target.path, dict(parse_qsl(target.query, keep_blank_values=True)), headers, body)
        fault = self.graph.begin(call)
        try:
            self._answer(call, fault)
        finally:
            self._end(0)
        self.wfile.flush()

    def do_POST(self) -> None:
        self.do_GET()

    def _end(self, answered: int) -> None:
        # Before the last bytes leave: a client that has them may look at the counters, or ask again elsewhere.
        if not self.ended:
            self.ended = True
            self.graph.end(answered=answered)

    def _answer(self, call: Call, fault: Fault | None) -> None:
        stall = fault.seconds if fault and fault.kind == "stall" else 0.0
        if self.graph.wait(self.graph.latency_seconds + stall) or (fault and fault.kind == "reset"):
            reset_connection(self)
            return
        if fault and fault.kind == "status":
            reply = fault_reply(fault, self.graph.url)
        elif "transfer-encoding" in call.headers:
            self.close_connection = True  # The body stays unread.
            reply = html_reply(411)
        elif self.graph.max_body_bytes is not None and len(call.body) > self.graph.max_body_bytes:
            reply = html_reply(413)
        else:
            reply = self.graph.api.answer(call, self.graph.url)
        if reply.status == 200 and takes_gzip(call.headers.get("accept-encoding", "")):
            reply.body = gzip.compress(reply.body, 6, mtime=0)
            reply.headers |= {"Content-Encoding": "gzip", "Vary": "Accept-Encoding"}
        self._send(reply, fault, len(call.ids) if reply.status == 200 else 0)

    def _send(self, reply: Reply, fault: Fault | None, answered: int) -> None:
        body, kind, half = reply.body, fault.kind if fault else None, len(reply.body) // 2
        if kind == "truncated":
            body = body[:half]
        elif kind == "flipped" and body:
            body = body[:half] + bytes([body[half] ^ 0xFF]) + body[half + 1:]
        self.send_response(reply.status)
        said = half if kind == "wrong_length" else len(body)
        head = {"Content-Type": reply.content_type, "Content-Length": str(said)}
        for name, value in (head | reply.headers).items():
            self.send_header(name, value)
        self.end_headers()
        if kind in ("short_body", "stall_body"):
            self._write(body[:half])
            self.wfile.flush()
            if kind == "short_body":
                self.close_connection = True
                return
            if self.graph.wait(fault.seconds if fault else 0.0):
                reset_connection(self)
                return
            body = body[half:]
        self._end(answered if kind in (None, "stall", "stall_body") else 0)
        self._write(body)

    def _write(self, data: bytes) -> None:
        self.graph.count_sent(len(data))
        self.wfile.write(data)

    def log_message(self, format: str, *args: Any) -> None:  # noqa: A002 -- the base class's name
        """Say nothing: `requests` is the record."""
