"""The targets, by name; each module here has a `TARGETS`."""

from __future__ import annotations

import importlib

from fuzz.target import Target

# A target's name -> its module here and the product's modules whose coverage guides the fuzzer.
_PLACES: dict[str, tuple[str, tuple[str, ...]]] = {
    "compressed_segmentation": ("segmentation", ("voxelprobe.codecs.compressed_segmentation",)),
    "crackle": ("segmentation", ("voxelprobe.codecs.crackle",)),
    "compresso": ("sliced", ("voxelprobe.codecs.compresso",)),
    "png": ("pictures", ("voxelprobe.codecs.png",)),
    "jpeg": ("pictures", ("voxelprobe.codecs.jpeg",)),
    "jxl": ("pictures", ("voxelprobe.codecs.jxl",)),
    "zfpc": ("floats", ("voxelprobe.codecs.zfpc",)),
    "blosc_frame": ("arrays", ("voxelprobe.codecs.blosc_frame",)),
    "zarr": ("arrays", ("voxelprobe.codecs.zarr", "voxelprobe.codecs.parts", "voxelprobe.codecs.compression",
                        "voxelprobe.codecs.decompressors")),
    "n5": ("arrays", ("voxelprobe.codecs.n5", "voxelprobe.codecs.parts")),
    "wrappers": ("wrappers", ("voxelprobe.transport.wrappers",)),
    "shard_index": ("indices", ("voxelprobe.sharding.index",)),
    "minishard_index": ("indices", ("voxelprobe.sharding.index",)),
    "box_index": ("indices", ("voxelprobe.sharding.boxes",)),
    "info": ("metadata", ("voxelprobe.volume.info", "voxelprobe.volume.fields", "voxelprobe.volume.grid")),
    "zarr_metadata": ("documents", ("voxelprobe.volume",)),
    "n5_metadata": ("documents", ("voxelprobe.volume",)),
    "cache_rows": ("state", ("voxelprobe.cache.region_file",)),
    "cache_file": ("state", ("voxelprobe.cache.region_file",)),
    "manifests": ("state", ("voxelprobe.run.manifests",)),
    "answers": ("answers", ("voxelprobe.transport.answers",)),
    "csv_types": ("tables", ("voxelprobe.points.csv_types",)),
}
NAMES = tuple(_PLACES)


def load_target(name: str) -> Target:
    """Return a target."""
    target: Target = importlib.import_module(f"{__name__}.{_PLACES[name][0]}").TARGETS[name]
    return target


def modules_of(name: str) -> tuple[str, ...]:
    """Return the modules that a target is about."""
    return _PLACES[name][1]
