"""Build the demo next to this file: a small volume and a table of synapses on it.

    python demo/make_demo.py [folder]

The volume is synthetic. The points show every status that a volume without a chunked graph can give, but
`corrupt_chunk`.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from voxelprobe.testing.segmentation import neurite_segmentation
from voxelprobe.testing.volumes import write_volume

SHAPE = (250, 240, 100)
VOXEL_OFFSET = (1201, 803, 52)
RESOLUTION = (16, 16, 40)
CHUNK_SIZE = (64, 64, 64)
# The last chunk of mip 0 is not stored.
MISSING_CHUNK = (3, 3, 1)
POINTS = 2000
ON_BACKGROUND = 100


def main(folder: Path) -> None:
    """Write `volume/` and `synapses.parquet` into `folder`."""
    labels = neurite_segmentation(SHAPE, seed=2026, large_ids=True)
    write_volume(folder / "volume", labels, encoding="compressed_segmentation", chunk_size=CHUNK_SIZE,
                 voxel_offset=VOXEL_OFFSET, resolution=RESOLUTION, compress="gzip", skip_chunks=[MISSING_CHUNK],
                 mips=1)

    rng = np.random.default_rng(2026)
    voxels = (rng.random((3 * POINTS, 3)) * SHAPE).astype(np.int64)
    on_neurite = labels[tuple(voxels.T)] != 0
    voxels = np.concatenate([voxels[~on_neurite][:ON_BACKGROUND], voxels[on_neurite][: POINTS - ON_BACKGROUND]])
    voxels = voxels[np.argsort(rng.random(POINTS))]
    # Eighths of a voxel times a whole resolution are exact in binary: no point lies near a border by rounding.
    inside = (1 + np.floor(rng.random((POINTS, 3)) * 7)) / 8
    points_nm = (voxels + VOXEL_OFFSET + inside) * RESOLUTION
    points_nm[101] = (0, 0, 0)
    points_nm[707, 2] += 1e6
    points_nm[1303, 0] = VOXEL_OFFSET[0] * RESOLUTION[0] - 1
    points_nm[1501, 1] = np.nan
    points_nm[1907, 0] = np.inf
    null = np.zeros((POINTS, 3), dtype=bool)
    null[404] = True

    table = pa.table({
        "id": pa.array(np.arange(POINTS, dtype=np.int64) + 52_000_001),
        **{name: pa.array(points_nm[:, axis], mask=null[:, axis]) for axis, name in enumerate("xyz")},
        "type": pa.array(np.where(rng.random(POINTS) < 0.8, "excitatory", "inhibitory").tolist(), pa.string()),
        "size": pa.array(np.round(40 + 400 * rng.random(POINTS) ** 2, 1)),
    })
    pq.write_table(table, folder / "synapses.parquet", compression="zstd")


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else Path(__file__).parent)
