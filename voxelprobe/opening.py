"""From a cloudpath and a mip to all that the stages need of a volume."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from typing import Any

from voxelprobe.codecs import load_reader
from voxelprobe.codecs.protocol import PointReader
from voxelprobe.errors import CorruptDataError, InputError, UnsupportedError
from voxelprobe.graphene.table import GraphTable, fetch_table
from voxelprobe.transport.sources import RetryingSource, open_source
from voxelprobe.volume.formats import read_volume
from voxelprobe.volume.grid import ChunkGrid, Regions
from voxelprobe.volume.info import parse_info
from voxelprobe.volume.scale import Scale, VolumeInfo
from voxelprobe.volume.url import Cloudpath, is_graphene, parse_cloudpath


@dataclass(frozen=True, slots=True)
class Volume:
    """One scale of a volume: what it is. It holds no connection; `open_source` makes one."""

    cloudpath: Cloudpath
    info: VolumeInfo
    mip: int
    scale: Scale
    grid: ChunkGrid
    regions: Regions
    graph: GraphTable | None = None

    @property
    def url(self) -> str:
        """Return the cloudpath of the stored volume in one form; of a graphene volume, its watershed's."""
        return self.cloudpath.url

    @property
    def scale_url(self) -> str:
        """Return how a message names this scale of it."""
        return f"{self.url}/{self.scale.key}".rstrip("/")

    def chunk_label(self, chunk: int) -> str:
        """Return how a message names a chunk: `chunk 0-64_64-128_0-64 of gs://bucket/seg/8_8_40`."""
        import numpy as np

        x, y, z = self.grid.positions(np.array([chunk]))[0].tolist()
        return f"chunk {self.grid.chunk_name((x, y, z))} of {self.scale_url}"

    def open_source(self, *, threads: int) -> RetryingSource:
        """Return a source of the volume's objects."""
        named_by_user = self.graph is None or self.graph.names_as_user(self.cloudpath.location)
        return open_source(self.cloudpath.location, threads=threads, named_by_user=named_by_user)

    def load_reader(self) -> PointReader:
        """Return the point reader of the scale's encoding."""
        return load_reader(self.scale.encoding, self.scale_url)


def open_volume(cloudpath: str, *, mip: int | str = 0) -> Volume:
    """Return one scale of the volume at `cloudpath`.

    Parameters
    ----------
    cloudpath
        As CloudVolume takes it.
    mip
        The scale's index, or its resolution in nm as in `8,8,40`.

    Raises
    ------
    InputError
        If there is no volume, or no such scale.
    UnsupportedError
        If the scale's encoding isn't known, or its package is missing.
    AuthorizationError, TransportError
        If the store refuses or doesn't answer.
    """
    graph = None
    if is_graphene(cloudpath):
        graph, document = fetch_table(cloudpath)
        path, info = parse_cloudpath(graph.layout.data_dir), parse_info(document, graph.url.url)
    else:
        path = parse_cloudpath(cloudpath)
        with closing(open_source(path.location, threads=1)) as source:
            info = read_volume(path.kind, partial(fetch_json, source), path.url)
    index, scale = info.scale_at(mip, path.url)
    if graph is not None and path.kind != "precomputed":
        raise UnsupportedError(f"{graph.url.url}: expected a watershed in a Precomputed volume, found {path.url}")
    volume = Volume(path, info, index, scale, ChunkGrid.of(scale), Regions.of(scale), graph)
    if graph is not None and (scale.num_channels != 1 or scale.dtype != "<u8"):
        raise InputError(f"{graph.url.url}: expected supervoxels of one channel of uint64, the info has "
                         f"{scale.num_channels} of {scale.dtype.name}")
    volume.load_reader()  # says now, and not after the plan, that a package is missing
    return volume


def fetch_json(source: RetryingSource, name: str) -> Any:
    """Return a JSON document at a source, parsed, or None if there is none.

    One that isn't JSON is asked for twice more: it may have been cut on its way.

    Raises
    ------
    InputError
        If it can't be read.
    """
    for is_last in (False, False, True):
        try:
            payload = source.fetch_stripped(name)
        except CorruptDataError as error:
            raise InputError(f"{source.url}/{name} can't be read: {error}") from error
        if payload is None:
            return None
        try:
            return json.loads(payload)
        except (ValueError, RecursionError) as error:
            if is_last:
                raise InputError(f"{source.url}/{name}: expected JSON, found {payload[:40]!r}") from error
            source.traffic.add(retries=1)
    raise AssertionError("the last round returns or raises")
