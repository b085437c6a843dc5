"""Point readers: one module an encoding, each a `PointReader` (see `protocol`).

Adding an encoding is one module here and one line in `ENCODINGS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from typing import cast

from voxelprobe.codecs.protocol import PointReader
from voxelprobe.errors import UnsupportedError

# The `encoding` of an `info` -> the module that reads it.
ENCODINGS: Mapping[str, str] = {
    "raw": "raw",
    "compressed_segmentation": "compressed_segmentation",
    "crackle": "crackle",
    "compresso": "compresso",
}
# Import names that differ from the name on PyPI.
_PYPI_NAMES = {"crackle": "crackle-codec", "google_crc32c": "google-crc32c"}


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
        If there is no reader for `encoding`, or the package it needs is not installed.
    """
    name = ENCODINGS.get(encoding)
    if name is None:
        known = ", ".join(sorted(ENCODINGS))
        raise UnsupportedError(f"{where}: encoding {encoding!r} can't be read; the known ones are {known}")
    try:
        module = importlib.import_module(f"{__name__}.{name}")
    except ImportError as error:
        missing = (error.name or "").partition(".")[0]
        if missing in ("", __name__.partition(".")[0]):
            raise  # a fault of ours, not a package that the user can install
        package = _PYPI_NAMES.get(missing, missing)
        raise UnsupportedError(
            f"{where}: encoding {encoding!r} needs a package that is not installed: pip install {package}"
        ) from error
    return cast(PointReader, module)
