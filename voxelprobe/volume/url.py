"""Cloudpaths as CloudVolume takes them, brought to one form."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from voxelprobe.errors import InputError, UnsupportedError


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


def parse_cloudpath(text: str) -> Location:
    """Return where a volume is, from a cloudpath as CloudVolume takes it.

    Raises
    ------
    InputError
        If it isn't a cloudpath.
    UnsupportedError
        If it names a kind of volume that can't be read here.
    """
    cloudpath = text.strip()
    if re.match(r"graphene://", cloudpath):
        raise UnsupportedError(
            f"{text}: graphene volumes need the resolve stage, which this version does not have; "
            "the supervoxels can be sampled from the volume that the graph's info names as data_dir"
        )
    cloudpath = re.sub(r"^(precomputed://)+", "", cloudpath)
    if match := re.match(r"(zarr2?|zarr3|n5|boss|brain)://", cloudpath):
        raise UnsupportedError(f"{text}: {match[1]} volumes can't be read; expected a Neuroglancer Precomputed volume")
    cloudpath = re.sub(r"\|neuroglancer-precomputed:/?$", "", unquote(cloudpath) if "%7C" in cloudpath else cloudpath)
    cloudpath = re.sub(r"/info$", "", cloudpath.rstrip("/"))
    if not cloudpath:
        raise InputError(f"volume {text!r}: expected a cloudpath as in gs://bucket/path or file:///data/seg")
    return parse_location(cloudpath)
