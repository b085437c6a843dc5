"""Cloudpaths of volumes as CloudVolume takes them."""

from __future__ import annotations

import re
from urllib.parse import unquote

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.locations import Location, parse_location


def is_graphene(cloudpath: str) -> bool:
    """Return whether a cloudpath names a table of a graph server."""
    return re.match(r"\s*graphene://", cloudpath, re.IGNORECASE) is not None


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
    if is_graphene(cloudpath):
        raise UnsupportedError(f"{text}: expected the volume itself, found a graph server's table")
    cloudpath = re.sub(r"^(precomputed://)+", "", cloudpath)
    if match := re.match(r"(zarr2?|zarr3|n5|boss|brain)://", cloudpath):
        raise UnsupportedError(f"{text}: {match[1]} volumes can't be read; expected a Neuroglancer Precomputed volume")
    cloudpath = re.sub(r"\|neuroglancer-precomputed:/?$", "", unquote(cloudpath) if "%7C" in cloudpath else cloudpath)
    cloudpath = re.sub(r"/info$", "", cloudpath.rstrip("/"))
    if not cloudpath:
        raise InputError(f"volume {text!r}: expected a cloudpath as in gs://bucket/path or file:///data/seg")
    return parse_location(cloudpath)
