"""Every encoding from every kind of store, sound and damaged, held against decoders that aren't ours.

The oracles are CloudVolume's decoding of single chunks, and TensorStore for zarr and n5.
"""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe import sample_points
from voxelprobe.codecs import ENCODINGS
from voxelprobe.testing.contracts import call_in_children
from voxelprobe.testing.http_store import HttpStore
from voxelprobe.testing.volumes import write_volume

SHAPE, CHUNK = (40, 20, 12), (16, 16, 8)
POSITIONS = list(itertools.product(range(3), range(2), range(2)))
DTYPES = {"jpeg": "uint8", "jxl": "uint8", "png": "uint8",
          "fpzip": "float32", "kempressed": "float32", "zfpc": "float32"}
PRECOMPUTED = [encoding for encoding in ENCODINGS if encoding not in ("zarr", "n5")]
ARRAYS = ["zarr2", "zarr3", "zarr3-sharded", "n5"]
# Grid places of the chunks that are damaged: one loses its end, one has bits flipped.
CUT, FLIPPED = (0, 0, 0), (1, 0, 0)


@pytest.fixture(params=["file", "http", "s3", "gs"])
def publish(request: pytest.FixtureRequest) -> Iterator[Callable[[Path], str]]:
    """Give a function that puts a folder into a store and returns its cloudpath."""
    if request.param == "file":
        yield lambda folder: f"file://{folder}"
    elif request.param == "http":
        with ExitStack() as stores:
            yield lambda folder: stores.enter_context(HttpStore(folder)).url
    else:
        bucket = request.getfixturevalue("s3" if request.param == "s3" else "gcs")
        yield lambda folder: bucket.upload(folder, "a/seg")


def make_array(encoding: str) -> np.ndarray[Any, Any]:
    """Return smooth pictures for encodings of pictures and floats, else segments with labels of 64 bits."""
    x, y, z = np.indices(SHAPE)
    if encoding in DTYPES:
        smooth = 100 + 80 * np.sin(x / 5) * np.cos(y / 7) + 4 * z
        return smooth.astype(DTYPES[encoding])
    return ((x // 7) * 1000 + (y // 5) * 10 + z // 4).astype(np.uint64) * np.uint64(2**56 + 12345)


def write(folder: Path, kind: str) -> None:
    """Write a volume by a writer that isn't ours, apart from the names of Precomputed chunks."""
    array = make_array(kind)
    if kind in PRECOMPUTED:
        write_volume(folder, array, encoding=kind, chunk_size=CHUNK)
    elif kind == "n5":
        import tensorstore

        store = tensorstore.open({
            "driver": "n5", "kvstore": f"file://{folder}/", "create": True,
            "metadata": {"dataType": "uint64", "dimensions": SHAPE, "blockSize": CHUNK,
                         "compression": {"type": "gzip"}},
        }).result()
        store.write(array).result()
    else:
        import zarr

        shards = tuple(2 * extent for extent in CHUNK) if kind == "zarr3-sharded" else None
        stored = zarr.create_array(
            folder, shape=SHAPE, chunks=CHUNK, shards=shards, dtype=array.dtype, zarr_format=int(kind[4]),
            dimension_names=["x", "y", "z"] if kind.startswith("zarr3") else None,
        )
        stored[:] = array
        if kind == "zarr2":
            (folder / ".zattrs").write_text(json.dumps({"_ARRAY_DIMENSIONS": ["x", "y", "z"]}))


def box(position: tuple[int, ...]) -> tuple[slice, ...]:
    return tuple(slice(p * c, min((p + 1) * c, s)) for p, c, s in zip(position, CHUNK, SHAPE, strict=True))


def chunk_file(folder: Path, kind: str, position: tuple[int, int, int]) -> Path:
    """Return the file of a chunk, or of the shard that it is in."""
    if kind in PRECOMPUTED:
        return folder / "4_4_40" / "_".join(f"{part.start}-{part.stop}" for part in box(position))
    names = [str(p // (2 if kind == "zarr3-sharded" else 1)) for p in position]
    return folder / {"zarr2": ".".join(names), "n5": "/".join(names)}.get(kind, "/".join(["c", *names]))


def decode(folder: Path, kind: str, position: tuple[int, int, int]) -> np.ndarray[Any, Any]:
    """Return a chunk, shape (x, y, z), as the oracle decodes it."""
    where = box(position)
    if kind in PRECOMPUTED:
        from cloudvolume import chunks

        array = make_array(kind)
        shape = (*(part.stop - part.start for part in where), 1)
        stored = chunk_file(folder, kind, position).read_bytes()
        return np.array(chunks.decode(stored, kind, shape, array.dtype, (8, 8, 8)))[..., 0]
    import tensorstore

    driver = "n5" if kind == "n5" else kind[:5].removesuffix("2")
    return np.array(tensorstore.open({"driver": driver, "kvstore": f"file://{folder}/"}).result()[where].read().result())


def sample(cloudpath: str, kind: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the label and status of every voxel, both of shape SHAPE."""
    prefix = {"n5": "n5://"}.get(kind, "" if kind in PRECOMPUTED else f"{kind[:5]}://")
    points = np.indices(SHAPE).reshape(3, -1).T
    labels, status = sample_points(f"{prefix}{cloudpath}", points, return_status=True)
    return labels.data.reshape(SHAPE), status.reshape(SHAPE)


@pytest.mark.parametrize("kind", [*PRECOMPUTED, *ARRAYS])
def test_every_voxel(tmp_path: Path, publish: Callable[[Path], str], kind: str) -> None:
    """Every voxel has the value that the oracle decodes, bit for bit, and the status ok."""
    write(tmp_path / "seg", kind)
    labels, status = sample(publish(tmp_path / "seg"), kind)
    assert (status == "ok").all()
    assert labels.dtype == make_array(kind).dtype
    for position in POSITIONS:
        np.testing.assert_array_equal(labels[box(position)], decode(tmp_path / "seg", kind, position))


@pytest.mark.parametrize("kind", [*PRECOMPUTED, *ARRAYS])
def test_damaged_chunks(tmp_path: Path, publish: Callable[[Path], str], kind: str) -> None:
    """A chunk without its end is corrupt, one with flipped bits too or what the oracle makes of it; others are ok."""
    write(tmp_path / "seg", kind)
    sound = {position: decode(tmp_path / "seg", kind, position) for position in POSITIONS}
    shard = 2 if kind == "zarr3-sharded" else 1
    flipped = tuple(shard * p for p in FLIPPED)
    cut_file, flipped_file = (chunk_file(tmp_path / "seg", kind, where) for where in (CUT, flipped))
    cut_file.write_bytes(cut_file.read_bytes()[: cut_file.stat().st_size * 2 // 3])
    content = bytearray(flipped_file.read_bytes())
    for place in (0.4, 0.6, 0.9):
        content[int(len(content) * place)] ^= 0x10
    flipped_file.write_bytes(content)
    labels, status = sample(publish(tmp_path / "seg"), kind)
    for position, expected in sound.items():
        where = box(position)
        together = tuple(p // shard for p in position)
        if together == CUT:
            assert (status[where] == "corrupt_chunk").all()
        elif together == FLIPPED:
            if (status[where] == "ok").all():
                (damaged,) = call_in_children(partial(decode, tmp_path / "seg", kind), [position])
                assert isinstance(damaged, np.ndarray), damaged
                np.testing.assert_array_equal(labels[where], damaged)
            else:
                assert (status[where] == "corrupt_chunk").all()
        else:
            assert (status[where] == "ok").all()
            np.testing.assert_array_equal(labels[where], expected)
