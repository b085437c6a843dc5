"""Points of `crackle` chunks, of which only the z slices needed are decoded, and their checksums compared.

Format: https://github.com/seung-lab/crackle#stream-format
header | sizes of the slices' crack codes, CRC-32C | labels | Markov model | crack codes | CRC-32C of the labels and of
each slice. A crack code is the outline of a slice's connected components; the labels section says what label each has.

The package compares a slice's checksum (of the decoded components, which it alone sees) in a thread whose exceptions it
drops: a damaged slice comes back as zeros, and the labels' checksum isn't compared at all. So here the package decodes
a small stream made of the slices needed, in which each component has its own number for a label. Those numbers are what
the checksum is of; the labels are then looked up by them. An answer from format 1 is the original's, whatever was
damaged, or a `CorruptDataError`. Format 0 has no checksums: there, damaged bytes may give wrong labels. What the checks
cost is in docs/design/004-point-readers.md.

A damaged crack code may make the package write outside its arrays: hence `ISOLATED`, and a worker that met a
`CorruptDataError` must not be used further.
Limits: one channel; integers; what releases wrote that the package still reads: 0.4 to 0.16 (format 0) and from 0.18
(format 1), so no pins of fixed width, and one cell a slice. Others contradict the format (docs/encodings.md).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from itertools import pairwise
from math import prod
from typing import Any, TypeAlias

import google_crc32c
import numpy as np
from crackle import codec

from voxelprobe.arrays import Int64, Labels, Voxels
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError

ISOLATED = True

_Components: TypeAlias = "np.ndarray[tuple[int, int], np.dtype[np.uint32]]"
_FLAT, _CONDENSED_PINS = 0, 2
_FORTRAN_ORDER = 1 << 7
_CRACK_FORMAT = 1 << 4
_MARKOV_ORDER = 0b1111 << 9


@dataclass(frozen=True, slots=True)
class _Stream:
    """A crackle stream's header and where its sections are, all inside the payload.

    Attributes
    ----------
    fields
        The header's 16 bits of flags.
    codes
        Where each slice's crack code begins, and where the last ends; shape (slices + 1,).
    """

    version: int
    fields: int
    label_format: int
    stored_dtype: np.dtype[np.generic]
    labels: bytes
    model: bytes
    codes: Int64


@dataclass(frozen=True, slots=True)
class _Pins:
    """Columns of voxels of one label: the first voxel, and how many slices more; and components of a label."""

    key: Int64
    begin: Int64
    depth: Int64
    single_key: Int64
    single: Int64
    background: int
    num_components: int


def read_points(payload: bytes, layout: ChunkLayout, voxels: Voxels) -> Labels:
    """Return the labels of a few voxels, decoding the z slices they are in; see `PointReader`.

    Raises
    ------
    UnsupportedError
        If the volume has several channels or isn't of integers, or the stream is of a kind that no writer makes.
    """
    if layout.num_channels != 1 or layout.dtype.kind not in "ui":
        raise UnsupportedError(f"crackle holds one channel of integers, the volume has {layout.num_channels} of "
                               f"{layout.dtype.name}")
    stream = _parse_stream(payload, layout)
    if len(voxels) == 0:
        return np.empty((0, 1), layout.dtype)
    return _read_slices(payload, stream, layout, voxels)


def _read_slices(payload: bytes, stream: _Stream, layout: ChunkLayout, voxels: Voxels) -> Labels:
    """Return the labels, looked up by the components of the slices needed."""
    sx, _, sz = layout.shape
    first_component, num_components, keys, labels = _parse_labels(stream, layout.shape)
    is_needed = np.zeros(sz, np.bool_)
    is_needed[voxels[:, 2]] = True
    slices = np.flatnonzero(is_needed)
    components = _decode_components(payload, stream, layout.shape, slices, num_components[slices])
    sums = np.frombuffer(payload, "<u4", count=sz if stream.version else 0, offset=len(payload) - 4 * sz)
    for slice_components, z in zip(components, slices.tolist(), strict=True):
        if stream.version == 0:
            if slice_components.max() >= num_components[z]:
                raise CorruptDataError(f"crackle: slice {z} has more components than the {num_components[z]} expected")
        elif google_crc32c.value(slice_components) != sums[z]:
            raise CorruptDataError(f"crackle: the checksum of slice {z} doesn't match its components")
    if isinstance(keys, _Pins):
        keys = _place_pins(keys, layout.shape, first_component, slices, components)
    component = components[(np.cumsum(is_needed) - 1)[voxels[:, 2]], voxels[:, 0] + sx * voxels[:, 1]]
    found: Labels = labels[keys[first_component[voxels[:, 2]] + component]]
    return found.astype(layout.dtype).reshape(-1, 1)


def _decode_components(
    payload: bytes, stream: _Stream, shape: tuple[int, int, int], slices: Int64, num_components: Int64
) -> _Components:
    """Return each voxel's component within its slice: shape (slices, x and y), as the checksums have it.

    It is decoded from a stream of format 0 of just these slices, in which component i of a slice has the label i. With
    no checksums to hold them against, it has i + 1: 0 is left to the slices that the package gave up.
    """
    sx, sy, _ = shape
    most = int(num_components.max())
    key_dtype = _fitting_dtype(most)
    lowest = 1 if stream.version == 0 else 0
    labels = b"".join((
        most.to_bytes(8, "little"),
        np.arange(lowest, most + lowest, dtype="<u4").tobytes(),
        num_components.astype(_fitting_dtype(sx * sy)).tobytes(),
        np.concatenate([np.arange(n, dtype=key_dtype) for n in num_components.tolist()]).tobytes(),
    ))
    begins, ends = stream.codes[slices], stream.codes[slices + 1]
    # 4 bytes a label, stored in 4, flat and sorted; crack format and Markov model as they are.
    fields = 2 | 2 << 2 | stream.fields & (_CRACK_FORMAT | _MARKOV_ORDER) | _FORTRAN_ORDER
    small = b"".join((
        struct.pack("<4sBHIIIBI", b"crkl", 0, fields, sx, sy, len(slices), 31, len(labels)),
        (ends - begins).astype("<u4").tobytes(),
        labels,
        stream.model,
        *(payload[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)),
    ))
    try:
        decoded = codec.decompress(small, parallel=1)
    except (codec.FormatError, RuntimeError, ValueError, IndexError, MemoryError) as error:
        raise CorruptDataError(f"crackle: the package can't decode the chunk: {error}") from error
    components = np.ascontiguousarray(decoded.T).reshape(len(slices), sx * sy)
    if stream.version == 0:
        if components.min() == 0:
            raise CorruptDataError("crackle: the package can't decode the crack code of a slice")
        components -= 1
    components.flags.writeable = False  # google_crc32c reads nothing that can change
    return components


def _parse_stream(payload: bytes, layout: ChunkLayout) -> _Stream:
    """Return the header and the sections, after everything that can be checked without decoding was."""
    if len(payload) < 29 or payload[:4] != b"crkl" or payload[4] > 1:
        raise CorruptDataError(f"a crackle chunk begins with b'crkl' and format 0 or 1 in a header of 29 bytes, found "
                               f"{payload[:5]!r} in {len(payload)} bytes")
    version = payload[4]
    fields, *size, log_grid = struct.unpack_from("<HIIIB", payload, 5)
    index_at, width = (29, 8) if version == 1 else (24, 4)
    label_bytes = int.from_bytes(payload[20:20 + width], "little")
    if version == 1 and _crc8(payload[5:28]) != payload[28]:
        raise CorruptDataError("crackle: the checksum of the header doesn't match")
    kind = f"{'iu'[not fields >> 8 & 1]}{1 << (fields & 3)}"
    if tuple(size) != layout.shape or kind != layout.dtype.str[1:]:
        raise CorruptDataError(f"crackle: expected {layout.shape} voxels of {layout.dtype.str[1:]}, the header has "
                               f"{tuple(size)} of {kind}")
    sx, sy, sz = size
    label_format, order = fields >> 5 & 3, fields >> 9 & 15
    if label_format not in (_FLAT, _CONDENSED_PINS) or 1 << log_grid < max(sx, sy):
        name = ("flat labels", "pins of fixed width", "condensed pins", "labels of format 3")[label_format]
        raise (UnsupportedError if version else CorruptDataError)(  # without a checksum of the header it is damage
            f"crackle: {name} with cells of 2^{log_grid} voxels in slices of {sx} x {sy} can't be read, and no release "
            f"of crackle-codec writes them")
    model_bytes = (4**order * 5 + 4) // 8 if order else 0  # 5 bits a row; order 1 ends inside a byte
    sums_bytes = 4 + 4 * sz if version == 1 else 0
    labels_at = index_at + 4 * sz + (4 if version == 1 else 0)
    codes_at = labels_at + label_bytes + model_bytes
    codes_end = len(payload) - sums_bytes
    if codes_at > codes_end:
        raise CorruptDataError(f"crackle: {label_bytes} bytes of labels don't fit the chunk's {len(payload)} bytes")
    sizes = np.frombuffer(payload, "<u4", count=sz, offset=index_at)
    codes = np.zeros(sz + 1, np.int64)
    np.cumsum(sizes, out=codes[1:])
    codes += codes_at
    if codes[-1] != codes_end:
        raise CorruptDataError(f"crackle: the index has the crack codes end at byte {codes[-1]}, the chunk's "
                               f"{len(payload)} bytes at {codes_end}")
    labels = payload[labels_at:labels_at + label_bytes]
    if version == 1:
        _compare_sum(payload[index_at:labels_at - 4], payload[labels_at - 4:labels_at], "index")
        _compare_sum(labels, payload[codes_end:codes_end + 4], "labels")
    for begin, end in pairwise(codes.tolist()):
        # A code begins with the size of its table of chains; the package would read past the end.
        if begin < end and (end - begin < 4 or int.from_bytes(payload[begin:begin + 4], "little") + 4 > end - begin):
            raise CorruptDataError(f"crackle: the crack code from byte {begin} to {end} is too short for its chains")
    stored = np.dtype(f"<{kind[0]}{1 << (fields >> 2 & 3)}")
    return _Stream(version, fields, label_format, stored, labels, payload[codes_at - model_bytes:codes_at], codes)


def _compare_sum(section: bytes, stored: bytes, name: str) -> None:
    if google_crc32c.value(section) != int.from_bytes(stored, "little"):
        raise CorruptDataError(f"crackle: the checksum of the {name} doesn't match")


def _parse_labels(stream: _Stream, shape: tuple[int, int, int]) -> tuple[Int64, Int64, Int64 | _Pins, Labels]:
    """Return each slice's first component and how many it has, each component's place in the labels, and the labels.

    Of pins, which give places only to components that are known, the pins.
    """
    sx, sy, sz = shape
    size = stream.stored_dtype.itemsize
    has_pins = stream.label_format == _CONDENSED_PINS
    num_labels = int.from_bytes(stream.labels[size * has_pins:size * has_pins + 8], "little")
    labels_at = size * has_pins + 8
    count_dtype = _fitting_dtype(sx * sy)
    keys_at = labels_at + num_labels * size + sz * count_dtype.itemsize
    if len(stream.labels) < keys_at + has_pins:
        raise CorruptDataError(f"crackle: {num_labels} labels don't fit their section of {len(stream.labels)} bytes")
    labels = np.frombuffer(stream.labels, stream.stored_dtype, count=num_labels, offset=labels_at)
    counts = np.frombuffer(stream.labels, count_dtype, sz, labels_at + num_labels * size).astype(np.int64)
    if not 1 <= counts.min() <= counts.max() <= sx * sy:
        raise CorruptDataError(f"crackle: slices have {counts.min()} to {counts.max()} components of {sx * sy} at most")
    first = np.cumsum(counts) - counts
    if has_pins:
        background = np.frombuffer(stream.labels, stream.stored_dtype, count=1)
        pins = _parse_pins(stream.labels, keys_at, num_labels, prod(shape), int(counts.sum()))
        return first, counts, pins, np.concatenate((labels, background))
    keys = np.frombuffer(stream.labels[keys_at:], _fitting_dtype(num_labels)).astype(np.int64)
    if len(keys) != counts.sum() or keys.max() >= num_labels:
        raise CorruptDataError(f"crackle: the slices have {counts.sum()} components with one of {num_labels} labels "
                               f"each, found {len(keys)} references up to {keys.max(initial=0)}")
    return first, counts, keys, labels


def _parse_pins(section: bytes, at: int, num_labels: int, num_voxels: int, num_components: int) -> _Pins:
    """Return the pins: for each label columns of voxels, and single components, both coded as differences."""
    widths = section[at]
    number, depth, single = (np.dtype(f"<u{1 << (widths >> shift & 3)}") for shift in (0, 2, 4))
    at += 1
    columns: list[tuple[np.dtype[Any], bool]] = [(_fitting_dtype(num_voxels), True), (depth, False)]
    parts: tuple[list[Int64], ...] = ([], [], [], [], [])
    try:
        for label in range(num_labels):
            for keys, found, fields in ((parts[0], parts[1:3], columns), (parts[3], parts[4:], [(single, True)])):
                count = int(np.frombuffer(section, number, 1, at)[0])
                at += number.itemsize
                keys.append(np.full(min(count, len(section)), label))
                for values, (dtype, is_difference) in zip(found, fields, strict=True):
                    column = np.frombuffer(section, dtype, count, at).astype(np.int64)
                    values.append(column.cumsum() if is_difference else column)
                    at += count * dtype.itemsize
    except (ValueError, OverflowError) as error:
        raise CorruptDataError(f"crackle: the pins of {num_labels} labels don't fit their section") from error
    key, begin, deep, single_key, alone = (np.concatenate((np.zeros(0, np.int64), *part)) for part in parts)
    limits = ((begin, num_voxels), (deep, num_voxels), (alone, num_components))
    if any(values.min(initial=0) < 0 or values.max(initial=0) >= limit for values, limit in limits):
        raise CorruptDataError("crackle: a pin is outside the chunk")
    return _Pins(key, begin, deep, single_key, alone, num_labels, num_components)


def _place_pins(
    pins: _Pins, shape: tuple[int, int, int], first_component: Int64, slices: Int64, components: _Components
) -> Int64:
    """Return the place in the labels of each component of the slices needed; what no pin meets is background."""
    keys = np.full(pins.num_components, pins.background)
    keys[pins.single] = pins.single_key
    z, inside = np.divmod(pins.begin, shape[0] * shape[1])
    for rank, i in enumerate(slices.tolist()):
        here = np.flatnonzero((z <= i) & (i <= z + pins.depth))
        keys[first_component[i] + components[rank, inside[here]]] = pins.key[here]
    return keys


def _fitting_dtype(largest: int) -> np.dtype[np.generic]:
    """Return the unsigned dtype that the format has for numbers up to `largest`."""
    return np.dtype(f"<u{next(width for width in (1, 2, 4, 8) if largest < 1 << 8 * width)}")


def _crc8(data: bytes) -> int:
    """Return the header's checksum: polynomial 0xe7, least significant bit first, beginning with 0xff."""
    crc = 0xFF
    for byte in data:
        crc = _CRC8_TABLE[crc ^ byte]
    return crc


def _crc8_of_byte(byte: int) -> int:
    for _ in range(8):
        byte = byte >> 1 ^ 0xE7 if byte & 1 else byte >> 1
    return byte


_CRC8_TABLE = bytes(_crc8_of_byte(byte) for byte in range(256))
