"""GET over HTTP(S) by libcurl: one at a time, or many at once in one thread.

A thread a request costs several times the CPU of the request itself (docs/design/006-fetching.md). What an answer
means is for the caller to say; here are connections, timeouts, redirects, certificates, and what libcurl's errors mean.
No handle of libcurl's survives a fork: whoever opens a session uses it in the same process.
"""

from __future__ import annotations

import functools
import os
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import pycurl

from voxelprobe.errors import TransportError
from voxelprobe.transport.protocol import RetryableError
from voxelprobe.transport.reach import Reach, open_socket
from voxelprobe.transport.silence import CONNECT_TIMEOUT_SECONDS

MAX_REDIRECTS = 5
# What one read from a connection may bring: most chunks come in one or two pieces.
_RECEIVE_BYTES = 512 << 10
# libcurl has timers of its own, for silent connections and second addresses of a host.
_LONGEST_WAIT_SECONDS = 1.0

# What no other try mends. Everything else that libcurl says is a failure on the way.
_FINAL = frozenset({
    pycurl.E_UNSUPPORTED_PROTOCOL, pycurl.E_URL_MALFORMAT, pycurl.E_TOO_MANY_REDIRECTS, pycurl.E_SSL_CACERT,
    pycurl.E_PEER_FAILED_VERIFICATION, pycurl.E_SSL_CACERT_BADFILE, pycurl.E_SSL_CERTPROBLEM,
    pycurl.E_BAD_FUNCTION_ARGUMENT, pycurl.E_OUT_OF_MEMORY,
})


class Answer(NamedTuple):
    """An answer of a server: its status, the fields of its last head by lower-case name, and the body as sent."""

    status: int
    fields: dict[bytes, bytes]
    content: bytes

    def field(self, name: bytes) -> str:
        """Return the value of a field; of one that came several times, joined by commas; "" if there is none."""
        return self.fields.get(name, b"").decode("latin-1")


class _Get:
    """A handle of libcurl's, and the request that it is at."""

    def __init__(self, user_agent: str, read_timeout_seconds: int, verbatim: bool, reach: Reach) -> None:
        self.handle = handle = pycurl.Curl()
        self._reach = reach
        self._refused = ""
        self.name = ""
        self.key: Any = None
        self.fields: Sequence[str] = ()
        self.head: list[bytes] = []
        self.pieces: list[bytes] = []
        options: dict[int, Any] = {
            pycurl.USERAGENT: user_agent,
            pycurl.NOSIGNAL: 1,
            pycurl.FOLLOWLOCATION: int(not verbatim),
            pycurl.PATH_AS_IS: int(verbatim),
            pycurl.MAXREDIRS: MAX_REDIRECTS,
            pycurl.PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
            pycurl.REDIR_PROTOCOLS: pycurl.PROTO_HTTP | pycurl.PROTO_HTTPS,
            # Many connections: over a single one of HTTP/2 a lost packet holds up all requests.
            pycurl.HTTP_VERSION: pycurl.CURL_HTTP_VERSION_1_1,
            pycurl.CONNECTTIMEOUT: CONNECT_TIMEOUT_SECONDS,
            pycurl.LOW_SPEED_LIMIT: 1,
            pycurl.LOW_SPEED_TIME: read_timeout_seconds,
            pycurl.BUFFERSIZE: _RECEIVE_BYTES,
            pycurl.OPENSOCKETFUNCTION: self._open_socket,
        }
        for option, value in options.items():
            handle.setopt(option, value)
        # One or the other: libcurl reads a file of certificates once for all connections, but not beside a folder.
        handle.unsetopt(pycurl.CAINFO)
        handle.unsetopt(pycurl.CAPATH)
        handle.setopt(*_trusted_certificates())

    def prepare(self, name: str, url: str, fields: Sequence[str]) -> None:
        handle = self.handle
        if fields is not self.fields:
            handle.setopt(pycurl.HTTPHEADER, fields)
            self.fields = fields
        self.name, self.head, self.pieces, self._refused = name, [], [], ""
        handle.setopt(pycurl.URL, url)
        handle.setopt(pycurl.HEADERFUNCTION, self.head.append)
        handle.setopt(pycurl.WRITEFUNCTION, self.pieces.append)

    def answer(self) -> Answer:
        """Return what came, after libcurl has said that it came whole."""
        pieces = self.pieces
        content = pieces[0] if len(pieces) == 1 else b"".join(pieces)
        fields: dict[bytes, bytes] = {}
        for line in self.head:
            name, colon, value = line.partition(b":")
            name, value = name.lower(), value.strip()
            if colon:
                fields[name] = fields[name] + b", " + value if name in fields else value
            elif line.startswith(b"HTTP/"):
                fields = {}  # redirects and the like have heads of their own, which come first
        self.head, self.pieces = [], []
        return Answer(self.handle.getinfo(pycurl.RESPONSE_CODE), fields, content)

    def error(self, code: int, message: str) -> TransportError:
        """Return what a failure of libcurl's means."""
        self.head, self.pieces = [], []
        if self._refused:
            return TransportError(f"{self.name}: {self._refused}")
        if code == pycurl.E_TOO_MANY_REDIRECTS:
            return TransportError(f"{self.name}: more than {MAX_REDIRECTS} redirects")
        if code in (pycurl.E_UNSUPPORTED_PROTOCOL, pycurl.E_URL_MALFORMAT):
            return TransportError(f"{self.name}: not a URL that can be fetched: {message}")
        kind = TransportError if code in _FINAL else RetryableError
        return kind(f"{self.name}: {message or 'libcurl gives no reason'} (libcurl's error {code})")

    def _open_socket(self, purpose: int, address: Any) -> Any:
        """Return a socket to connect to an address with, unless we have no business there."""
        # A connection that is made after the head of an answer is that of a redirect.
        self._refused = self._reach.complain(address.addr[0], redirected=bool(self.head))
        return pycurl.SOCKET_BAD if self._refused else open_socket(address)


class Session:
    """Connections to servers, kept for the next request.

    Parameters
    ----------
    read_timeout_seconds
        After how long a silent connection is given up, not the whole: a slow store is not a stalled one. libcurl
        notices a few seconds later.
    verbatim
        Whether requests go to their URL as it is, `..` included, and to no other that a redirect names: signed ones are
        good for nothing else, and may have secrets in fields that libcurl knows nothing of.
    named_by_user
        See `Reach`.
    """

    def __init__(
        self, *, user_agent: str, read_timeout_seconds: int, verbatim: bool = False, named_by_user: bool = True,
    ) -> None:
        reach = Reach(named_by_user=named_by_user)
        self._make = functools.partial(_Get, user_agent, read_timeout_seconds, verbatim, reach)
        self._idle: list[_Get] = []

    def get(self, name: str, url: str, fields: Sequence[str]) -> Answer:
        """Return the answer to one request, `name` in errors; may be called from several threads.

        Raises
        ------
        RetryableError, TransportError
            If there is none, and another try may or won't mend that.
        """
        try:
            get = self._idle.pop()
        except IndexError:
            get = self._make()
        try:
            get.prepare(name, url, fields)
            get.handle.perform()
            return get.answer()
        except pycurl.error as error:
            raise get.error(*error.args) from error
        finally:
            self._idle.append(get)

    def open_gets(self, limit: int) -> Gets:
        """Return what makes many requests at once."""
        return Gets(self._make, limit)

    def close(self) -> None:
        """Close the connections."""
        while self._idle:
            self._idle.pop().handle.close()


class Gets:
    """Requests under way at once, all in the calling thread."""

    def __init__(self, make: functools.partial[_Get], limit: int) -> None:
        self._make = make
        self._multi = pycurl.CurlMulti()
        self._multi.setopt(pycurl.M_MAXCONNECTS, limit)
        self._idle: list[_Get] = []
        self._under_way: dict[Any, _Get] = {}

    def start(self, key: Any, name: str, url: str, fields: Sequence[str]) -> TransportError | None:
        """Begin a request, to be sent in the next `wait`; return what is wrong with a URL that can't be asked for."""
        get = self._idle.pop() if self._idle else self._make()
        get.key = key
        try:
            get.prepare(name, url, fields)
        except (pycurl.error, UnicodeError) as error:
            self._idle.append(get)
            return TransportError(f"{name}: not a URL that can be fetched: {error}")
        self._under_way[get.handle] = get
        self._multi.add_handle(get.handle)
        return None

    def wait(self, timeout_seconds: float | None) -> list[tuple[Any, Answer | TransportError]]:
        """Return what has ended since the last call; see `Transfers.wait`."""
        deadline = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        while True:
            self._multi.perform()
            ended = self._take_ended()
            if ended or not self._under_way:
                return ended
            left = _LONGEST_WAIT_SECONDS if deadline is None else deadline - time.monotonic()
            if left <= 0:
                return ended
            timer = self._multi.timeout()
            wait = min(left, _LONGEST_WAIT_SECONDS, timer / 1000 if timer >= 0 else left)
            if self._multi.select(wait) <= 0:
                time.sleep(min(wait, 0.001))  # it returns at once while there is no connection yet

    def close(self) -> None:
        """Give up what is under way, and close the connections."""
        for handle in self._under_way:
            self._multi.remove_handle(handle)
            handle.close()
        for get in self._idle:
            get.handle.close()
        self._under_way, self._idle = {}, []
        self._multi.close()

    def _take_ended(self) -> list[tuple[Any, Answer | TransportError]]:
        ended: list[tuple[Any, Answer | TransportError]] = []
        queued = 1
        while queued:
            queued, well, badly = self._multi.info_read()
            for handle in well:
                get = self._release(handle)
                ended.append((get.key, get.answer()))
            for handle, code, message in badly:
                get = self._release(handle)
                ended.append((get.key, get.error(code, message)))
        return ended

    def _release(self, handle: Any) -> _Get:
        self._multi.remove_handle(handle)
        get = self._under_way.pop(handle)
        self._idle.append(get)
        return get


@functools.cache
def _trusted_certificates() -> tuple[int, str]:
    """Return libcurl's option for the certificates that Python trusts, the system's or else certifi's, and its value.

    The wheel of pycurl brings a libcurl that doesn't know where the system has them.
    """
    import ssl

    paths = ssl.get_default_verify_paths()
    if paths.cafile:
        return pycurl.CAINFO, paths.cafile
    if paths.capath and os.path.isdir(paths.capath) and os.listdir(paths.capath):
        return pycurl.CAPATH, paths.capath
    import certifi

    return pycurl.CAINFO, certifi.where()
