"""Point readers: one module an encoding, each a `PointReader` (see `protocol`).

Adding an encoding is one module here and one line in `ENCODINGS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from voxelprobe.codecs.protocol import PointReader
from voxelprobe.errors import UnsupportedError

# The `encoding` of an `info`, which is also the name of its module here -> what to install for it, None if nothing.
ENCODINGS: Mapping[str, str | None] = {
    "raw": None,
    "compressed_segmentation": None,
    "crackle": "crackle-codec",
    "compresso": "compresso",
    "jpeg": "simplejpeg",
    "jxl": "imagecodecs",
    "png": "pyspng-seunglab",
    "fpzip": "fpzip",
    "kempressed": "fpzip",
    "zfpc": "zfpc",
    "zarr": "numcodecs",
    "n5": "numcodecs",
}


def load_reader(encoding: str, where: str) -> PointReader:
    """Return the module that reads chunks of an encoding.

    Parameters
    ----------
    encoding
        As in the volume's `info`.
    where
        The volume's cloudpath, for messages.

    Raises
    ------
    UnsupportedError
        If there is no reader for `encoding`, or the package it needs is not installed or can't be loaded.
    """
    if encoding not in ENCODINGS:
        known = ", ".join(sorted(ENCODINGS))
        raise UnsupportedError(f"{where}: encoding {encoding!r} can't be read; the known ones are {known}")
    try:
        module = importlib.import_module(f"{__name__}.{encoding}")
    except ImportError as error:
        if (error.name or "").partition(".")[0] in ("", __name__.partition(".")[0]):
            raise  # a fault of ours, not a package that the user can install
        if not isinstance(error, ModuleNotFoundError):
            raise UnsupportedError(f"{where}: encoding {encoding!r} needs {ENCODINGS[encoding]}, which is installed "
                                   f"but can't be loaded: {error}") from error
        raise UnsupportedError(
            f"{where}: encoding {encoding!r} needs a package that is not installed: pip install {ENCODINGS[encoding]}"
        ) from error
    return cast(PointReader, module)
