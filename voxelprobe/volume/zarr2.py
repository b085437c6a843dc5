"""Zarr v2 volumes: an array, or a group that is an OME-Zarr multiscale.

Format: https://zarr-specs.readthedocs.io/en/latest/v2/v2.0.html
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

import numpy as np

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.volume.arrays import StoredArray, choose_axes, make_scale, parse_fill
from voxelprobe.volume.fields import Fields, parse_list
from voxelprobe.volume.ome import parse_multiscale, place_levels
from voxelprobe.volume.scale import ReadJson, Scale, VolumeInfo
from voxelprobe.volume.zarr_codecs import parse_numcodecs


def read_info(read_json: ReadJson, where: str) -> VolumeInfo:
    """Return the volume whose documents `read_json` gives by name; None where there is none.

    Raises
    ------
    InputError, UnsupportedError
        If there is no array and no multiscale, or one that contradicts itself or can't be read here.
    """
    attributes = _read_attributes(read_json, "", where)
    if "multiscales" in attributes:
        scales = read_multiscale(attributes["multiscales"], f"{where}/.zattrs: multiscales",
                                 lambda path: read_array(read_json, path, where))
        return VolumeInfo("segmentation" if "image-label" in attributes else "image", scales)
    if read_json(".zarray") is None:
        raise InputError(f"no volume at {where}: expected a file named .zarray, or multiscales in .zattrs; found "
                         "neither")
    return VolumeInfo("image", (plain_scale(read_array(read_json, "", where)),))


def read_array(read_json: ReadJson, path: str, where: str) -> StoredArray:
    """Return the array at a path below the volume."""
    name = f"{path}/.zarray" if path else ".zarray"
    document = read_json(name)
    if document is None:
        raise InputError(f"{where}: expected an array at {path!r}, found no {name}")
    return parse_zarray(document, f"{where}/{name}", _read_attributes(read_json, path, where))


def parse_zarray(document: object, where: str, attributes: Mapping[str, object]) -> StoredArray:
    """Return the array that a `.zarray` document and its attributes describe.

    Raises
    ------
    InputError, UnsupportedError
        If it contradicts the format, or has a dtype or a codec that can't be read here.
    """
    fields = Fields(document, where)
    if (version := fields.integer("zarr_format", at_least=0)) != 2:
        raise UnsupportedError(f"{where}: expected zarr_format 2, found {version}")
    shape = fields.sizes("shape")
    dtype = fields.fields.get("dtype")
    if not isinstance(dtype, str) or not re.fullmatch(r"[<>|](b1|[iu][1248]|f[248])", dtype):
        raise UnsupportedError(f"{where}: dtype {dtype!r} can't be read; expected booleans, whole numbers or floats")
    stored = np.dtype(dtype.replace("b", "u"))
    order = fields.text("order", default="C")
    if order not in ("C", "F"):
        raise InputError(f"{where}: expected C or F for order, found {order!r}")
    separator = fields.text("dimension_separator", default=".")
    if separator not in (".", "/"):
        raise InputError(f"{where}: expected . or / for dimension_separator, found {separator!r}")
    steps = fields.fields.get("filters")
    codecs = [parse_numcodecs(step, f"{where}: filters[{i}]")
              for i, step in enumerate([] if steps is None else parse_list(steps, f"{where}: filters"))]
    if fields.fields.get("compressor") is not None:
        codecs.append(parse_numcodecs(fields.fields["compressor"], f"{where}: compressor"))
    fill = fields.fields.get("fill_value")
    names = attributes.get("_ARRAY_DIMENSIONS")
    axes = range(len(shape))
    return StoredArray(
        where, "zarr", shape, fields.sizes("chunks", len(shape)), stored,
        tuple(axes if order == "C" else reversed(axes)), None if fill is None else parse_fill(fill, stored, where),
        codecs, "", separator, None if names is None else parse_list(names, f"{where}: _ARRAY_DIMENSIONS"),
    )


def read_multiscale(
    document: object, where: str, read_level: Callable[[str], StoredArray]
) -> tuple[Scale, ...]:
    """Return the scales of an OME-Zarr multiscale of arrays of either version; see `ome`.

    Parameters
    ----------
    document
        The list `multiscales`.
    read_level
        Gives the array at a path below the volume.
    """
    multiscale = parse_multiscale(document, where)
    scales = []
    for level, offset in zip(multiscale.levels, place_levels(multiscale.levels, where), strict=True):
        array = read_level(level.path)
        axes = choose_axes(multiscale.axis_names, len(array.shape), array.where)
        scales.append(make_scale(array, level.path, axes, level.resolution, offset))
    return tuple(scales)


def plain_scale(array: StoredArray) -> Scale:
    """Return the scale of an array without a multiscale: voxels of 1 nm, as CloudVolume takes them."""
    axes = choose_axes(array.axis_names, len(array.shape), array.where)
    return make_scale(array, "", axes, (1.0, 1.0, 1.0), (0, 0, 0))


def _read_attributes(read_json: ReadJson, path: str, where: str) -> Mapping[str, object]:
    name = f"{path}/.zattrs" if path else ".zattrs"
    document = read_json(name)
    return {} if document is None else Fields(document, f"{where}/{name}").fields
