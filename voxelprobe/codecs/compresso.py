"""Points of `compresso` chunks, of which the z slices needed are decoded, together in one pass.

Format: https://github.com/seung-lab/compresso#compresso-stream-format
header | labels | window values | locations | windows, run-length coded | index of the slices (format 1). Windows say
which voxels are boundary; the labels are those of the connected components between, and locations decide the boundary
voxels that no neighbour decides. Format 0 has no index and slices that refer to each other: it is decoded as a whole.

There are no checksums, and the package writes and reads outside its arrays when the sections contradict each other. So
they are compared here first: their sizes, the runs, the windows' references, the index, and the number of locations
with that of undecided voxels. Then the package decodes small streams made of the slices needed, in which each
component and each label among the locations has its own number, so that components without a label show. The labels are
looked up by the numbers. What is left undetected is damage that leaves a consistent stream, above all a flipped label;
and where not all slices are needed, an index that has the sections of a slice begin elsewhere, with its counts right.

Limits: one channel; unsigned integers; not what releases before 2.3.2 wrote wrongly (see `_drop_surplus`).
`ISOLATED` since the checks are ours and the package's writing isn't.
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

ISOLATED = True

_HEADER = struct.Struct("<4sBBHHHBBBQIQB")
# Of locations: below the escape they are directions, from the first label on labels.
_SLICE_ABOVE, _ESCAPE, _FIRST_LABEL = 4, 6, 7
# Numbers past the last component's: were there more components than labels, the largest number would tell.
_SPARE_NUMBERS = 1024
# Slices are decoded in parts of so many voxels, 10 to 20 bytes each: parts of a quarter million take 8 to 17 % longer.
_VOXELS_AT_ONCE = 1 << 22
# Up to here, the windows of each slice are expanded alone, above those of all slices between the first and the last.
_FEW_SLICES = 4


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
    sx, sy, sz = layout.shape
    if stream.label_ends is None or stream.step[2] != 1:
        table, numbers = _decode_numbers(stream, np.arange(sz))
        return np.asarray(table[numbers[x, y, z]]).reshape(-1, 1)
    is_needed = np.zeros(sz, np.bool_)
    is_needed[z] = True
    slices = np.flatnonzero(is_needed)
    rank = (np.cumsum(is_needed) - 1)[z]
    found = np.empty((len(voxels), 1), layout.dtype)
    at_once = max(1, _VOXELS_AT_ONCE // (sx * sy))
    for begin in range(0, len(slices), at_once):
        some = slices[begin:begin + at_once]
        table, numbers = _decode_numbers(stream, some)
        here = np.flatnonzero((rank >= begin) & (rank < begin + len(some))) if len(some) < len(slices) else slice(None)
        found[here, 0] = table[numbers[x[here], y[here], rank[here] - begin]]
    return found


def _decode_numbers(stream: _Stream, slices: Int64) -> tuple[Labels, np.ndarray[Any, Any]]:
    """Return the labels by number, and each voxel's number of shape (x, y, slices); slices ascend."""
    labels, label_ends = _take_slices(stream.labels, stream.label_ends, slices)
    locations, location_ends = _take_slices(stream.locations, stream.location_ends, slices)
    windows = _expand_runs(stream, slices)
    # A location is a direction, a label + 7, or 6 and then a label that is too large to add 7 to.
    is_label = locations >= _FIRST_LABEL
    stored = locations[is_label]
    stored -= _FIRST_LABEL
    # Numbers begin at 1: first those of the labels among the locations, then those of the components.
    first = 1 + len(stored)
    end = first + len(labels)
    dtype = np.dtype("<u2" if end + _SPARE_NUMBERS + _FIRST_LABEL < 1 << 16 else "<u4")
    codes = locations.astype(dtype)
    codes[is_label] = np.arange(1 + _FIRST_LABEL, first + _FIRST_LABEL, dtype=dtype)
    is_escape = locations == _ESCAPE
    if is_escape.any():
        escaped = np.flatnonzero(is_escape) + 1
        if escaped[-1] == len(locations) or (locations[escaped] <= np.iinfo(labels.dtype).max - _FIRST_LABEL).any():
            raise CorruptDataError("compresso: a location says that a large label follows, and none does")
        stored[codes[escaped] - (1 + _FIRST_LABEL)] += labels.dtype.type(_FIRST_LABEL)
        codes = codes[~is_escape]
        location_ends = location_ends - np.searchsorted(escaped - 1, location_ends)
    table = np.concatenate((np.zeros(1, labels.dtype), stored, labels))
    _check_locations(stream, codes, location_ends, _find_undecided(stream, windows), len(slices))
    small = b"".join((
        _HEADER.pack(b"cpso", 0, dtype.itemsize, *stream.size[:2], len(slices), *stream.step,
                     len(labels) + _SPARE_NUMBERS, len(stream.window_values), len(codes), stream.connectivity),
        np.arange(first, end + _SPARE_NUMBERS, dtype=dtype).tobytes(),
        stream.window_values.tobytes(),
        codes.tobytes(),
        (stream.runs if len(slices) == stream.size[2] else windows << 1).tobytes(),
    ))
    try:
        numbers = compresso.decompress(small)
    except (compresso.DecodeError, RuntimeError, ValueError, IndexError, MemoryError) as error:
        raise CorruptDataError(f"compresso: the package can't decode the chunk: {error}") from error
    largest = numbers.T.reshape(len(slices), -1).max(axis=1).astype(np.int64)
    if len(label_ends) < len(slices):
        largest = largest.max(keepdims=True)
    # A slice without components of its own shows no more than numbers of locations.
    components = np.maximum.accumulate(np.maximum(largest - (first - 1), 0))
    if (components != label_ends).any():
        raise CorruptDataError(f"compresso: slices have up to {components.tolist()} connected components, expected the "
                               f"{label_ends.tolist()} that there are labels for")
    return table, numbers


def _check_locations(stream: _Stream, codes: Labels, ends: Int64, undecided: Int64, num_slices: int) -> None:
    """Make sure that the boundary voxels that need a location have one each, and none that leaves the slices at hand.

    The package checks the other directions, but not for the slice below the last.
    """
    area = stream.size[0] * stream.size[1]
    step = num_slices // len(ends) * area
    expected = np.searchsorted(undecided, np.arange(1, len(ends) + 1) * step)
    if len(codes) != len(undecided) or (ends != expected).any():
        raise CorruptDataError(f"compresso: {len(undecided)} boundary voxels need a location, found {len(codes)}, or "
                               f"they are in other slices than the index has them")
    leaves = np.flatnonzero((codes >= _SLICE_ABOVE) & (codes < _ESCAPE))
    if stream.label_ends is None:
        leaves = leaves[(undecided[leaves] >= (num_slices - 1) * area) & (codes[leaves] > _SLICE_ABOVE)]
    if len(leaves):
        raise CorruptDataError("compresso: a location refers to a voxel that is not in the chunk or not in its slice")


def _find_undecided(stream: _Stream, windows: np.ndarray[Any, Any]) -> Int64:
    """Return the boundary voxels that no neighbour before them decides: places in an array of shape (z, y, x)."""
    is_boundary = _unpack_windows(stream, windows)
    is_open = is_boundary.copy()
    is_open.ravel()[1:] &= is_boundary.ravel()[:-1]  # one long loop; rows' first voxels have no left neighbour
    is_open[:, :, 0] = is_boundary[:, :, 0]
    is_open[:, 1:] &= is_boundary[:, :-1]
    if stream.connectivity == 6:
        is_open[1:] &= is_boundary[:-1]
    return np.flatnonzero(is_open)


def _unpack_windows(stream: _Stream, windows: np.ndarray[Any, Any]) -> Bool:
    """Return which voxels are boundary: shape (z, y, x)."""
    (sx, sy, sz), (across, down, deep) = stream.size, stream.step
    values = stream.window_values if len(stream.window_values) else np.zeros(1, stream.window_values.dtype)
    depth = len(windows) // (-(-sx // across) * -(-sy // down)) * deep
    bits = np.unpackbits(values.view(np.uint8).reshape(len(values), -1), axis=1, bitorder="little")
    rows = np.ascontiguousarray(bits[:, :across * down * deep])
    if across in (2, 4, 8):
        rows = rows.view(f"u{across}")  # a window's row is moved as one number
    blocks = (depth // deep, -(-sy // down), -(-sx // across))
    cells = rows.take(windows, axis=0).reshape(*blocks, deep, down, -1).transpose(0, 3, 1, 4, 2, 5)
    grid = np.ascontiguousarray(cells).view(np.bool_).reshape(depth, blocks[1] * down, blocks[2] * across)
    whole: Bool = np.ascontiguousarray(grid[:sz, :sy, :sx])
    return whole


def _expand_runs(stream: _Stream, slices: Int64) -> np.ndarray[Any, Any]:
    """Return the windows of some slices, or of all, as indices of window values."""
    num_windows = int(stream.run_ends[-1])
    if len(slices) == stream.size[2]:
        return _expand_range(stream, 0, num_windows)
    per_slice = num_windows // stream.size[2]
    if len(slices) <= _FEW_SLICES:
        return np.concatenate([_expand_range(stream, z * per_slice, (z + 1) * per_slice) for z in slices.tolist()])
    low, high = int(slices[0]), int(slices[-1]) + 1
    return _expand_range(stream, low * per_slice, high * per_slice).reshape(-1, per_slice)[slices - low].ravel()


def _expand_range(stream: _Stream, begin: int, end: int) -> np.ndarray[Any, Any]:
    """Return the windows from one to another."""
    first, last = np.searchsorted(stream.run_ends, (begin, end), "right").tolist()
    runs = stream.runs[first:last]
    is_value = (runs & 1) == 0
    values = runs[is_value] >> 1
    largest, num_values = int(values.max(initial=0)), max(len(stream.window_values), 1)
    if largest >= num_values:
        raise CorruptDataError(f"compresso: a window refers to value {largest} of {num_values}")
    windows = np.zeros(end - begin, runs.dtype)
    windows[stream.run_ends[first:last][is_value] - (begin + 1)] = values
    return windows


def _take_slices(values: Labels, ends: Int64 | None, slices: Int64) -> tuple[Labels, Int64]:
    """Return the values of some slices, and where each one's end among them; without an index, all."""
    if ends is None:
        return values, np.array([len(values)])
    if len(slices) == len(ends):
        return values, ends
    bounds = np.concatenate((ends[:1] - ends[:1], ends))
    begins, stops = bounds[slices], bounds[slices + 1]
    pieces = [values[begin:stop] for begin, stop in zip(begins.tolist(), stops.tolist(), strict=True)]
    return np.concatenate(pieces), np.cumsum(stops - begins)


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
    run_ends = _end_runs(runs, num_windows)
    if version == 0 and len(runs) and run_ends[-1] > num_windows:
        runs = _drop_surplus(runs)
        run_ends = _end_runs(runs, num_windows)
    if len(run_ends) == 0 or run_ends[-1] != num_windows:
        raise CorruptDataError(f"compresso: expected {num_windows} windows, found {run_ends[-1:].sum()}")
    label_ends = location_ends = None
    if version == 1:
        index = np.frombuffer(payload, index_dtype, offset=windows_end).reshape(2, sz).astype(np.int64)
        label_ends = np.cumsum(index[0])
        # Of the locations the index has where slices begin.
        location_ends = np.append(np.cumsum(index[1])[1:], num_locations)
        if index.min() < 0 or label_ends[-1] != num_labels or index[1, 0] != 0 or location_ends.max() > num_locations:
            raise CorruptDataError(f"compresso: the index has {label_ends[-1]} labels and {location_ends.max()} "
                                   f"locations, the header {num_labels} and {num_locations}")
    return _Stream(
        (sx, sy, sz), (across, down, deep), connectivity,
        np.frombuffer(payload, layout.dtype, num_labels, _HEADER.size),
        np.frombuffer(payload, window_dtype, num_values, values_at),
        np.frombuffer(payload, layout.dtype, num_locations, locations_at),
        runs, run_ends, label_ends, location_ends,
    )


def _end_runs(runs: np.ndarray[Any, Any], num_windows: int) -> Int64:
    """Return where each run of windows ends."""
    lengths = np.where(runs & 1, runs >> 1, 1)
    if runs.dtype.itemsize > 4:
        lengths = lengths.clip(max=num_windows + 1)  # no run can make the sum wrap
    return np.cumsum(lengths, dtype=np.int64)


def _drop_surplus(runs: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return the runs without what releases before 2.3.2 wrote too many after full ones, if that moved no boundary."""
    surplus = np.flatnonzero(runs == 0)
    if len(surplus) == 0 or surplus[0] == 0 or (runs[surplus - 1] != np.iinfo(runs.dtype).max).any():
        return runs
    boundaries = np.flatnonzero((runs & 1 == 0) & (runs != 0))
    return runs if boundaries.max(initial=-1) > surplus[0] else runs[runs != 0]
