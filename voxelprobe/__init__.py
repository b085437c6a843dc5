"""Labels of points from Neuroglancer Precomputed volumes.

`sample_points` is the engine for notebooks; the pipeline is `luigi --module pipeline SamplePoints`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from voxelprobe.errors import (
    AuthorizationError,
    CorruptDataError,
    InputError,
    StaleRunError,
    TransportError,
    UnsupportedError,
    VoxelProbeError,
)

if TYPE_CHECKING:
    from voxelprobe.sampling import sample_points

__version__ = "0.1.0"
__all__ = [
    "AuthorizationError",
    "CorruptDataError",
    "InputError",
    "StaleRunError",
    "TransportError",
    "UnsupportedError",
    "VoxelProbeError",
    "__version__",
    "sample_points",
]


def __getattr__(name: str) -> Any:
    # Numpy and the codecs are loaded by who samples, not by every process that imports an error.
    if name == "sample_points":
        from voxelprobe.sampling import sample_points

        return sample_points
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
