"""From a cloudpath and a mip to all that the stages need of a volume."""

from __future__ import annotations

import json
from contextlib import closing
from dataclasses import dataclass

from voxelprobe.codecs import load_reader
from voxelprobe.codecs.protocol import PointReader
from voxelprobe.errors import CorruptDataError, InputError
from voxelprobe.graphene.table import GraphTable, fetch_table
from voxelprobe.locations import Location
from voxelprobe.transport.sources import RetryingSource, open_source
from voxelprobe.volume.grid import ChunkGrid, Regions
from voxelprobe.volume.info import Scale, VolumeInfo, parse_info
from voxelprobe.volume.url import is_graphene, parse_cloudpath


@dataclass(frozen=True, slots=True)
class Volume:
    """One scale of a volume: what it is. It holds no connection; `open_source` makes one."""

    location: Location
    info: VolumeInfo
    mip: int
    scale: Scale
    grid: ChunkGrid
    regions: Regions
    graph: GraphTable | None = None

    @property
    def url(self) -> str:
        """Return the cloudpath of the stored volume in one form; of a graphene volume, its watershed's."""
        return self.location.url

    def chunk_label(self, chunk: int) -> str:
        """Return how a message names a chunk: `chunk 0-64_64-128_0-64 of gs://bucket/seg/8_8_40`."""
        import numpy as np

        x, y, z = self.grid.positions(np.array([chunk]))[0].tolist()
        return f"chunk {self.grid.chunk_name((x, y, z))} of {self.url}/{self.scale.key}"

    def open_source(self, *, threads: int) -> RetryingSource:
        """Return a source of the volume's objects."""
        return open_source(self.location, threads=threads)

    def load_reader(self) -> PointReader:
        """Return the point reader of the scale's encoding."""
        return load_reader(self.scale.encoding, f"{self.url}/{self.scale.key}")


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
        location, info = parse_cloudpath(graph.layout.data_dir), parse_info(document, graph.url.url)
    else:
        location = parse_cloudpath(cloudpath)
        with closing(open_source(location, threads=1)) as source:
            info = fetch_info(source)
    index, scale = info.scale_at(mip, location.url)
    volume = Volume(location, info, index, scale, ChunkGrid.of(scale), Regions.of(scale), graph)
    if graph is not None and (scale.num_channels != 1 or scale.dtype != "<u8"):
        raise InputError(f"{graph.url.url}: expected supervoxels of one channel of uint64, the info has "
                         f"{scale.num_channels} of {scale.dtype.name}")
    volume.load_reader()  # says now, and not after the plan, that a package is missing
    return volume


def fetch_info(source: RetryingSource) -> VolumeInfo:
    """Return the volume at a source.

    Raises
    ------
    InputError
        If there is none, or its `info` can't be understood.
    """
    try:
        payload = source.fetch_stripped("info")
    except CorruptDataError as error:
        raise InputError(f"{source.url}/info can't be read: {error}") from error
    if payload is None:
        raise InputError(f"no volume at {source.url}: expected a file named info there, found none")
    try:
        document = json.loads(payload)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source.url}/info: expected JSON, found {payload[:40]!r}") from error
    return parse_info(document, source.url)
