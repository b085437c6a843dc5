"""Local paths and cloud URLs, brought to one form."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from voxelprobe.errors import InputError


@dataclass(frozen=True, slots=True)
class Location:
    """Where a folder of objects or a file is.

    Attributes
    ----------
    url
        The cloudpath in one form: `scheme://…` without a trailing slash, local paths absolute.
    path
        The local path, for `file://`; else None.
    """

    url: str
    path: Path | None

    @property
    def name(self) -> str:
        """Return the last part of the path."""
        return self.url.rstrip("/").rsplit("/", 1)[-1]

    @property
    def parent(self) -> Location:
        """Return the folder that it is in."""
        return parse_location(self.url.rsplit("/", 1)[0] + "/")

    def child(self, name: str) -> Location:
        """Return a location below this one."""
        return parse_location(f"{self.url}/{name}")


def _check_no_secret(scheme: str, rest: str) -> None:
    """Raise if an address has a password or a token in it, without repeating it: addresses stand in logs and tables."""
    server = re.sub(r"^https?://", "", rest).partition("/")[0]
    if "@" in server:
        raise InputError(f"{scheme}://…@{server.rsplit('@', 1)[1]}/…: expected an address without a user name or "
                         "password; they belong in a file (see README.md, the command)")
    if scheme in ("http", "https") and "?" in rest:
        server = server.partition("?")[0]
        raise InputError(f"{scheme}://{server}/…?…: expected an address that ends before a `?`; a token belongs in a "
                         "file (see README.md, the command)")


def parse_location(text: str | os.PathLike[str]) -> Location:
    """Return the location that a local path or a cloud URL names."""
    text = os.fspath(text).strip()
    scheme, mark, rest = text.partition("://")
    if not mark:
        scheme, rest = "file", text
    scheme = scheme.lower()
    if not rest:
        raise InputError(f"{text!r}: expected a path or a URL, found no path")
    if scheme != "file":
        _check_no_secret(scheme, rest)
        return Location(f"{scheme}://{rest.rstrip('/')}", None)
    path = Path(os.path.abspath(os.path.expanduser(rest)))
    return Location(f"file://{path}", path)
