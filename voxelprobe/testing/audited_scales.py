"""Scales of volumes in a folder, as the audit reads them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from voxelprobe.audit.places import AuditableScale
from voxelprobe.audit.volumes import read_any_scale


def open_scale(kind: str, folder: Path, mip: int = 0, unit: str | None = None) -> AuditableScale:
    """Return the audit's own reading of a scale of the documents in a folder.

    Parameters
    ----------
    kind
        As a cloudpath has it: `precomputed`, `zarr`, `zarr2`, `zarr3`, `n5`.
    mip, unit
        Its index, and the unit of the points (None for its voxels).

    Raises
    ------
    UnsupportedError
        If the audit doesn't know what the documents say.
    """
    def read_json(name: str) -> Any:
        path = folder / name
        return json.loads(path.read_bytes()) if path.exists() else None

    return read_any_scale(kind, read_json, mip, unit, "here")
