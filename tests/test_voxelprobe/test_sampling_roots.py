from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from voxelprobe import InputError, sample_points
from voxelprobe.testing.graph_model import ChunkedGraph, graphene_watershed
from voxelprobe.testing.graph_server import GraphServer
from voxelprobe.testing.segmentation import neurite_segmentation
from voxelprobe.testing.volumes import write_volume

CREATED = 1_700_000_000.0


def test_roots_of_points(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A notebook gets supervoxels, or with a timestamp their roots; before the graph's first day there are none."""
    monkeypatch.setenv("CLOUD_VOLUME_DIR", str(tmp_path / "secrets"))
    shape = (48, 40, 24)
    watershed = graphene_watershed(neurite_segmentation(shape, seed=1), (16, 16, 8))
    write_volume(tmp_path / "seg", watershed.labels, encoding="compressed_segmentation", chunk_size=(16, 16, 8))
    graph = ChunkedGraph.from_supervoxels(watershed.ids, watershed.objects, layout=watershed.layout, created=CREATED)
    points = np.random.default_rng(0).integers(0, shape, (400, 3))
    supervoxels = watershed.labels[tuple(points.T)]
    with GraphServer(graph, data_dir=tmp_path / "seg", version=2) as server:
        assert (sample_points(server.cloudpath, points) == supervoxels).all()
        roots, status = sample_points(server.cloudpath, points, timestamp=f"{CREATED + 5:.3f}", return_status=True)
        early, missing = sample_points(server.cloudpath, points, timestamp=f"{CREATED - 5:.3f}", return_status=True)
    truth = np.where(supervoxels == 0, np.uint64(0), graph.roots_at(supervoxels, CREATED + 5))
    assert (roots == truth).all()
    assert set(status) == {"ok"}
    assert (missing == np.where(supervoxels == 0, "ok", "no_root")).all()
    assert (early.mask == (supervoxels != 0)).all()
    with pytest.raises(InputError, match="has no roots"):
        sample_points(f"file://{tmp_path}/seg", points, timestamp="now")
