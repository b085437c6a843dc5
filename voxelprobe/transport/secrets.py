"""Where credentials are: the files and variables that cloud-files looks at, in its order.

Source: `secretpath` and what calls it in cloudfiles/secrets.py, 6.4; a test holds this against it. Importing that takes
half a second, mostly for Google's client, where all that is needed is to read a small file.

What a file holds never gets into a message or a `repr`: errors are raised where nothing refers to it any longer.
"""

from __future__ import annotations

import base64
import json
import os
import re
from collections.abc import Mapping
from typing import Any, NoReturn

from voxelprobe.errors import AuthorizationError


class Secret:
    """What a file or the environment says, shown only when asked for.

    Attributes
    ----------
    origin
        The file, or the variables, that it is from.
    """

    __slots__ = ("_values", "origin")

    def __init__(self, values: Mapping[str, Any], origin: str) -> None:
        self._values = values
        self.origin = origin

    def reveal(self) -> Mapping[str, Any]:
        """Return the secret, for signing a request and nothing else."""
        return self._values

    def text(self, name: str) -> str:
        """Return a value that has to be there.

        Raises
        ------
        AuthorizationError
            If it isn't, or isn't a word.
        """
        value = self._values.get(name)
        if not isinstance(value, str) or not value:
            raise AuthorizationError(f"{self.origin}: expected `{name}` as text, found none")
        # What a header can carry.
        if not re.fullmatch(r"[\x21-\x7e]+", value):
            raise AuthorizationError(f"{self.origin}: expected `{name}` of letters and digits, found other characters")
        return value

    def __repr__(self) -> str:
        return f"Secret(from {self.origin})"

    def __reduce__(self) -> NoReturn:
        # A pickle would carry the secret away; where it is needed it can be read.
        raise TypeError("a secret is not pickled: it is read where it is used")


def secret_folders() -> list[str]:
    """Return the folders that are looked in, first first."""
    volume = os.environ.get("CLOUD_VOLUME_DIR") or os.path.expanduser("~/.cloudvolume")
    files = os.environ.get("CLOUD_FILES_DIR") or os.path.expanduser("~/.cloudfiles")
    return [os.path.join(volume, "secrets"), "/", os.path.join(files, "secrets")]


def secret_places(kind: str, bucket: str = "") -> list[str]:
    """Return the files that may hold a secret, first first: each name in every folder before the next name.

    Parameters
    ----------
    kind
        What the file is named after: `aws`, an alias as in `matrix`, `google`, `http`.
    """
    names = [f"{bucket}-{kind}-secret.json"] if bucket else []
    return [os.path.join(folder, name) for name in (*names, f"{kind}-secret.json") for folder in secret_folders()]


def find_secret(kind: str, bucket: str = "") -> Secret | None:
    """Return the first file of `secret_places` that there is, or None.

    Raises
    ------
    AuthorizationError
        If it can't be read, or isn't a JSON object.
    """
    path = next(filter(os.path.exists, secret_places(kind, bucket)), None)
    if path is None:
        return None
    values, complaint = read_secret_file(path)
    if not isinstance(values, dict):
        complaint = complaint or "expected a JSON object, found another kind of JSON"
        # Raised here, not where it failed: a JSON error carries the text that it complains of.
        raise AuthorizationError(f"{path}: {complaint}")
    return Secret(values, path)


def find_keys(bucket: str, service: str = "aws") -> tuple[Secret | None, str]:
    """Return the access keys for a bucket of S3, None if there are none, and the region to start with.

    Parameters
    ----------
    service
        `aws`, or the alias that the bucket was named by.

    Returns
    -------
    The keys, with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY and perhaps AWS_SESSION_TOKEN, and the region.

    Raises
    ------
    AuthorizationError
        If a file can't be understood, or has one key without the other.
    """
    secret = find_secret(service, bucket)
    values = dict(secret.reveal()) if secret else {}
    if secret is None or not values:
        both = {name: os.environ[name] for name in _KEYS if name in os.environ}
        if len(both) == len(_KEYS):
            values = both | {"AWS_SESSION_TOKEN": os.environ.get("AWS_SESSION_TOKEN", "")}
        if "AWS_DEFAULT_REGION" in os.environ:
            values["AWS_DEFAULT_REGION"] = os.environ["AWS_DEFAULT_REGION"]
        secret = Secret(values, f"the environment's {' and '.join(_KEYS)}")
    region = values.get("AWS_DEFAULT_REGION") or "us-east-1"
    if not isinstance(region, str) or not REGION.fullmatch(region):
        raise AuthorizationError(f"{secret.origin}: expected AWS_DEFAULT_REGION as in us-east-1, found something else")
    if not any(values.get(name) for name in _KEYS):
        return None, region
    for name in _KEYS:
        secret.text(name)
    if values.get("AWS_SESSION_TOKEN"):
        secret.text("AWS_SESSION_TOKEN")
    return secret, region


# Also what an answer may name: it becomes part of a host's name.
REGION = re.compile(r"[a-z0-9-]{1,40}")
_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY")


def basic_authorization(secret: Secret) -> str:
    """Return the header field for the user and password of a secret of `http`."""
    values = secret.reveal()
    found = [name for name in ("user", "password") if name in values]
    if len(found) < 2:
        raise AuthorizationError(f"{secret.origin}: expected `user` and `password`, found {found}")
    # UTF-8, as RFC 7617 has it.
    words = f"{values['user']}:{values['password']}".encode()
    return f"Authorization: Basic {base64.b64encode(words).decode()}"


def read_secret_file(path: str) -> tuple[Any, str]:
    """Return the JSON of a secret's file, or None and what is wrong with it, without a word of what it holds."""
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file), ""
    except OSError as error:
        return None, f"can't be read: {error.strerror}"
    except (ValueError, RecursionError):
        return None, "expected JSON, found something else"
