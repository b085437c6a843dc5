"""Local paths and cloud URLs, brought to one form."""

from __future__ import annotations

import os
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
        return Location(f"{scheme}://{rest.rstrip('/')}", None)
    path = Path(os.path.abspath(os.path.expanduser(rest)))
    return Location(f"file://{path}", path)
