"""Tables of points for the volumes that are measured: Parquet, columns x, y, z in voxels, the same for the same seed.

`python -m benchmarks.tables FILE --size 1024,1024,512 --points 1000000` writes one.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.volumes import Volume

ROWS = 1 << 20
SCHEMA = pa.schema([("x", pa.int64()), ("y", pa.int64()), ("z", pa.int64())])


def write_random(path: Path, size: Sequence[int], points: int, seed: int = 1) -> Path:
    """Write points that are anywhere in a volume, a row group at a time, unless they are there."""
    def draw() -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        for begin in range(0, points, ROWS):
            yield rng.integers(0, size, (min(ROWS, points - begin), 3))

    return _write(path, draw)


def write_in_chunks(path: Path, volume: Volume, chunks: int, points_a_chunk: int, seed: int = 1) -> Path:
    """Write points in as many different chunks, anywhere in each, in no order, unless they are there."""
    def draw() -> Iterator[Any]:
        rng = np.random.default_rng(seed)
        chosen = rng.choice(volume.chunks, chunks, replace=False).repeat(points_a_chunk)
        rng.shuffle(chosen)
        corner = np.stack(np.unravel_index(chosen, volume.grid), 1) * volume.chunk
        yield corner + rng.integers(0, volume.chunk, (len(chosen), 3))

    return _write(path, draw)


def read_voxels(path: Path) -> Any:
    """Return the points of a table, shape (n, 3), int64."""
    table = pq.read_table(path, columns=SCHEMA.names)
    return np.stack([table[name].to_numpy() for name in SCHEMA.names], 1)


def count_rows(path: Path) -> int:
    """Return how many points a table has."""
    return int(pq.read_metadata(path).num_rows)


def iterate_voxels(path: Path, columns: Sequence[str] = ()) -> Iterator[tuple[Any, pa.RecordBatch]]:
    """Yield the points of a table in batches, shape (n, 3), each with further columns."""
    with pq.ParquetFile(path) as file:
        for batch in file.iter_batches(ROWS, columns=[*SCHEMA.names, *columns]):
            yield np.stack([batch.column(name).to_numpy() for name in SCHEMA.names], 1), batch


def _write(path: Path, draw: Callable[[], Iterator[Any]]) -> Path:
    if path.exists():
        return path
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_suffix(".part")
    # A dictionary of coordinates is time spent for nothing.
    with pq.ParquetWriter(part, SCHEMA, use_dictionary=False) as writer:
        for voxels in draw():
            columns = [pa.array(np.ascontiguousarray(voxels[:, axis])) for axis in range(3)]
            writer.write_table(pa.table(columns, schema=SCHEMA), row_group_size=ROWS)
    part.rename(path)
    return path


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("file", type=Path)
    parser.add_argument("--size", default="1024,1024,512", help="of the volume, in voxels")
    parser.add_argument("--points", type=int, default=1_000_000)
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    print(write_random(options.file, [int(n) for n in options.size.split(",")], options.points, options.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
