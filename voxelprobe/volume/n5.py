"""N5 volumes: a data set, or a group of scales s0, s1, ….

Formats: https://github.com/saalfeldlab/n5 (arrays, x first), https://github.com/saalfeldlab/n5-viewer
(`pixelResolution`, `scales` or `downsamplingFactors`, in the group or in each scale), https://github.com/janelia-cosem
(`transform` in each scale or in the group's `multiscales`, with the centre of the first voxel as OME-Zarr has it: see
`ome`). Without a `transform` all scales have one corner and begin at voxel 0. Without a unit sizes are in nm; without
sizes they are 1 nm.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from fractions import Fraction
from typing import Any

import numpy as np

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.volume.arrays import DTYPES, StoredArray, choose_axes, make_scale
from voxelprobe.volume.fields import Fields, parse_list, parse_numbers, parse_path
from voxelprobe.volume.ome import MAX_LEVELS, Level, Vector, exact, parse_unit, place_levels
from voxelprobe.volume.scale import ReadJson, VolumeInfo
from voxelprobe.volume.zarr_codecs import parse_n5_compression

_ATTRIBUTES = "attributes.json"
_ORIGIN: Vector = (Fraction(0), Fraction(0), Fraction(0))
_OTHER_TYPES = ("bool", "float16")  # which zarr has


def read_info(read_json: ReadJson, where: str) -> VolumeInfo:
    """Return the volume whose documents `read_json` gives by name; None where there is none.

    Raises
    ------
    InputError, UnsupportedError
        If there is no data set, or one that contradicts itself or can't be read here.
    """
    document = read_json(_ATTRIBUTES)
    root = Fields({} if document is None else document, f"{where}/{_ATTRIBUTES}")
    paths, transforms = _list_scales(root)
    sets: list[Fields] = []
    for path in paths or [f"s{i}" for i in range(MAX_LEVELS)]:
        name = f"{path}/{_ATTRIBUTES}" if path else _ATTRIBUTES
        described = read_json(name)
        if described is None:
            if paths or not sets:
                raise InputError(f"no volume at {where}: expected a data set at {path!r}, found no {name}")
            break  # those that a group without a list has
        sets.append(Fields(described, f"{where}/{name}"))
    paths = paths or [f"s{i}" for i in range(len(sets))]
    arrays = [parse_dataset(fields) for fields in sets]
    axes = [_axes_of(fields, root, array) for fields, array in zip(sets, arrays, strict=True)]
    placed = [transforms.get(path, fields.fields.get("transform")) for path, fields in zip(paths, sets, strict=True)]
    if all(transform is not None for transform in placed):
        levels = [_transformed(Fields(transform, f"{fields.where}: transform"), path)
                  for transform, fields, path in zip(placed, sets, paths, strict=True)]
        offsets = place_levels(levels, root.where)
    elif any(transform is not None for transform in placed):
        raise InputError(f"{root.where}: expected a transform of every scale, found some without")
    else:
        sizes = _voxel_sizes(root, sets, axes)
        levels = [Level(path, size, _ORIGIN) for path, size in zip(paths, sizes, strict=True)]
        offsets = [(0, 0, 0)] * len(levels)
    return VolumeInfo("image", tuple(
        make_scale(array, level.path, kinds, level.resolution, offset)
        for array, level, kinds, offset in zip(arrays, levels, axes, offsets, strict=True)
    ))


def parse_dataset(fields: Fields) -> StoredArray:
    """Return the array that the attributes of a data set describe.

    Raises
    ------
    InputError, UnsupportedError
        If they contradict the format, or have a data type or a compression that can't be read here.
    """
    shape = fields.sizes("dimensions")
    data_type = fields.text("dataType").lower()
    if data_type not in DTYPES or data_type in _OTHER_TYPES:
        known = ", ".join(name for name in DTYPES if name not in _OTHER_TYPES)
        raise UnsupportedError(f"{fields.where}: dataType {data_type!r} is not one of {known}")
    compression = fields.fields.get("compression")
    if compression is None:
        compression = {"type": fields.text("compressionType")}  # before n5 2.0
    codecs = parse_n5_compression(compression, f"{fields.where}: compression")
    return StoredArray(
        fields.where, "n5", shape, fields.sizes("blockSize", len(shape)), np.dtype(">" + DTYPES[data_type]),
        tuple(reversed(range(len(shape)))), 0, codecs, "", "/",
    )


def _list_scales(root: Fields) -> tuple[list[str], dict[str, object]]:
    """Return the paths of a volume's scales as far as its attributes say, and the transforms that they give of them."""
    if "dimensions" in root.fields:
        return [""], {}
    if "multiscales" in root.fields:
        entries = root.items("multiscales")
        if not entries:
            raise InputError(f"{root.where}: expected a multiscale, found none")
        first = Fields(entries[0], f"{root.where}: multiscales[0]")
        datasets = [Fields(entry, f"{first.where}, dataset {i}") for i, entry in enumerate(first.items("datasets"))]
        paths = [parse_path(dataset.text("path"), dataset.where) for dataset in datasets]
        found = {path: dataset.fields["transform"] for path, dataset in zip(paths, datasets, strict=True)
                 if dataset.fields.get("transform") is not None}
    else:
        factors = _list_factors(root)
        paths, found = [f"s{i}" for i in range(len(factors))], {}
    if len(paths) > MAX_LEVELS:
        raise InputError(f"{root.where}: expected at most {MAX_LEVELS} scales, found {len(paths)}")
    return paths, found


def _list_factors(root: Fields) -> list[Any]:
    """Return the factors of all scales as a group has them, or none."""
    for name in ("scales", "downsamplingFactors"):
        if (found := root.fields.get(name)) is not None:
            return parse_list(found, f"{root.where}: {name}")
    return []


def _axes_of(fields: Fields, root: Fields, array: StoredArray) -> tuple[int, ...]:
    names = fields.fields.get("axes", root.fields.get("axes"))
    rank = len(array.shape)
    if names is None:
        if rank < 3 or max(array.shape[3:], default=1) > 1:
            # x, y, z, t, c by Neuroglancer, x, y, c, z, t by others.
            raise UnsupportedError(f"{fields.where}: dimensions {list(array.shape)} without axes; expected x, y and z, "
                                   "and the names of more in an attribute `axes`")
        names = ["x", "y", "z", *("t" * (rank - 3))]
    return choose_axes(parse_list(names, f"{fields.where}: axes", rank), rank, fields.where)


def _transformed(fields: Fields, path: str) -> Level:
    """Return a scale with the size and the place that a `transform` gives."""
    names = [name.lower() if isinstance(name, str) else "" for name in fields.items("axes")]
    if any(names.count(axis) != 1 for axis in "xyz"):
        raise UnsupportedError(f"{fields.where}: axes {names!r}; expected x, y and z")
    units = fields.fields.get("units")
    factors = [parse_unit(unit, fields.where) if name in ("x", "y", "z") else Fraction(1) for name, unit in
               zip(names, [None] * len(names) if units is None else parse_list(units, fields.where, len(names)),
                   strict=True)]

    def vector(name: str) -> Vector:
        numbers = parse_numbers(fields.fields.get(name, [0] * len(names)), f"{fields.where}: {name}", len(names))
        x, y, z = (exact(numbers[i]) * factors[i] for i in map(names.index, "xyz"))
        return (x, y, z)

    return Level(path, _positive(vector("scale"), f"{fields.where}: scale"), vector("translate"))


def _voxel_sizes(root: Fields, sets: Sequence[Fields], axes: Sequence[tuple[int, ...]]) -> list[Vector]:
    """Return the voxel size of each scale in nm: that of the first times the scale's factors, or its own."""
    listed = _list_factors(root) if sets[0].fields is not root.fields else []
    base = _own_size(root, axes[0]) or _own_size(sets[0], axes[0])
    one: Vector = (Fraction(1), Fraction(1), Fraction(1))
    sizes = []
    for index, (fields, kinds) in enumerate(zip(sets, axes, strict=True)):
        factors = fields.fields.get("downsamplingFactors", listed[index] if index < len(listed) else None)
        if factors is None and index:
            own = _own_size(fields, kinds)
            if own is None or own == base:
                raise InputError(f"{fields.where}: expected downsamplingFactors or a resolution of its own, found "
                                 f"{sorted(fields.fields)[:8]}")
            sizes.append(own)
            continue
        factor = one if factors is None else _along(factors, f"{fields.where}: downsamplingFactors", kinds)
        x, y, z = (size * times for size, times in zip(base or one, factor, strict=True))
        sizes.append((x, y, z))
    return sizes


def _own_size(fields: Fields, kinds: tuple[int, ...]) -> Vector | None:
    """Return the voxel size in nm that attributes give, or None."""
    found: Any = fields.fields.get("pixelResolution")
    units = fields.fields.get("units")
    unit: object = None
    where = f"{fields.where}: pixelResolution"
    if isinstance(found, Mapping):
        unit, found = found.get("unit"), found.get("dimensions")
    if found is None:
        found, where = fields.fields.get("resolution"), f"{fields.where}: resolution"
    if found is None:
        return None
    x, y, z = _along(found, where, kinds)
    if unit is None and units is not None:
        listed = parse_list(units, f"{fields.where}: units", len(kinds))
        ux, uy, uz = (parse_unit(listed[kinds.index(axis)], where) for axis in range(3))
    else:
        ux = uy = uz = parse_unit(unit, where)
    return (x * ux, y * uy, z * uz)


def _along(value: object, where: str, kinds: tuple[int, ...]) -> Vector:
    """Return positive numbers along x, y, z out of those of all axes."""
    numbers = parse_numbers(value, where, len(kinds))
    x, y, z = (exact(numbers[kinds.index(axis)]) for axis in range(3))
    return _positive((x, y, z), where)


def _positive(vector: Vector, where: str) -> Vector:
    if min(vector) <= 0:
        raise InputError(f"{where}: expected positive numbers, found {[float(number) for number in vector]}")
    return vector
