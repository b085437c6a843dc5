"""Roots from a graph server, without a server of your own: `make demo-graphene`.

Grows a small watershed with true graphene ids, serves its graph on this machine, splits one neuron
and merges two, and then runs the commands that a lab would run: labels at a time before the edits,
and a refresh to a time after them.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.show import format_rows
from voxelprobe.testing.graph_model import ChunkedGraph, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.segmentation import neurite_segmentation
from voxelprobe.testing.volumes import write_volume

SHAPE = (192, 160, 96)
OFFSET = (100, 200, 30)
RESOLUTION = (8, 8, 40)
CREATED = 1_700_000_000.0  # 2023-11-14T22:13:20Z
BEFORE, SPLIT, MERGE, AFTER = "2023-11-14T22:20:00Z", CREATED + 1000, CREATED + 2000, "2023-11-14T23:00:00Z"


def run(*words: str) -> None:
    """Show a command and run it."""
    print("$ luigi --module pipeline", *words, flush=True)
    subprocess.run([Path(sys.executable).with_name("luigi"), "--module", "pipeline", *words], check=True)


def main() -> None:
    """Run the demo in the folder that the command line names."""
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    watershed = graphene_watershed(
        neurite_segmentation(SHAPE, seed=3), (64, 64, 32), voxel_offset=OFFSET, piece_size=(16, 16, 16)
    )
    write_volume(folder / "watershed", watershed.labels, voxel_offset=OFFSET, resolution=RESOLUTION,
                 encoding="compressed_segmentation", chunk_size=(32, 32, 16), compress="gzip")
    voxels = np.random.default_rng(0).integers(0, SHAPE, (2000, 3)) + OFFSET
    points = {"id": np.arange(len(voxels)), "x": voxels[:, 0], "y": voxels[:, 1], "z": voxels[:, 2]}
    pq.write_table(pa.table(points), folder / "points.parquet")
    graph = ChunkedGraph.from_supervoxels(watershed.ids, watershed.objects, layout=watershed.layout, created=CREATED)
    neuron = int(graph.roots[3])
    supervoxels = graph.members(neuron)
    graph.split(neuron, supervoxels[: len(supervoxels) // 2], at=SPLIT)
    graph.merge([int(graph.roots[5]), int(graph.roots[7])], at=MERGE)
    workspace = ("--workspace", f"{folder}/workspace")
    old, new = f"{folder}/before.parquet", f"{folder}/after.parquet"
    with GraphServer(graph, data_dir=folder / "watershed") as server:
        run("SamplePoints", "--volume", server.cloudpath, "--points", f"{folder}/points.parquet",
            "--timestamp", BEFORE, "--output", old, *workspace)
        print(format_rows(Path(old), 5), "\n", flush=True)
        run("RefreshRoots", "--table", old, "--timestamp", AFTER, "--output", new, *workspace)
    print(format_rows(Path(f"{folder}/after-changes.parquet"), 5))


if __name__ == "__main__":
    main()
