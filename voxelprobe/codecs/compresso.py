"""Points of `compresso` chunks, of which only the z slices needed are decoded.

Format: https://github.com/seung-lab/compresso#compresso-stream-format
header | labels | window values | locations | windows, run-length coded | index of the slices (format 1). Windows say
which voxels are boundary; the labels are those of the connected components between, and locations decide the boundary
voxels that no neighbour decides. Format 0 has no index and slices that refer to each other: it is decoded as a whole.

There are no checksums, and the package writes and reads outside its arrays when the sections contradict each other. So
they are compared here first: their sizes, the runs, the windows' references, the index, and the number of locations
with that of undecided voxels. Then the package decodes small streams made of the slices needed, in which each
component and each label among the locations has its own number, so that components without a label show. The labels are
looked up by the numbers. What is left undetected is damage that leaves a consistent stream, above all a flipped label.

Limits: one channel; unsigned integers. `ISOLATED` since the checks are ours and the package's writing isn't.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Any

import compresso
import numpy as np

from voxelprobe.arrays import Bool, Int64, Labels, Voxels
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError

PACKAGE: str | None = "compresso"
ISOLATED = True

_HEADER = struct.Struct("<4sBBHHHBBBQIQB")
# Of locations: below the escape they are directions, from the first label on labels.
_ESCAPE, _FIRST_LABEL = 6, 7
# Numbers past the last component's: were there more components than labels, the largest number would tell.
_SPARE_NUMBERS = 1024
# More slices at once only take more memory. Measured on a chunk of pinky40: all 64 slices take 64 ms at once, 27 ms in
# sixteens; the package's full decode takes 25 to 33 ms (benchmarks/crossovers.py).
_SLICES_AT_ONCE = 16


@dataclass(frozen=True, slots=True)
class _Stream:
    """The sections of a compresso stream.

    Attributes
    ----------
    size, step
        Of the chunk and of a window in voxels (x, y, z).
    runs, run_ends
        The windows: 2 n + 1 for n windows of value 0, else 2 v for one of value v (an index into `window_values`); and
        where each of these runs ends.
    label_ends, location_ends
        Where each slice's labels and locations end; None where there is no index.
    """

    size: tuple[int, int, int]
    step: tuple[int, int, int]
    connectivity: int
    labels: Labels
    window_values: np.ndarray[Any, Any]
    locations: Labels
    runs: np.ndarray[Any, Any]
    run_ends: Int64
    label_ends: Int64 | None
    location_ends: Int64 | None


def read_points(payload: bytes, layout: ChunkLayout, voxels: Voxels) -> Labels:
    """Return the labels of a few voxels, decoding the z slices they are in; see `PointReader`.

    Raises
    ------
    UnsupportedError
        If the volume has several channels or isn't of unsigned integers.
    """
    if layout.num_channels != 1 or layout.dtype.kind != "u":
        raise UnsupportedError(f"compresso holds one channel of unsigned integers, the volume has "
                               f"{layout.num_channels} of {layout.dtype.name}")
    stream = _parse_stream(payload, layout)
    if len(voxels) == 0:
        return np.empty((0, 1), layout.dtype)
    x, y, z = voxels.T
    if stream.label_ends is None or stream.location_ends is None or stream.step[2] != 1:
        windows = _expand_runs(stream, 0, int(stream.run_ends[-1]))
        table, numbers = _decode_numbers(stream, windows, stream.labels, stream.locations)
        return np.asarray(table[numbers[x, y, z]]).reshape(-1, 1)
    is_needed = np.zeros(layout.shape[2], np.bool_)
    is_needed[z] = True
    slices = np.flatnonzero(is_needed).tolist()
    rank = (np.cumsum(is_needed) - 1)[z]
    per_slice = int(stream.run_ends[-1]) // layout.shape[2]
    found = np.empty((len(voxels), 1), layout.dtype)
    for begin in range(0, len(slices), _SLICES_AT_ONCE):
        some = slices[begin:begin + _SLICES_AT_ONCE]
        table, numbers = _decode_numbers(
            stream,
            np.concatenate([_expand_runs(stream, i * per_slice, (i + 1) * per_slice) for i in some]),
            np.concatenate([_take_slice(stream.labels, stream.label_ends, i) for i in some]),
            np.concatenate([_take_slice(stream.locations, stream.location_ends, i) for i in some]),
        )
        here = np.flatnonzero((rank >= begin) & (rank < begin + len(some)))
        found[here, 0] = table[numbers[x[here], y[here], rank[here] - begin]]
    return found


def _decode_numbers(
    stream: _Stream, windows: Int64, labels: Labels, locations: Labels
) -> tuple[Labels, np.ndarray[Any, Any]]:
    """Return the labels by number, and each voxel's number of shape (x, y, slices), from parts of the sections."""
    is_boundary = _unpack_windows(stream, windows)
    is_open = is_boundary.copy()  # the boundary voxels that no neighbour before them decides
    is_open[:, :, 1:] &= is_boundary[:, :, :-1]
    is_open[:, 1:] &= is_boundary[:, :-1]
    if stream.connectivity == 6:
        is_open[1:] &= is_boundary[:-1]
    # A location is a direction, a label + 7, or 6 and then a label that is too large to add 7 to.
    is_escape = locations == _ESCAPE
    is_escaped = np.concatenate(([False], is_escape))[:-1]
    largest_direct = np.iinfo(labels.dtype).max - _FIRST_LABEL
    undecided = np.flatnonzero(is_open)
    found, expected = len(locations) - int(is_escape.sum()), len(undecided)
    if found != expected or is_escape[-1:].any() or (locations[is_escaped] <= largest_direct).any():
        raise CorruptDataError(f"compresso: {expected} boundary voxels need a location, found {found} in "
                               f"{len(locations)} values")
    # Numbers begin at 1: first those of the labels among the locations, then those of the components.
    is_label = locations >= _FIRST_LABEL
    stored = np.where(is_escaped, locations, locations - labels.dtype.type(_FIRST_LABEL))[is_label]
    table = np.concatenate((np.zeros(1, labels.dtype), stored, labels))
    codes = locations.astype("<u4")
    codes[is_label] = np.arange(len(stored)) + (1 + _FIRST_LABEL)
    codes = codes[~is_escape]
    _check_directions(codes, undecided, is_boundary.shape, may_leave_slice=stream.label_ends is None)
    small = b"".join((
        _HEADER.pack(b"cpso", 0, 4, *stream.size[:2], len(is_boundary), *stream.step, len(labels) + _SPARE_NUMBERS,
                     len(stream.window_values), found, stream.connectivity),
        np.arange(1 + len(stored), len(table) + _SPARE_NUMBERS, dtype="<u4").tobytes(),
        stream.window_values.tobytes(),
        codes.tobytes(),
        (windows << 1).astype(stream.window_values.dtype).tobytes(),
    ))
    try:
        numbers = compresso.decompress(small)
    except (compresso.DecodeError, RuntimeError, ValueError, IndexError, MemoryError) as error:
        raise CorruptDataError(f"compresso: the package can't decode the chunk: {error}") from error
    largest = int(numbers.max())
    if largest >= len(table) or (len(labels) and largest != len(table) - 1):
        raise CorruptDataError(f"compresso: {max(largest - len(stored), 0)} connected components, expected the "
                               f"{len(labels)} that there are labels for")
    return table, numbers


def _check_directions(
    codes: np.ndarray[Any, Any], undecided: Int64, shape: tuple[int, ...], *, may_leave_slice: bool
) -> None:
    """Make sure that no location refers to a voxel outside the chunk: shape (z, y, x), `undecided` places therein."""
    depth, sy, sx = shape
    which = np.flatnonzero(codes < _ESCAPE)
    slices, inside = np.divmod(undecided[which], sy * sx)
    y, x = np.divmod(inside, sx)
    if not may_leave_slice:
        depth, slices = 1, np.zeros_like(slices)
    # Left, right, up, down, the slice above, the slice below.
    is_there = np.stack((x > 0, x < sx - 1, y > 0, y < sy - 1, slices > 0, slices < depth - 1))
    if not is_there[codes[which], np.arange(len(which))].all():
        raise CorruptDataError("compresso: a location refers to a voxel that is not in the chunk or not in its slice")


def _unpack_windows(stream: _Stream, windows: Int64) -> Bool:
    """Return which voxels are boundary: shape (z, y, x)."""
    (sx, sy, _), (across, down, deep) = stream.size, stream.step
    values = stream.window_values
    depth = len(windows) // (-(-sx // across) * -(-sy // down)) * deep
    if len(values) == 0:
        values = np.zeros(1, values.dtype)
    if windows.max() >= len(values):
        raise CorruptDataError(f"compresso: a window refers to value {windows.max()} of {len(values)}")
    bits = np.unpackbits(values.view(np.uint8).reshape(len(values), -1), axis=1, bitorder="little")
    rows = np.ascontiguousarray(bits[:, :across * down * deep])
    if across in (2, 4, 8):
        rows = rows.view(f"u{across}")  # a window's row is moved as one number
    blocks = (depth // deep, -(-sy // down), -(-sx // across))
    cells = rows.take(windows, axis=0).reshape(*blocks, deep, down, -1).transpose(0, 3, 1, 4, 2, 5)
    grid: Bool = np.ascontiguousarray(cells).view(np.bool_).reshape(depth, blocks[1] * down, blocks[2] * across)
    return grid[:stream.size[2], :sy, :sx]


def _expand_runs(stream: _Stream, begin: int, end: int) -> Int64:
    """Return the window values from one window to another."""
    first, last = np.searchsorted(stream.run_ends, (begin, end - 1), "right").tolist()
    ends = stream.run_ends[first:last + 1].clip(max=end)
    runs = stream.runs[first:last + 1]
    return np.repeat(np.where(runs & 1, 0, runs >> 1).astype(np.int64), np.diff(ends, prepend=begin))


def _take_slice(values: Labels, ends: Int64, z: int) -> Labels:
    return values[ends[z - 1] if z else 0:ends[z]]


def _parse_stream(payload: bytes, layout: ChunkLayout) -> _Stream:
    """Return the sections, after their sizes and the index were compared with the payload and the layout."""
    if len(payload) < _HEADER.size or payload[:4] != b"cpso" or payload[4] > 1:
        raise CorruptDataError(f"a compresso chunk begins with b'cpso' and format 0 or 1 in a header of "
                               f"{_HEADER.size} bytes, found {payload[:5]!r} in {len(payload)} bytes")
    (_, version, width, *size_and_step, num_labels, num_values, num_locations,
     connectivity) = _HEADER.unpack_from(payload)
    sx, sy, sz, across, down, deep = size_and_step
    if (sx, sy, sz) != layout.shape or width != layout.dtype.itemsize:
        raise CorruptDataError(f"compresso: expected {layout.shape} voxels of {layout.dtype.itemsize} bytes, the "
                               f"header has {(sx, sy, sz)} of {width}")
    if not 0 < across * down * deep <= 64 or connectivity not in (4, 6) or (version, connectivity) == (1, 6):
        raise CorruptDataError(f"compresso: windows of {across} x {down} x {deep} voxels, connectivity {connectivity} "
                               f"and format {version} don't go together")
    window_dtype = np.dtype(f"<u{next(n for n in (1, 2, 4, 8) if across * down * deep <= 8 * n)}")
    index_dtype = np.dtype(f"<u{next(n for n in (1, 2, 4, 8) if 2 * sx * sy < 1 << 8 * n)}")
    values_at = _HEADER.size + num_labels * width
    locations_at = values_at + num_values * window_dtype.itemsize
    windows_at = locations_at + num_locations * width
    windows_end = len(payload) - (2 * sz * index_dtype.itemsize if version == 1 else 0)
    if windows_at > windows_end or (windows_end - windows_at) % window_dtype.itemsize:
        raise CorruptDataError(f"compresso: sections of {windows_at} bytes, an index and windows of "
                               f"{window_dtype.itemsize} bytes don't make the chunk's {len(payload)} bytes")
    runs = np.frombuffer(payload, window_dtype, (windows_end - windows_at) // window_dtype.itemsize, windows_at)
    num_windows = -(-sx // across) * -(-sy // down) * -(-sz // deep)
    lengths = np.where(runs & 1, runs >> 1, 1)
    if window_dtype.itemsize > 4:
        lengths = lengths.clip(max=num_windows + 1)  # no run can make the sum wrap
    run_ends = np.cumsum(lengths, dtype=np.int64)
    if len(run_ends) == 0 or run_ends[-1] != num_windows:
        raise CorruptDataError(f"compresso: expected {num_windows} windows, found {run_ends[-1:].sum()}")
    label_ends = location_ends = None
    if version == 1:
        index = np.frombuffer(payload, index_dtype, offset=windows_end).reshape(2, sz).astype(np.int64)
        label_ends = np.cumsum(index[0])
        # Of the locations the index has where slices begin.
        location_ends = np.append(np.cumsum(index[1])[1:], num_locations)
        if label_ends[-1] != num_labels or index[1, 0] != 0 or location_ends.max() > num_locations:
            raise CorruptDataError(f"compresso: the index has {label_ends[-1]} labels and {location_ends.max()} "
                                   f"locations, the header {num_labels} and {num_locations}")
    return _Stream(
        (sx, sy, sz), (across, down, deep), connectivity,
        np.frombuffer(payload, layout.dtype, num_labels, _HEADER.size),
        np.frombuffer(payload, window_dtype, num_values, values_at),
        np.frombuffer(payload, layout.dtype, num_locations, locations_at),
        runs, run_ends, label_ends, location_ends,
    )
