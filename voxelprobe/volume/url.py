"""Cloudpaths of volumes as CloudVolume takes them."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.locations import Location, parse_location
from voxelprobe.volume.fields import parse_path
from voxelprobe.volume.formats import FORMATS

# Files that people name where the folder is meant.
_ZARR = r"(zarr\.json|\.zarray|\.zattrs|\.zgroup)"
_METADATA = {"precomputed": "info", "zarr": _ZARR, "zarr2": _ZARR, "zarr3": _ZARR, "n5": r"attributes\.json"}


def is_graphene(cloudpath: str) -> bool:
    """Return whether a cloudpath names a table of a graph server."""
    return re.match(r"\s*graphene://", cloudpath, re.IGNORECASE) is not None


@dataclass(frozen=True, slots=True)
class Cloudpath:
    """A kind of volume, one of `FORMATS`, and the folder that it is in."""

    kind: str
    location: Location

    @property
    def url(self) -> str:
        """Return the cloudpath in one form."""
        return self.location.url if self.kind == "precomputed" else f"{self.kind}://{self.location.url}"


def parse_cloudpath(text: str) -> Cloudpath:
    """Return what volume a cloudpath names, as CloudVolume or Neuroglancer write it.

    Raises
    ------
    InputError
        If it isn't a cloudpath.
    UnsupportedError
        If it names a kind of volume that can't be read here.
    """
    cloudpath = text.strip()
    if is_graphene(cloudpath):
        raise UnsupportedError(f"{text}: expected the volume itself, found a graph server's table")
    cloudpath = unquote(cloudpath) if "%7C" in cloudpath else cloudpath
    kinds = []
    while match := re.match(r"(precomputed|zarr[23]?|n5|boss|brain)://", cloudpath):
        kinds.append(match[1])
        cloudpath = cloudpath[match.end():]
    # Neuroglancer's newer form, with a path inside or without: gs://bucket/path/|zarr3:s0/
    if match := re.search(r"/*\|(neuroglancer-precomputed|[a-z0-9]+):([^|]*)$", cloudpath):
        kinds.append(match[1].removeprefix("neuroglancer-"))
        inside = parse_path(match[2].lstrip("/"), f"volume {text!r}")
        cloudpath = cloudpath[:match.start()] + ("/" + inside if inside else "")
    unknown = sorted(set(kinds) - set(FORMATS))
    if unknown or len(set(kinds)) > 1:
        raise UnsupportedError(f"{text}: {' and '.join(unknown or kinds)} volumes can't be read; expected one of "
                               f"{', '.join(FORMATS)}")
    kind = kinds[0] if kinds else "precomputed"
    cloudpath = cloudpath.rstrip("/")
    cloudpath = re.sub(f"/{_METADATA[kind]}$", "", cloudpath)
    if not cloudpath:
        raise InputError(f"volume {text!r}: expected a cloudpath as in gs://bucket/path or file:///data/seg")
    return Cloudpath(kind, parse_location(cloudpath))
