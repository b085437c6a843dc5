"""compresso's sections, up to where the package decodes."""

from __future__ import annotations

import numpy as np

from fuzz.target import Target, attempt, is_refused
from fuzz.targets.segmentation import SLICED, numbers, seeds_of, width_of
from voxelprobe.codecs import compresso
from voxelprobe.testing.contracts import make_segments


def _compresso_seeds() -> list[bytes]:
    import compresso as package

    seeds = seeds_of(SLICED, "compresso")
    for index, layout in enumerate(SLICED):
        chunk = make_segments(layout)[..., 0]
        for options in (
            {"steps": (4, 4, 2), "random_access_z_index": False},
            {"steps": (8, 8, 1)},
            {"connectivity": 6, "random_access_z_index": False},
        ):
            seeds.append(bytes([index]) + bytes(package.compress(chunk, **options)))
    return seeds


def _check_compresso(data: bytes) -> bool:
    layout = SLICED[data[0] % len(SLICED)] if data else SLICED[0]
    payload, (sx, sy, sz) = data[1:], layout.shape
    stream = attempt(compresso._parse_stream, payload, layout)
    if is_refused(stream):
        return False
    assert (*numbers(payload[6:12], 2),) == (sx, sy, sz)
    step = tuple(payload[12:15])
    wide = layout.dtype.itemsize
    labels, values, locations = (int.from_bytes(payload[a:b], "little") for a, b in ((15, 23), (23, 27), (27, 35)))
    window = next(n for n in (1, 2, 4, 8) if step[0] * step[1] * step[2] <= 8 * n)
    at = 36
    assert stream.labels.tolist() == numbers(payload[at : at + labels * wide], wide)
    at += labels * wide
    assert stream.window_values.tolist() == numbers(payload[at : at + values * window], window)
    at += values * window
    assert stream.locations.tolist() == numbers(payload[at : at + locations * wide], wide)
    at += locations * wide
    end = len(payload) - (2 * sz * width_of(2 * sx * sy) if payload[4] else 0)
    runs = numbers(payload[at:end], window)
    if payload[4]:
        assert stream.runs.tolist() == runs
    windows: list[int] = []
    for run in stream.runs.tolist():
        windows += [0] * (run >> 1) if run & 1 else [run >> 1]
    counts = [-(-s // t) for s, t in zip(layout.shape, step, strict=True)]
    assert len(windows) == counts[0] * counts[1] * counts[2]
    is_value = max(windows) < max(values, 1)
    found = attempt(compresso._expand_runs, stream, np.arange(sz))
    assert is_refused(found) is not is_value
    if not is_value:
        return False
    assert found.tolist() == windows
    if stream.label_ends is not None and step[2] == 1:
        a_slice = counts[0] * counts[1]
        some = np.array([0, sz - 1])
        expanded = compresso._expand_runs(stream, some)
        assert expanded.tolist() == windows[:a_slice] + windows[(sz - 1) * a_slice :]
        for ends, section in ((stream.label_ends, stream.labels), (stream.location_ends, stream.locations)):
            if len(ends) == sz and (np.diff(ends, prepend=0) >= 0).all():
                taken, bounds = compresso._take_slices(section, ends, some)
                assert bounds[-1] == len(taken)
    assert compresso._find_undecided(stream, found).tolist() == _undecided(stream, windows, counts, step, layout.shape)
    return True


def _undecided(stream, windows, counts, step, shape) -> list[int]:
    """Return the boundary voxels without a neighbour before them that isn't, one after the other."""
    values = stream.window_values.tolist() or [0]
    (sx, sy, sz), (a, b, c) = shape, step
    depth = len(windows) // (counts[0] * counts[1]) * c
    edge = {}
    for z in range(min(depth, sz)):
        for y in range(sy):
            for x in range(sx):
                window = windows[x // a + counts[0] * (y // b + counts[1] * (z // c))]
                edge[x, y, z] = values[window] >> (x % a + a * (y % b + b * (z % c))) & 1
    return [
        x + sx * (y + sy * z)
        for (x, y, z), is_edge in edge.items()
        if is_edge
        and all(
            edge.get(place, 1)
            for place in ((x - 1, y, z), (x, y - 1, z), (x, y, z - 1))[: 3 if stream.connectivity == 6 else 2]
        )
    ]


TARGETS = {"compresso": Target(_compresso_seeds, _check_compresso)}
