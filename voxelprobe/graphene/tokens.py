"""The token that a graph server wants, from CloudVolume's files in CloudVolume's order.

Source: `cave_credentials` and `secretpath` in cloudvolume/secrets.py. Each file name is looked for in
every folder before the next name is.
"""

from __future__ import annotations

import os
import re
from typing import NoReturn

from voxelprobe.errors import AuthorizationError
from voxelprobe.transport.secrets import read_secret_file


class Token:
    """A secret that shows itself only when asked to. Not a dataclass: `asdict` would show it.

    Attributes
    ----------
    source
        The file that it is from.
    """

    __slots__ = ("_value", "source")

    def __init__(self, value: str, source: str) -> None:
        self._value = value
        self.source = source

    def reveal(self) -> str:
        """Return the secret, for the header of a request and nothing else."""
        return self._value

    def __repr__(self) -> str:
        return f"Token(from {self.source})"

    def __reduce__(self) -> NoReturn:
        # A pickle would carry the secret to another process's files; where it is needed it can be read.
        raise TypeError("a token is not pickled: call find_token where it is used")


def token_places(host: str) -> list[str]:
    """Return the files that are looked for, first first.

    Parameters
    ----------
    host
        The server's host, with its port if the address has one.
    """
    home = os.path.expanduser("~")
    folders = [os.environ.get("CLOUD_VOLUME_DIR") or os.path.join(home, ".cloudvolume"),
               os.path.join(home, ".neuroglancer"), "/"]
    names = [f"{host}-cave-secret.json", "cave-secret.json", "chunkedgraph-secret.json"]
    return [os.path.join(folder, "secrets", name) for name in names for folder in folders]


def find_token(host: str) -> Token | None:
    """Return the token for a server from the first file that exists; None if there is none.

    Raises
    ------
    AuthorizationError
        If the file can't be read or holds no token. What it holds is not in the message.
    """
    for path in token_places(host):
        if os.path.exists(path):
            value, complaint = _read(path)
            if value is None:
                # Raised here, not where it failed: a JSON error carries the text that it complains of.
                raise AuthorizationError(f"{path}: {complaint}")
            return Token(value, path)
    return None


def _read(path: str) -> tuple[str | None, str]:
    content, complaint = read_secret_file(path)
    if complaint:
        return None, complaint
    # CloudVolume takes a bare JSON string too.
    value = content.get("token") if isinstance(content, dict) else content
    if not isinstance(value, str) or not value:
        return None, 'expected {"token": "…"}, found no token in it'
    # What a header can carry; a line end in it would put the token into http.client's complaint.
    if not re.fullmatch(r"[\x21-\x7e]+", value):
        return None, "expected a token of letters and digits, found other characters in it"
    return value, ""
