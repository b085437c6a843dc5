"""Zarr volumes of either version, by what is there."""

from __future__ import annotations

from voxelprobe.errors import InputError
from voxelprobe.volume import zarr2, zarr3
from voxelprobe.volume.scale import ReadJson, VolumeInfo


def read_info(read_json: ReadJson, where: str) -> VolumeInfo:
    """Return the volume whose documents `read_json` gives by name: v3 if there is a `zarr.json`, else v2.

    Raises
    ------
    InputError, UnsupportedError
        If there is neither, or as the modules of the versions do.
    """
    if read_json("zarr.json") is not None:
        return zarr3.read_info(read_json, where)
    if read_json(".zattrs") is None and read_json(".zarray") is None:
        raise InputError(f"no volume at {where}: expected a file named zarr.json, .zattrs or .zarray there, found none")
    return zarr2.read_info(read_json, where)
