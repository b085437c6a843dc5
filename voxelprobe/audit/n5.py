"""Data sets and groups of n5 as their attributes describe them.

Formats: https://github.com/saalfeldlab/n5, https://github.com/saalfeldlab/n5-viewer (sizes and factors of scales) and
https://github.com/janelia-cosem (`transform`).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from voxelprobe.audit.array_codecs import Step
from voxelprobe.audit.arrays import StoredArray
from voxelprobe.audit.multiscales import Level, Vector, clean_path, exact, parse_unit
from voxelprobe.audit.zarr_metadata import ReadJson, name_axes, number_type, sizes
from voxelprobe.errors import UnsupportedError

_TYPES = {f"{kind}{bits}" for kind in ("uint", "int") for bits in (8, 16, 32, 64)} | {"float32", "float64"}
_COMPRESSIONS: Mapping[str, Step] = {
    "gzip": ("gzip", {}), "bzip2": ("bz2", {}), "xz": ("lzma", {}), "blosc": ("blosc", {}), "zstd": ("zstd", {}),
}


def read_n5(read_json: ReadJson, mip: int) -> tuple[list[Level], Callable[[str], StoredArray]]:
    """Return the levels of a volume up to `mip`, and what reads the array at a level's path."""
    root = read_json("attributes.json") or {}

    def attributes(path: str) -> Any:
        return read_json(f"{path}/attributes.json" if path else "attributes.json")

    factors = root.get("scales")
    if factors is None:
        factors = root.get("downsamplingFactors")
    transforms: list[Any] = []
    if "dimensions" in root:
        paths, factors = [""], []
    elif "multiscales" in root:
        datasets = root["multiscales"][0]["datasets"]
        paths = [clean_path(dataset["path"]) for dataset in datasets][: mip + 1]
        transforms = [dataset.get("transform") for dataset in datasets][: mip + 1]
    else:
        paths = [f"s{level}" for level in range(mip + 1)]
    sets = [attributes(path) for path in paths]
    axes = [_axes_of(own, root) for own in sets]
    transforms = [given if given is not None else own.get("transform")
                  for given, own in zip(transforms or [None] * len(sets), sets, strict=True)]
    if all(transform is not None for transform in transforms):
        levels = [_transformed(path, names, transform)
                  for path, names, transform in zip(paths, axes, transforms, strict=True)]
    elif any(transform is not None for transform in transforms):
        raise UnsupportedError("transforms of some scales only")
    else:
        # No places: one corner for all, where voxel 0 begins.
        levels = [Level(path, names, size, _half(size))
                  for path, names, size in zip(paths, axes, _sizes_of(root, sets, axes, factors or []), strict=True)]
        first = levels[0]
        levels = [Level(level.path, level.axes, level.size, _minus(level.centre, first.centre)) for level in levels]
    return levels, lambda path: parse_dataset(attributes(path))


def parse_dataset(own: Mapping[str, Any]) -> StoredArray:
    """Return the array that the attributes of a data set describe."""
    shape, data_type = sizes(own["dimensions"]), own["dataType"].lower()
    if data_type not in _TYPES:
        raise UnsupportedError(f"dataType {data_type}")
    compression = own.get("compression")
    if compression is None:
        compression = {"type": own["compressionType"]}
    kind = compression["type"]
    steps: list[Step] = [("transpose", {"order": list(range(len(shape)))[::-1]}), ("bytes", {"endian": "big"})]
    if kind == "gzip" and compression.get("useZlib") is True:
        steps.append(("zlib", {}))
    elif kind != "raw":
        if kind not in _COMPRESSIONS:
            raise UnsupportedError(f"compression {kind}")
        steps.append(_COMPRESSIONS[kind])
        if kind == "blosc":
            steps[-1] = ("blosc", {"cname": compression.get("cname", "lz4")})
    return StoredArray(shape, sizes(own["blockSize"]), number_type(np.dtype(data_type)), tuple(steps), 0, "", "/",
                       has_header=True)


def _axes_of(own: Mapping[str, Any], root: Mapping[str, Any]) -> tuple[str, ...]:
    names, shape = own.get("axes", root.get("axes")), own["dimensions"]
    if names is None:
        if len(shape) < 3 or any(size != 1 for size in shape[3:]):
            raise UnsupportedError(f"dimensions {shape} without axes")
        return ("x", "y", "z", *[""] * (len(shape) - 3))
    return name_axes(names, len(shape))


def _transformed(path: str, axes: tuple[str, ...], transform: Mapping[str, Any]) -> Level:
    """Return a scale with the size and place that COSEM's `transform` gives, whose axes have an order of their own."""
    names = [str(name).lower() for name in transform["axes"]]
    units = transform.get("units") or [None] * len(names)
    nothing = [0] * len(names)

    def vector(member: str) -> Vector:
        x, y, z = (exact(transform.get(member, nothing)[i]) * parse_unit(units[i]) for i in map(names.index, "xyz"))
        return (x, y, z)

    return Level(path, axes, vector("scale"), vector("translate"))


def _sizes_of(
    root: Mapping[str, Any], sets: Sequence[Mapping[str, Any]], axes: Sequence[tuple[str, ...]], factors: list[Any]
) -> list[Vector]:
    """Return the voxel size of each scale: as many of the first one's voxels as its factors, or its own."""
    one = (Fraction(1), Fraction(1), Fraction(1))
    first = _own_size(root, axes[0]) or _own_size(sets[0], axes[0])
    found: list[Vector] = []
    for level, (own, names) in enumerate(zip(sets, axes, strict=True)):
        times = own.get("downsamplingFactors", factors[level] if level < len(factors) else None)
        size = _own_size(own, names)
        if times is not None:
            x, y, z = (a * b for a, b in zip(first or one, _along(times, names), strict=True))
            found.append((x, y, z))
        elif level == 0:
            found.append(first or one)
        elif size is None or size == first:
            raise UnsupportedError(f"scale {level} without a size or factors")
        else:
            found.append(size)
    return found


def _own_size(own: Mapping[str, Any], names: tuple[str, ...]) -> Vector | None:
    """Return the voxel size in nm that attributes have, if they do."""
    value: Any = own.get("pixelResolution")
    unit: Any = None
    if isinstance(value, Mapping):
        unit, value = value.get("unit"), value.get("dimensions")
    if value is None:
        value = own.get("resolution")
    if value is None:
        return None
    units = own.get("units") if unit is None else None
    # Of other axes no unit is asked for.
    nm = [parse_unit(units[i] if units else unit) if name in ("x", "y", "z") else Fraction(1)
          for i, name in enumerate(names)]
    x, y, z = (a * nm[names.index(axis)] for a, axis in zip(_along(value, names), "xyz", strict=True))
    return (x, y, z)


def _along(values: Sequence[Any], names: tuple[str, ...]) -> Vector:
    """Return numbers along x, y, z of those of all axes."""
    if len(values) != len(names):
        raise UnsupportedError(f"{values} for axes {names}")
    x, y, z = (exact(values[names.index(axis)]) for axis in "xyz")
    return (x, y, z)


def _half(size: Vector) -> Vector:
    x, y, z = (s / 2 for s in size)
    return (x, y, z)


def _minus(one: Vector, other: Vector) -> Vector:
    x, y, z = (a - b for a, b in zip(one, other, strict=True))
    return (x, y, z)
