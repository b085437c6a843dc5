"""A graph server whose answers a function gives, also damaged ones and none at all."""

from __future__ import annotations

import contextlib
import gzip
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler
from urllib.parse import parse_qs, urlsplit

import numpy as np

from voxelprobe.graphene.client import GraphClient
from voxelprobe.graphene.tokens import Token
from voxelprobe.graphene.url import parse_graphene_url
from voxelprobe.testing.loopback import LoopbackServer, reset_connection

SECRET = "0123456789abcdef0123456789abcdef"  # noqa: S105 -- nobody's


@dataclass
class Sent:
    """A request as it arrived, with its body as it was sent (`raw`) and as it is meant (`body`)."""

    method: str
    path: str
    query: dict[str, list[str]]
    headers: Message
    raw: bytes
    body: bytes = b""


@dataclass
class Reply:
    """An answer; `cut` leaves bytes away from the body's end, `act` is stall or reset."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    cut: int = 0
    act: str = ""


class ScriptedGraphServer(LoopbackServer):
    """A server of 127.0.0.1 that answers each request with what `script` returns for it.

    Attributes
    ----------
    sent
        The requests, in the order in which they came.
    connections
        How many connections were made.
    """

    def __init__(self, script: Callable[[Sent], Reply]) -> None:
        server = self
        self.sent: list[Sent] = []
        self.connections = 0

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"
            disable_nagle_algorithm = True

            def setup(self) -> None:
                server.connections += 1
                super().setup()

            def answer(self) -> None:
                raw = self.rfile.read(int(self.headers.get("Content-Length", 0)))
                parts = urlsplit(self.path)
                body = gzip.decompress(raw) if self.headers.get("Content-Encoding") == "gzip" else raw
                server.sent.append(Sent(self.command, parts.path, parse_qs(parts.query), self.headers, raw, body))
                reply = script(server.sent[-1])
                if reply.act == "stall":
                    server.closing.wait(20)
                    return
                if reply.act == "reset":
                    reset_connection(self)
                    return
                self.send_response(reply.status)
                for name, value in ({"Content-Length": str(len(reply.body))} | reply.headers).items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(reply.body[: len(reply.body) - reply.cut])
                if reply.cut or "Connection" in reply.headers:
                    self.close_connection = True

            do_GET = do_POST = answer  # noqa: N815 -- the base class calls them so

            def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base class's name
                pass

        super().__init__(Handler)


def plus_one(sent: Sent) -> Reply:
    """Answer each id with the next one, as the real server labels it: text/html."""
    return Reply(body=(np.frombuffer(sent.body, "<u8") + np.uint64(1)).tobytes(), headers={"Content-Type": "text/html"})


MakeClient = Callable[..., tuple[GraphClient, ScriptedGraphServer]]


@contextlib.contextmanager
def scripted_clients() -> Iterator[MakeClient]:
    """Give a function that starts a server with a script, or with one answer for all, and connects a client to it.

    Its `token` is `SECRET`, said to be from a file, if no other is named. All end with the with block.
    """
    with contextlib.ExitStack() as stack:

        def make(
            script: Callable[[Sent], Reply] | Reply, *, token: str | None = SECRET, read_timeout_seconds: float = 10.0
        ) -> tuple[GraphClient, ScriptedGraphServer]:
            server = ScriptedGraphServer((lambda sent: script) if isinstance(script, Reply) else script)
            stack.callback(server.stop)
            client = GraphClient(
                parse_graphene_url(f"graphene://{server.url}/segmentation/table/fly_v31"),
                token=None if token is None else Token(token, "/home/me/cave-secret.json"),
                connections=2,
                connect_timeout_seconds=5.0,
                read_timeout_seconds=read_timeout_seconds,
            )
            stack.callback(client.close)
            return client, server

        yield make
