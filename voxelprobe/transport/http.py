"""Objects over HTTP(S), with the status codes that cloud-files hides.

cloud-files serves HTTP too, but takes a 403 for an absent object, waits without a timeout, and
repeats refusals for minutes (docs/design/002-sources.md). Its credentials are used here. A bucket is a web server with
names, signatures and refusals of its own: see s3.py and gcs.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple
from urllib.parse import quote

from voxelprobe.errors import AuthorizationError, TransportError, VoxelProbeError
from voxelprobe.transport import silence
from voxelprobe.transport.answers import byte_range, read_object
from voxelprobe.transport.protocol import Outcome, Request, StoredObject
from voxelprobe.transport.secrets import basic_authorization, find_secret, secret_places

if TYPE_CHECKING:
    from voxelprobe.transport.curl import Answer, Gets

# As it is stored: a store that undoes gzip on the way can't be checked against its checksum.
AS_STORED = "Accept-Encoding: gzip, br, zstd"


class Ask(NamedTuple):
    """A request as it is sent.

    Attributes
    ----------
    name
        The object, as errors name it.
    fields
        Lines of the head. They hold secrets: for libcurl only.
    sent
        Whose credentials are among them, "" for nobody's.
    """

    name: str
    url: str
    fields: Sequence[str]
    sent: str = ""


class HttpSource:
    """A folder on a web server.

    Parameters
    ----------
    verbatim
        See `curl.Session`.
    named_by_user
        False for an address from the metadata of somebody else: it gets no credentials, and isn't one of this
        computer's own.
    """

    def __init__(
        self, url: str, *, read_timeout_seconds: int | None = None, verbatim: bool = False, named_by_user: bool = True
    ) -> None:
        from voxelprobe.transport import curl

        self.url = url
        self._named_by_user = named_by_user
        timeout = read_timeout_seconds or silence.read_timeout_seconds()
        self._session = curl.Session(user_agent="voxelprobe", read_timeout_seconds=timeout, verbatim=verbatim,
                                     named_by_user=named_by_user)
        self._find_credentials()

    def fetch(self, path: str, start: int | None = None, end: int | None = None) -> StoredObject | None:
        """Return an object or a range of it; None if there is none."""
        request = Request(path, start, end)
        if request.is_empty:
            return StoredObject(b"", None)
        ask = self.ask(request)
        return self.read(self._session.get(ask.name, ask.url, ask.fields), request, ask)

    def open_transfers(self, *, limit: int) -> HttpTransfers:
        """Return what makes up to `limit` requests at once, in one thread."""
        return HttpTransfers(self, self._session.open_gets(limit))

    def close(self) -> None:
        """Close the connections."""
        self._session.close()

    def ask(self, request: Request) -> Ask:
        """Return what to send for a request."""
        url = f"{self.url}/{quote(request.path)}"
        if not request.is_ranged:
            return Ask(url, url, self._whole, self._sent)
        # A range of something compressed on the way is of no use.
        fields = [*self._credentials, "Accept-Encoding: identity", f"Range: {byte_range(request)}"]
        return Ask(url, url, fields, self._sent)

    def read(self, answer: Answer, request: Request, ask: Ask) -> StoredObject | None:
        """Return the object that the server answered with, or None for a 404; see `Source.fetch`."""
        if answer.status == 404:
            return None
        if answer.status in (401, 403):
            raise AuthorizationError(f"{ask.name}: the server answered {answer.status}; "
                                     f"{describe_credentials(ask.sent, secret_places('http'))} (user, password)")
        return read_object(answer, ask.name, request)

    def _find_credentials(self) -> None:
        secret = find_secret("http") if self._named_by_user else None
        self._credentials = [basic_authorization(secret)] if secret else []
        self._sent = secret.origin if secret else ""
        # One list for all requests: libcurl takes it apart once.
        self._whole = [*self._credentials, AS_STORED]


def describe_credentials(sent: str, places: Sequence[str]) -> str:
    """Return for a refusal whose credentials were sent, and where there might be some."""
    said = f"it was sent the credentials of {sent}" if sent else "it was sent no credentials"
    return f"{said}; they are looked for in {', '.join(places)}"


class HttpTransfers:
    """Requests of one `HttpSource` under way at once."""

    def __init__(self, source: HttpSource, gets: Gets) -> None:
        self._source = source
        self._gets = gets
        self._known: list[tuple[Any, Outcome]] = []

    def start(self, key: Any, request: Request) -> None:
        """Begin a request; see `Transfers.start`."""
        if request.is_empty:
            self._known.append((key, StoredObject(b"", None)))
            return
        try:
            ask = self._source.ask(request)
        except VoxelProbeError as refused:  # no token is to be had
            self._known.append((key, refused))
            return
        error = self._gets.start((key, request, ask), ask.name, ask.url, ask.fields)
        if error is not None:
            self._known.append((key, error))

    def wait(self, timeout_seconds: float | None) -> list[tuple[Any, Outcome]]:
        """Return what has ended since the last call; see `Transfers.wait`."""
        ended, self._known = self._known, []
        for (key, request, ask), answer in self._gets.wait(0.0 if ended else timeout_seconds):
            outcome: Outcome
            try:
                outcome = answer if isinstance(answer, TransportError) else self._source.read(answer, request, ask)
            except VoxelProbeError as error:
                outcome = error
            ended.append((key, outcome))
        return ended

    def close(self) -> None:
        """Give up what is under way."""
        self._gets.close()
