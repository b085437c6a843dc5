"""The engine for notebooks: labels of points by the stages' own planning, fetching and reading."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import closing
from os import PathLike
from pathlib import Path
from typing import Any, Literal, overload

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Labels
from voxelprobe.cache.disk import DiskCache
from voxelprobe.cache.memory import MemoryCache
from voxelprobe.cache.protocol import ChunkCache
from voxelprobe.decoding import decode_points
from voxelprobe.errors import CorruptDataError, InputError
from voxelprobe.fetching import Progress, fetch_chunks
from voxelprobe.graphene.timestamps import parse_timestamp
from voxelprobe.opening import Volume, open_volume
from voxelprobe.planning import RegionTally, locate_points, order_by_chunk
from voxelprobe.points.units import UnitConversion, parse_coord_resolution, unit_of_resolution
from voxelprobe.records import STATUS_LABELS, Status
from voxelprobe.resolving import resolve_roots

DEFAULT_CACHE_BYTES = 20 << 30
DEFAULT_FETCH_THREADS = 64
GRAPHENE_BATCH_SIZE = 50_000
GRAPHENE_CONCURRENCY = 2


@overload
def sample_points(
    volume: str, xyz: npt.ArrayLike, *, mip: int | str = ..., coord_resolution: str | Sequence[float] | None = ...,
    missing_chunks: Literal["null", "error"] = ..., timestamp: str | None = ..., return_status: Literal[False] = ...,
    cache: str | PathLike[str] | None = ..., cache_bytes: int = ..., fetch_threads: int = ...,
    progress: Progress | None = ...,
) -> np.ma.MaskedArray[Any, Any]: ...
@overload
def sample_points(
    volume: str, xyz: npt.ArrayLike, *, mip: int | str = ..., coord_resolution: str | Sequence[float] | None = ...,
    missing_chunks: Literal["null", "error"] = ..., timestamp: str | None = ..., return_status: Literal[True],
    cache: str | PathLike[str] | None = ..., cache_bytes: int = ..., fetch_threads: int = ...,
    progress: Progress | None = ...,
) -> tuple[np.ma.MaskedArray[Any, Any], npt.NDArray[np.str_]]: ...
def sample_points(
    volume: str,
    xyz: npt.ArrayLike,
    *,
    mip: int | str = 0,
    coord_resolution: str | Sequence[float] | None = None,
    missing_chunks: Literal["null", "error"] = "null",
    timestamp: str | None = None,
    return_status: bool = False,
    cache: str | PathLike[str] | None = None,
    cache_bytes: int = DEFAULT_CACHE_BYTES,
    fetch_threads: int = DEFAULT_FETCH_THREADS,
    progress: Progress | None = None,
) -> Any:
    """Return the label under each point.

    Parameters
    ----------
    volume
        A cloudpath as CloudVolume takes it.
    xyz
        Shape (n, 3), x y z; integers or floats. One point may be given as shape (3,).
    mip
        The scale's index, or its resolution in nm as in `8,8,40`.
    coord_resolution
        Unit of the points: voxel size in nm as `(4, 4, 40)` or `"4,4,40"`, or `"nm"`. Voxels of mip 0 by default.
    missing_chunks
        `null`: points in a chunk that the store lacks are masked. `error`: they are an error.
    timestamp
        Graphene volumes: return the roots of that time (ISO 8601 with a zone, unix seconds, or `now`) instead of the
        supervoxels.
    return_status
        Return the statuses too.
    cache, cache_bytes
        Folder of a chunk cache that calls and runs share, and its budget. Nothing is kept by default.
    fetch_threads
        Requests under way at once.
    progress
        Called with the chunks done and bytes received since the last call. A chunk is done twice:
        fetched, and read.

    Returns
    -------
    Labels, shape (n,), or (n, channels) for several channels, in the volume's dtype and the order of
    the points; masked where a point has no label. With `return_status` also the statuses, shape (n,),
    text: `ok`, `out_of_bounds`, `missing_chunk`, `invalid_coordinate`, `corrupt_chunk` or
    `no_root`.

    Raises
    ------
    InputError
        If there is no such volume or scale, or the points aren't of that shape.
    CorruptDataError
        If a chunk is damaged, unless the statuses are returned.
    TransportError
        If the store doesn't answer.
    """
    source = open_volume(volume, mip=mip)
    unit = parse_coord_resolution(coord_resolution) or unit_of_resolution(source.info.scales[0].resolution)
    values, valid = _as_coordinates(xyz)
    conversion = UnitConversion.between(unit, source.scale.resolution)
    located = locate_points(list(values.T), valid, conversion, source.regions)
    labels = np.zeros((len(values), source.scale.num_channels), source.scale.dtype)
    status = located.status
    points = np.flatnonzero(status == Status.OK)
    corrupt: dict[int, str] = {}
    numbers = source.regions.chunks(located.regions[points], located.cells[points])
    jobs = order_by_chunk(points, numbers, located.places[points], source.regions)
    tally = RegionTally(source.regions)
    tally.add(jobs.regions, np.diff(jobs.first))
    groups = tally.cut_groups()[np.searchsorted(tally.numbers, jobs.regions)]
    for group in range(int(groups.max(initial=-1)) + 1):
        part, _ = jobs.select(groups == group)
        chunks = _open_cache(source, cache, cache_bytes)  # without a folder, one that this group's chunks leave with
        missing_is_error = missing_chunks == "error"
        report = progress or _no_progress
        fetch_chunks(source, part, chunks, threads=fetch_threads, missing_is_error=missing_is_error, progress=report)
        decoded = decode_points(source, part, chunks, threads=fetch_threads, missing_is_error=missing_is_error,
                                progress=report)
        labels[part.points], status[part.points] = decoded.labels, decoded.status
        corrupt |= decoded.corrupt
    if corrupt and not return_status:
        chunk, message = min(corrupt.items())
        raise CorruptDataError(f"{source.chunk_label(chunk)}: {message} ({len(corrupt)} corrupt chunks)")
    if timestamp is not None:
        _put_roots(source, labels, status, timestamp)
    result = np.ma.MaskedArray(labels, mask=np.repeat((status != Status.OK)[:, None], labels.shape[1], axis=1))
    if source.scale.num_channels == 1:
        result = result[:, 0]
    return (result, np.array(STATUS_LABELS)[status]) if return_status else result


def _put_roots(source: Volume, labels: Labels, status: npt.NDArray[np.uint8], timestamp: str) -> None:
    """Replace supervoxels by their roots."""
    if source.graph is None:
        raise InputError(f"{source.url} has no roots: expected a graphene:// volume with a timestamp")
    at = parse_timestamp(timestamp, now=time.time())
    read = np.flatnonzero(status == Status.OK)
    with closing(source.graph.open_client(connections=GRAPHENE_CONCURRENCY)) as client:
        found = resolve_roots(
            labels[read, 0], fetch=lambda some: client.fetch_roots(some, timestamp=at), layout=source.graph.layout,
            stop_layer=None, batch_size=GRAPHENE_BATCH_SIZE, concurrency=GRAPHENE_CONCURRENCY,
        )
    labels[read, 0] = found.roots
    status[read[~found.resolved]] = Status.NO_ROOT


def _as_coordinates(xyz: npt.ArrayLike) -> tuple[npt.NDArray[Any], npt.NDArray[np.bool_]]:
    values = np.asarray(xyz)
    if values.ndim == 1 and values.shape == (3,):
        values = values[None]
    if values.size == 0:
        values = np.zeros((0, 3), np.int64)
    if values.ndim != 2 or values.shape[1] != 3 or values.dtype.kind not in "iuf":
        raise InputError(f"points: expected numbers of shape (n, 3), found {values.dtype} of shape {values.shape}")
    if values.dtype.kind == "f":
        finite = np.isfinite(values).all(axis=1)
        return np.where(finite[:, None], values, 0).astype(np.float64), finite
    # Unsigned numbers beyond int64 lie outside of every volume.
    limited = np.minimum(values, np.iinfo(np.int64).max) if values.dtype == np.uint64 else values
    return limited.astype(np.int64), np.ones(len(values), np.bool_)


def _open_cache(volume: Volume, folder: str | PathLike[str] | None, budget_bytes: int) -> ChunkCache:
    if folder is None:
        return MemoryCache()
    disk = DiskCache(Path(folder), budget_bytes=budget_bytes)
    return disk.of_scale(volume.url, volume.scale.fingerprint)


def _no_progress(chunks: int, received: int) -> None:
    pass
