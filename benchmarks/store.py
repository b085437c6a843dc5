"""An object store on the loopback, cheap enough to measure clients with: `python -m benchmarks.store FOLDER`.

Benchmarks run on the machine that runs the client, so what a request costs here is taken from the client: this store
speaks just the HTTP/1.1 that readers of objects use, on raw bytes, in a process of its own, from memory. It answers
after a settable wait, as a bucket some milliseconds away would, however many requests are under way.

Objects stored as `NAME.gz` are served as `NAME` with `Content-Encoding: gzip`. Hard links share one copy in memory.
GET and HEAD, with one `Range` or `If-None-Match`; for the person measuring `GET /-/counters`, `POST /-/reset` and
`POST /-/latency?ms=20`. The store ends with its parent, or when its stdin is a pipe that closes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import hashlib
import json
import mmap
import os
import re
import socket
import stat
import subprocess
import sys
import time
import urllib.request
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple
from urllib.parse import unquote

from voxelprobe.processes import die_with_parent

ROOT = Path(__file__).resolve().parent.parent
# Larger objects (shards) are mapped, not read: the page cache has them already.
_READ_BYTES = 1 << 20
# A whole chunk leaves in one system call, so that the loop need not come back for the rest of it.
_SEND_BUFFER = 4 << 20
_RANGE = re.compile(rb"\r\nrange:[ \t]*bytes[ \t]*=[ \t]*(\d*)-(\d*)[ \t]*\r\n")
_NONE_MATCH = re.compile(rb"\r\nif-none-match:[ \t]*([^\r]*?)[ \t]*\r\n", re.IGNORECASE)
_LENGTH = re.compile(rb"\r\ncontent-length:[ \t]*(\d+)[ \t]*\r\n")


class StoredFile(NamedTuple):
    """An object: its bytes, what of the answer's head belongs to it, and its ETag."""

    content: memoryview
    fields: bytes
    etag: bytes


class ObjectStore:
    """Files of a folder by name, and what was asked for."""

    def __init__(self, folder: Path, latency_seconds: float) -> None:
        self._root = os.path.realpath(folder)
        self.latency_seconds = latency_seconds
        self._files: dict[tuple[Any, ...], StoredFile] = {}
        self._paths: dict[bytes, str | None] = {}
        self.reset()

    def reset(self) -> None:
        """Begin counting anew."""
        self.requests = self.sent = self.not_found = self.heads = self.connections = 0
        self.in_flight = self.most_in_flight = 0
        self._cpu = time.process_time()

    def counters(self) -> dict[str, float]:
        """Return the counts since the last reset."""
        return {
            "requests": self.requests, "bytes": self.sent, "not_found": self.not_found, "heads": self.heads,
            "max_in_flight": self.most_in_flight, "connections": self.connections,
            "cpu_seconds": time.process_time() - self._cpu,
        }

    def find(self, target: bytes) -> StoredFile | None:
        """Return the object of a request's target, or None. A file that was changed is read again."""
        if target not in self._paths:
            self._paths[target] = self._path(target)
        if (path := self._paths[target]) is None:
            return None
        for name, fields in ((path, b""), (path + ".gz", b"Content-Encoding: gzip\r\n")):
            try:
                found = os.stat(name)
            except OSError:
                continue
            if not stat.S_ISREG(found.st_mode):
                continue
            # Hard links have the inode in common.
            key = (found.st_dev, found.st_ino, found.st_mtime_ns, found.st_size, fields)
            if key not in self._files:
                # What was found may be a link that leads out of the folder.
                if os.path.commonpath([self._root, os.path.realpath(name)]) != self._root:
                    return None
                self._files[key] = _load(name, found, fields)
            return self._files[key]
        return None

    def _path(self, target: bytes) -> str | None:
        name = unquote(target.split(b"?", 1)[0].decode("latin-1"))
        parts = [part for part in name.split("/") if part not in ("", ".")]
        if ".." in parts or "\0" in name:
            return None
        return os.path.join(self._root, *parts)


def _load(name: str, found: os.stat_result, fields: bytes) -> StoredFile:
    with open(name, "rb") as file:
        if found.st_size > _READ_BYTES:
            content = memoryview(mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ))
            etag = f'"{found.st_ino:x}-{found.st_mtime_ns:x}-{found.st_size:x}"'.encode()
        else:
            content = memoryview(file.read())
            etag = f'"{hashlib.md5(content, usedforsecurity=False).hexdigest()}"'.encode()
    return StoredFile(content, b"ETag: " + etag + b"\r\nAccept-Ranges: bytes\r\n" + fields, etag)


class Connection(asyncio.Protocol):
    """One client: answers leave in the order of their requests, each when its wait is over."""

    def __init__(self, store: ObjectStore, loop: asyncio.AbstractEventLoop) -> None:
        self._store, self._loop = store, loop
        self._received = b""
        self._answers: deque[tuple[bytes, memoryview | None, bool]] = deque()
        self._transport: Any = None

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._store.connections += 1
        plug = transport.get_extra_info("socket")
        plug.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        plug.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER)

    def connection_lost(self, error: Exception | None) -> None:
        self._transport = None

    def data_received(self, data: bytes) -> None:
        self._received = self._received + data if self._received else data
        while (end := self._received.find(b"\r\n\r\n")) >= 0:
            head = self._received[: end + 2]
            # Names of fields come in any case; their values that matter here are numbers.
            fields = head[head.find(b"\r\n"):].lower()
            length = 0
            if b"content-length:" in fields and (match := _LENGTH.search(fields)):
                length = int(match[1])
            if len(self._received) < end + 4 + length:
                return
            self._received = self._received[end + 4 + length:]
            self._request(head, fields)

    def _request(self, head: bytes, fields: bytes) -> None:
        store, words = self._store, head[: head.find(b"\r\n")].split(b" ")
        if len(words) != 3 or b"\r\ntransfer-encoding:" in fields:
            self._answers.append((_head(b"400 Bad Request"), None, True))
            self._answer_next(counted=False)
            return
        method, target, version = words
        close = version == b"HTTP/1.0" or b"\r\nconnection: close\r\n" in fields
        if target.startswith(b"/-/"):
            self._answers.append((*self._control(method, target), close))
            # Its turn comes after the answers before it, if any are still waiting.
            self._loop.call_later(store.latency_seconds if len(self._answers) > 1 else 0, self._answer_next, False)
            return
        store.requests += 1
        store.in_flight += 1
        store.most_in_flight = max(store.most_in_flight, store.in_flight)
        self._answers.append((*self._object(method, target, fields, head), close))
        if store.latency_seconds > 0:
            self._loop.call_later(store.latency_seconds, self._answer_next)
        else:
            self._answer_next()

    def _object(self, method: bytes, target: bytes, fields: bytes, head: bytes) -> tuple[bytes, memoryview | None]:
        store = self._store
        if method not in (b"GET", b"HEAD"):
            return _head(b"405 Method Not Allowed"), None
        store.heads += method == b"HEAD"
        file = store.find(target)
        if file is None:
            store.not_found += 1
            return _head(b"404 Not Found"), None
        if b"\r\nif-none-match:" in fields and (match := _NONE_MATCH.search(head)) and match[1] == file.etag:
            return b"HTTP/1.1 304 Not Modified\r\n" + file.fields + b"\r\n", None
        body, line, extra = file.content, b"200 OK", b""
        size = len(body)
        if b"\r\nrange:" in fields and (match := _RANGE.search(fields)) and (match[1] or match[2]):
            begin = int(match[1]) if match[1] else max(0, size - int(match[2]))
            end = min(size, int(match[2]) + 1) if match[1] and match[2] else size
            if begin >= size or (match[2] == b"0" and not match[1]):
                return _head(b"416 Range Not Satisfiable", b"Content-Range: bytes */%d\r\n" % size), None
            if end > begin:  # else a range that contradicts itself, which is ignored
                body, line = body[begin:end], b"206 Partial Content"
                extra = b"Content-Range: bytes %d-%d/%d\r\n" % (begin, end - 1, size)
        answer = _head(line, file.fields + extra, len(body))
        if method == b"HEAD":
            return answer, None
        store.sent += len(body)
        return answer, body

    def _control(self, method: bytes, target: bytes) -> tuple[bytes, memoryview | None]:
        body = b""
        if target == b"/-/counters":
            body = json.dumps(self._store.counters()).encode() + b"\n"
        elif method == b"POST" and target == b"/-/reset":
            self._store.reset()
        elif method == b"POST" and (match := re.fullmatch(rb"/-/latency\?ms=(\d+(?:\.\d+)?)", target)):
            self._store.latency_seconds = float(match[1]) / 1000
        else:
            return _head(b"404 Not Found"), None
        return _head(b"200 OK", b"Content-Type: application/json\r\n", len(body)), memoryview(body)

    def _answer_next(self, counted: bool = True) -> None:
        if counted:
            self._store.in_flight = max(0, self._store.in_flight - 1)
        head, body, close = self._answers.popleft()
        if self._transport is None:
            return
        if body is None:
            self._transport.write(head)
        elif len(body) <= _READ_BYTES:
            # Copying a chunk is cheaper than a second system call.
            self._transport.write(b"".join((head, body)))
        else:
            self._transport.write(head)
            self._transport.write(body)
        if close:
            self._transport.close()


def _head(line: bytes, fields: bytes = b"", length: int = 0) -> bytes:
    return b"HTTP/1.1 %b\r\nContent-Length: %d\r\n%b\r\n" % (line, length, fields)


async def _serve(folder: Path, latency_seconds: float) -> None:
    loop, ended = asyncio.get_running_loop(), asyncio.Event()
    store = ObjectStore(folder, latency_seconds)
    server = await loop.create_server(lambda: Connection(store, loop), "127.0.0.1", 0, backlog=1024)
    kind = os.fstat(0).st_mode
    if stat.S_ISFIFO(kind) or stat.S_ISSOCK(kind):
        loop.add_reader(0, lambda: None if os.read(0, 4096) else ended.set())
    print(f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}", flush=True)
    await ended.wait()


class Served(NamedTuple):
    """A store in a process of its own."""

    url: str
    pid: int

    def counters(self) -> dict[str, float]:
        """Return what was asked for since the last reset."""
        with urllib.request.urlopen(f"{self.url}/-/counters") as answer:
            found: dict[str, float] = json.load(answer)
        return found

    def reset(self) -> None:
        """Begin counting anew."""
        self._post("reset")

    def set_latency(self, milliseconds: float) -> None:
        """Change the wait before each answer."""
        self._post(f"latency?ms={milliseconds}")

    def _post(self, name: str) -> None:
        urllib.request.urlopen(urllib.request.Request(f"{self.url}/-/{name}", method="POST")).close()


@contextlib.contextmanager
def serve(folder: Path, latency_ms: float = 0.0) -> Iterator[Served]:
    """Give the store that serves `folder` while the with block lasts, in a process of its own."""
    command = [sys.executable, "-m", "benchmarks.store", str(folder.absolute()), "--latency-ms", str(latency_ms)]
    with subprocess.Popen(command, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        try:
            url = process.stdout.readline().decode().strip()
            if not url:
                raise RuntimeError(f"the store of {folder} ended with status {process.wait()}")
            yield Served(url, process.pid)
        finally:
            process.stdin.close()
            process.wait(10)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--latency-ms", type=float, default=0.0)
    options = parser.parse_args()
    die_with_parent()
    with contextlib.suppress(KeyboardInterrupt):
        asyncio.run(_serve(options.folder, options.latency_ms / 1000))
    return 0


if __name__ == "__main__":
    sys.exit(main())
