"""The `info` of a chunked graph, as its server sends it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from voxelprobe.testing.graph_layout import LAYER_BITS, GraphLayout

Version = Literal[2, 3]


def graph_info(layout: GraphLayout, data_dir: Path | str, watershed_info: Mapping[str, Any] | None = None, *,
               version: Version = 3, ocdbt_seg: bool = False) -> dict[str, Any]:
    """Return a graph's `info`: the watershed's, and what the server adds to it."""
    if watershed_info is None:
        if isinstance(data_dir, str):
            raise ValueError(f"{data_dir} is not read here: give a folder, or watershed_info beside it")
        watershed_info = json.loads((data_dir / "info").read_text())
    section: dict[str, Any] = {
        # A constant on real servers too, whatever the volume.
        "bounding_box": [2048, 2048, 512],
        "chunk_size": list(layout.chunk_size),
        "cv_mip": layout.cv_mip,
        "n_bits_for_layer_id": LAYER_BITS,
        "n_layers": layout.n_layers,
        "spatial_bit_masks": layout.spatial_bit_masks,
    }
    if version == 3:
        section |= {"ocdbt_seg": ocdbt_seg, "ocdbt_path": "file:///ocdbt" if ocdbt_seg else None}
    return {
        **(watershed_info or {}),
        "app": {"supported_api_versions": [0, 1]},
        "chunks_start_at_voxel_offset": layout.chunks_start_at_voxel_offset,
        "data_dir": data_dir if isinstance(data_dir, str) else f"file://{data_dir.resolve()}",
        "graph": section,
        "sharded_mesh": True,
        "verify_mesh": False,
    }
