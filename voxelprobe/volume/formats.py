"""The kinds of volumes: a module each, that makes scales out of their metadata.

Adding one is such a module, with a function `read_info(read_json, where)`, and one line in `FORMATS`. How its chunks
are encoded is for a point reader.
"""

from __future__ import annotations

import functools
import importlib
from collections.abc import Mapping

from voxelprobe.volume.scale import ReadJson, VolumeInfo

# The format of a cloudpath, as in FORMAT://gs://bucket/path -> its module here.
FORMATS: Mapping[str, str] = {
    "precomputed": "info",
    "zarr": "zarr",
    "zarr2": "zarr2",
    "zarr3": "zarr3",
    "n5": "n5",
}


def read_volume(kind: str, read_json: ReadJson, where: str) -> VolumeInfo:
    """Return what the metadata of a volume say.

    Parameters
    ----------
    kind
        One of `FORMATS`.
    read_json
        Gives a document by its name below the volume's folder, parsed; None where there is none.
    where
        The volume's cloudpath, for messages.

    Raises
    ------
    InputError
        If there is no such volume, or its metadata contradict themselves.
    UnsupportedError
        If it is one that can't be read here.
    """
    module = importlib.import_module(f"voxelprobe.volume.{FORMATS[kind]}")
    info: VolumeInfo = module.read_info(functools.cache(read_json), where)
    return info
