"""Tokens for Google Cloud Storage, made and renewed by google-auth.

Its errors may carry what a token server answered, so they are told here by their kind alone.
"""

from __future__ import annotations

import os
import re
import time
from typing import Any

from voxelprobe.errors import AuthorizationError, TransportError
from voxelprobe.transport.protocol import RetryableError
from voxelprobe.transport.secrets import Secret

# Enough to read what the account may read.
_SCOPES = ("https://www.googleapis.com/auth/devstorage.read_only",)
# Refused sooner than that, a new token won't be taken either.
_NEW_SECONDS = 60


class GoogleToken:
    """A token that is renewed shortly before it ends.

    Attributes
    ----------
    origin
        The file, or the place of Google's, that it is made from.
    """

    def __init__(self, credentials: Any, origin: str) -> None:
        self.origin = origin
        self._credentials = credentials
        self._made = 0.0

    def authorization(self) -> str:
        """Return the header field with the token.

        Raises
        ------
        AuthorizationError
            If the token server refuses to make one.
        RetryableError
            If it doesn't answer.
        """
        if not self._credentials.valid:  # false some minutes before it ends
            error = self._renew()
            if error is not None:
                raise error
        return f"Authorization: Bearer {self._credentials.token}"

    def renew_unless(self, sent: str) -> bool:
        """Return whether there will be another token than the one that was sent and refused."""
        if sent != f"Authorization: Bearer {self._credentials.token}":
            return True
        if time.monotonic() - self._made < _NEW_SECONDS:
            return False
        self._credentials.token = None
        return True

    def __repr__(self) -> str:
        return f"GoogleToken(from {self.origin})"

    def _renew(self) -> TransportError | None:
        """Make a token, or return what went wrong, without what was answered."""
        import google.auth.exceptions
        import google.auth.transport.requests
        import requests

        try:
            with requests.Session() as session:
                self._credentials.refresh(google.auth.transport.requests.Request(session))
        except google.auth.exceptions.TransportError:
            return RetryableError(f"{self.origin}: the server that makes tokens doesn't answer")
        except google.auth.exceptions.GoogleAuthError as error:
            if error.retryable:
                return RetryableError(f"{self.origin}: the server that makes tokens can't make one now")
            reason = re.match(r"\w{1,60}", str(error.args[0])) if error.args else None
            return AuthorizationError(f"{self.origin}: no token for it: {reason[0] if reason else 'refused'}")
        except Exception as error:  # a key that can't sign, an answer that is no JSON
            return AuthorizationError(f"{self.origin}: no token for it: {type(error).__name__}")
        self._made = time.monotonic()
        return None


# By process and file, with what it held: a token is made once for all sources of a process.
_tokens: dict[tuple[int, str], tuple[dict[str, Any], GoogleToken]] = {}


def token_of_secret(secret: Secret) -> GoogleToken:
    """Return the token that a `google-secret.json` stands for: of a service account or an authorized user.

    Raises
    ------
    AuthorizationError
        If it is something else.
    """
    values, place = dict(secret.reveal()), (os.getpid(), secret.origin)
    if place in _tokens and _tokens[place][0] == values:
        return _tokens[place][1]
    kind = values.get("type")
    if kind not in ("service_account", "authorized_user"):
        raise AuthorizationError(f"{secret.origin}: expected a `type` of service_account or authorized_user")
    credentials, complaint = _parse(kind, values)
    if credentials is None:
        # Raised here, where nothing refers to the content any longer.
        raise AuthorizationError(f"{secret.origin}: expected a {kind} of Google's: {complaint}")
    token = GoogleToken(credentials, secret.origin)
    _tokens[place] = values, token
    return token


def default_token() -> GoogleToken | None:
    """Return the token of Google's default credentials, or None if there are none."""
    import google.auth
    import google.auth.exceptions

    try:
        credentials, _ = google.auth.default(scopes=_SCOPES)
    except google.auth.exceptions.GoogleAuthError:
        return None
    return GoogleToken(credentials, f"Google's defaults ({type(credentials).__module__.rpartition('.')[2]})")


def _parse(kind: str, values: dict[str, Any]) -> tuple[Any, str]:
    import google.oauth2.credentials
    import google.oauth2.service_account

    try:
        if kind == "service_account":
            return google.oauth2.service_account.Credentials.from_service_account_info(values, scopes=_SCOPES), ""
        return google.oauth2.credentials.Credentials.from_authorized_user_info(values, scopes=_SCOPES), ""
    except Exception as error:
        absent = [name for name in ("private_key", "client_email", "token_uri", "client_id", "client_secret",
                                    "refresh_token") if name in str(error) and name not in values]
        return None, f"it lacks {', '.join(absent)}" if absent else f"its key is none ({type(error).__name__})"
