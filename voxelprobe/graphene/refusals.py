"""What a graph server's refusals mean: the status, its own word for it, and where a token is looked for."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit

from voxelprobe.errors import AuthorizationError, InputError, TransportError
from voxelprobe.graphene.tokens import Token, token_places
from voxelprobe.graphene.url import GrapheneUrl
from voxelprobe.transport.protocol import RetryableError


class TooLargeError(RetryableError):
    """The server could not manage that many ids at once: fewer of them may pass."""


class SilentError(TooLargeError):
    """The server did not answer in time: too many ids, or it is hung."""


class Refusals:
    """The errors for a table's answers, none of which tells the token."""

    def __init__(self, url: GrapheneUrl, token: Token | None) -> None:
        self._url = url
        self._token = token

    def error(
        self, url: str, status: int, headers: Mapping[str, str], content: bytes
    ) -> TransportError | InputError:
        """Return the error for an answer of a status other than 200."""
        reason = f"{status} {self._reason(content)}".rstrip()
        if status in (301, 302, 303, 307, 308):
            leads = f"{status}, which leads to {self._place(headers.get('Location', ''))}"
            if status in (301, 308):
                return TransportError(f"{url}: the server answered {leads}; redirects are not followed")
            return AuthorizationError(f"{url}: the server answered {leads} to log in; {self._token_advice()}")
        if status in (401, 403):
            return AuthorizationError(f"{url}: the server answered {reason}; {self._token_advice()}")
        if status in (400, 404):
            return InputError(f"{url}: the server answered {reason}; is {self._url.table!r} the table's name?")
        wait = _retry_after(headers.get("Retry-After", ""))
        if status in (413, 500, 504):
            return TooLargeError(f"{url}: the server answered {reason}", wait)
        if status in (408, 425, 429) or status >= 500:
            return RetryableError(f"{url}: the server answered {reason}", wait)
        return TransportError(f"{url}: expected an answer of 200, found {reason}")

    def _token_advice(self) -> str:
        places = ", ".join(token_places(self._url.host))
        if self._token is not None:
            return f"the token was that of {self._token.source} (looked for, in this order: {places})"
        return f'no token was sent, since none of these has one: {places} (expected {{"token": "…"}})'

    def _place(self, location: str) -> str:
        """Return the host that a redirect leads to."""
        try:
            host = urlsplit(location).netloc
        except ValueError:
            host = ""
        if self._token is not None and self._token.reveal() in host:
            host = ""
        return host[:100] or "another page"

    def _reason(self, content: bytes) -> str:
        """Return the server's own word for a failure, short and without the token, or nothing."""
        try:
            answer = json.loads(content)
        except (ValueError, RecursionError):
            return ""
        words = [answer.get(name) for name in ("error", "message")] if isinstance(answer, dict) else []
        text = "".join(letter for letter in " ".join(w for w in words if isinstance(w, str)) if letter.isprintable())
        return "" if self._token is not None and self._token.reveal() in text else text[:160]


def _retry_after(value: str) -> float | None:
    if re.fullmatch(r"[0-9]{1,9}(\.[0-9]+)?", value.strip()):
        return float(value)
    try:
        return max(0.0, parsedate_to_datetime(value).timestamp() - time.time())
    except (TypeError, ValueError, OverflowError):
        return None
