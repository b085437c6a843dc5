"""Objects in Google Cloud Storage: a web server whose requests carry a token.

Source: https://cloud.google.com/storage/docs/json_api/v1/objects/get. The JSON interface and not the XML one
(`storage.googleapis.com/BUCKET/OBJECT`): Google's own client, which cloud-files writes with, and TensorStore use it,
emulators are emulators of it, and a name with `//` or `..` in it is one part of its path.

Without a secret in cloud-files' places a request goes without a token, as a public bucket wants it. Only when that is
refused are Google's default credentials looked for, which may take seconds where there are none.
"""

from __future__ import annotations

import functools
import os
import re
from typing import TYPE_CHECKING
from urllib.parse import quote

from voxelprobe.errors import AuthorizationError, InputError, TransportError
from voxelprobe.transport.addresses import Address
from voxelprobe.transport.answers import byte_range, read_object
from voxelprobe.transport.http import AS_STORED, Ask, HttpSource, describe_credentials
from voxelprobe.transport.protocol import Request, RetryableError, StoredObject
from voxelprobe.transport.secrets import find_secret, secret_places

if TYPE_CHECKING:
    from voxelprobe.transport.curl import Answer
    from voxelprobe.transport.google_tokens import GoogleToken

# Buckets that refused a request without a token, for the sources of this process that open them later.
_refuse_anonymous: set[tuple[str, str]] = set()


class GcsSource(HttpSource):
    """A folder in a bucket."""

    def __init__(self, url: str, address: Address, *, read_timeout_seconds: int | None = None) -> None:
        self._address = address
        self._server = _server()
        self._bucket = (self._server, address.bucket)
        bucket, folder = address.bucket, f"{address.folder}/" if address.folder else ""
        # A slash is part of the object's name here, not of the path.
        self._objects = f"{self._server}/download/storage/v1/b/{quote(bucket, safe='')}/o/{quote(folder, safe='')}"
        super().__init__(url, read_timeout_seconds=read_timeout_seconds, verbatim=True)

    def ask(self, request: Request) -> Ask:
        """Return what to send for a request: with a token, if there is one."""
        url = f"{self._objects}{quote(request.path, safe='')}?alt=media"
        # Also for a range: of an object that is stored as gzip, others than these are of what the store made of it.
        fields = [AS_STORED]
        if request.is_ranged:
            fields.append(f"Range: {byte_range(request)}")
        token = self._token or self._default_token()
        if token is None:
            return Ask(f"{self.url}/{request.path}", url, fields)
        return Ask(f"{self.url}/{request.path}", url, [token.authorization(), *fields], token.origin)

    def read(self, answer: Answer, request: Request, ask: Ask) -> StoredObject | None:
        """Return the object that the store answered with, or None for a name that it doesn't have."""
        name = ask.name
        if answer.status == 404:
            if b"bucket does not exist" in answer.content[:1000]:
                raise TransportError(f"{name}: there is no bucket {self._address.bucket} (404)")
            return None
        if answer.status in (401, 403):
            if self._may_ask_otherwise(answer.status, ask):
                raise RetryableError(f"{name}: refused ({answer.status}); trying other credentials", 0.0)
            raise AuthorizationError(self._refusal(name, answer.status, ask))
        return read_object(answer, name, request)

    def _find_credentials(self) -> None:
        self._token: GoogleToken | None = None
        secret = find_secret("google", self._address.bucket)
        if secret is not None:
            from voxelprobe.transport.google_tokens import token_of_secret

            self._token = token_of_secret(secret)

    def _default_token(self) -> GoogleToken | None:
        # An emulator wants none, and shall get none: google's client does the same.
        if self._bucket not in _refuse_anonymous or "STORAGE_EMULATOR_HOST" in os.environ:
            return None
        return _find_default_token(os.getpid())

    def _may_ask_otherwise(self, status: int, ask: Ask) -> bool:
        """Return whether there is a token that wasn't sent yet, having made it the next to send."""
        if not ask.sent:
            _refuse_anonymous.add(self._bucket)
            return (self._token or self._default_token()) is not None
        token = self._token or self._default_token()
        return status == 401 and token is not None and token.renew_unless(ask.fields[0])

    def _refusal(self, name: str, status: int, ask: Ask) -> str:
        places = [*secret_places("google", self._address.bucket),
                  "Google's default credentials (GOOGLE_APPLICATION_CREDENTIALS, gcloud, the machine's)"]
        return (f"{name}: Google refused bucket {self._address.bucket}'s object ({status}): either it may not be read, "
                "or there is none and the bucket may not be listed, for which the store answers the same; "
                f"{describe_credentials(ask.sent, places)}. If the objects of this folder may be read, allow "
                "storage.objects.list too, so that an absent chunk can be told from a refused one")


def _server() -> str:
    """Return the server that google's client, and with it cloud-files, would ask."""
    for name in ("STORAGE_EMULATOR_HOST", "API_ENDPOINT_OVERRIDE"):
        if server := os.environ.get(name):
            if not re.fullmatch(r"https?://[^/?#@]+/?", server):
                raise InputError(f"{name}: expected http://SERVER:PORT, found {server}")
            return server.rstrip("/")
    return "https://storage.googleapis.com"


@functools.cache
def _find_default_token(process: int) -> GoogleToken | None:
    from voxelprobe.transport.google_tokens import default_token

    return default_token()
