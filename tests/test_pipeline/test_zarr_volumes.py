"""The command line over zarr and n5 volumes: values, statuses, resume, and what a run asks a store for."""

from __future__ import annotations

import json
import signal
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from voxelprobe.testing.faults import Fault
from voxelprobe.testing.http_store import HttpStore, Request

SHAPE, CHUNK, OFFSET = (72, 50, 40), (16, 16, 8), (10, 20, 4)


def noise(dtype: str = "uint64", shape: tuple[int, ...] = SHAPE) -> Any:
    rng = np.random.default_rng(7)
    if np.dtype(dtype).kind == "f":
        return rng.normal(0, 100, shape).astype(dtype)
    if dtype == "bool":
        return rng.random(shape) < 0.5
    limits = np.iinfo(dtype)
    return rng.integers(max(limits.min, 1), limits.max, shape, dtype=dtype, endpoint=True)


def write_level(path: Path, array: Any, kind: str, **options: Any) -> None:
    """Write an array (x, y, z[, c]): zarr in the order [c, ]z, y, x by zarr-python, n5 by TensorStore."""
    if kind == "n5":
        import tensorstore

        metadata = {"dimensions": list(array.shape), "blockSize": list(CHUNK), "dataType": array.dtype.name,
                    "compression": {"type": "gzip"}} | options
        spec = {"driver": "n5", "kvstore": {"driver": "file", "path": f"{path}/"}, "metadata": metadata}
        tensorstore.open(spec, create=True).result().write(array).result()
        return
    import zarr

    chunks = (*CHUNK, 1)[: array.ndim][::-1]
    if kind == "shards":
        options["shards"] = tuple(2 * size for size in chunks)
    stored = zarr.create_array(path, shape=array.T.shape, dtype=array.dtype, chunks=chunks,
                               zarr_format=2 if kind == "zarr2" else 3, **options)
    stored[...] = array.T


def write_pyramid(path: Path, array: Any, kind: str) -> str:
    """Return the cloudpath of a volume of two scales that begins at `OFFSET`, voxels of 4 x 4 x 40 nm."""
    levels = [array, array[::2, ::2, ::2]]
    datasets, transforms = [], []
    for i, level in enumerate(levels):
        size = np.array([40.0, 4.0, 4.0]) * 2**i
        place = np.array(OFFSET[::-1]) * [40.0, 4.0, 4.0] + (size - [40, 4, 4]) / 2
        transforms.append({"axes": list("zyx"), "units": ["nm"] * 3, "scale": size.tolist(),
                           "translate": place.tolist()})
        datasets.append({"path": f"s{i}", "coordinateTransformations": [
            {"type": "scale", "scale": (size / 1000).tolist()},
            {"type": "translation", "translation": (place / 1000).tolist()}]})
        write_level(path / f"s{i}", level, kind)
    axes = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    multiscales = [{"version": "0.4", "axes": axes, "datasets": datasets}]
    if kind == "zarr2":
        (path / ".zattrs").write_text(json.dumps({"multiscales": multiscales}))
    elif kind == "n5":
        multiscales = [{"datasets": [{"path": f"s{i}", "transform": known} for i, known in enumerate(transforms)]}]
        (path / "attributes.json").write_text(json.dumps({"multiscales": multiscales}))
    else:
        attributes = {"ome": {"version": "0.5", "multiscales": multiscales}}
        (path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "group", "attributes": attributes}))
    return f"{'zarr3' if kind == 'shards' else kind}://file://{path}"


def voxels(count: int = 2000) -> Any:
    """Return voxels (n, 3) of mip 0, some outside."""
    return np.random.default_rng(5).integers(-1, np.array(SHAPE) + 1, (count, 3)) + OFFSET


@pytest.mark.parametrize(("kind", "mip"), [("zarr2", 1), ("zarr3", 0), ("shards", 1), ("n5", 1)])
def test_labels_and_statuses(kind: str, mip: int, cli: Any, tmp_path: Path, write_points: Any) -> None:
    """A run over a pyramid has each point's value at the mip, with the volume's offset."""
    array = noise()
    cloudpath = write_pyramid(tmp_path / "v", array, kind)
    points = voxels()
    command: dict[str, Any] = {"volume": cloudpath, "points": write_points(tmp_path / "p.npy", points), "mip": mip}
    outcome = cli.run(**command)
    assert outcome.code == 0, outcome.err
    table = pq.read_table(cli.result)
    level = array[:: 2**mip, :: 2**mip, :: 2**mip]
    places = points // 2**mip - np.array(OFFSET) // 2**mip
    inside = ((places >= 0) & (places < level.shape)).all(axis=1)
    assert 0 < inside.sum() < len(inside)
    assert table["status"].to_pylist() == np.where(inside, "ok", "out_of_bounds").tolist()
    assert table.schema.field("label").type == pa.uint64()
    expected = level.astype(object)[tuple(np.where(inside[:, None], places, 0).T)]
    expected[~inside] = None
    assert table["label"].to_pylist() == expected.tolist()


@pytest.mark.parametrize("dtype", ["float64", "float16", "bool"])
def test_dtypes_go_through(dtype: str, cli: Any, tmp_path: Path, write_points: Any) -> None:
    """Values of types that Precomputed volumes rarely have or lack come out exactly; booleans as uint8."""
    array = noise(dtype)
    write_level(tmp_path / "v", array, "zarr3")
    points = np.random.default_rng(5).integers(0, SHAPE, (500, 3))
    outcome = cli.run(volume=f"zarr://file://{tmp_path}/v", points=write_points(tmp_path / "p.parquet", points))
    assert outcome.code == 0, outcome.err
    column = pq.read_table(cli.result)["label"]
    assert column.type == pa.from_numpy_dtype("uint8" if dtype == "bool" else dtype)
    assert column.to_numpy().tobytes() == array[tuple(points.T)].tobytes()


@pytest.mark.parametrize("kind", ["shards"])
def test_channels_and_absent_chunks(kind: str, cli: Any, tmp_path: Path, write_points: Any) -> None:
    """Each channel has a column; what isn't stored has the fill value and is counted; as an error the run ends."""
    array = noise("uint16", (*SHAPE, 2))
    array[64:, 48:, 32:] = 5
    write_level(tmp_path / "v", array, kind, fill_value=5)
    points = np.random.default_rng(5).integers(0, SHAPE, (3000, 3))
    command = {"volume": f"zarr://file://{tmp_path}/v", "points": write_points(tmp_path / "p.parquet", points)}
    outcome = cli.run(**command)
    assert outcome.code == 0, outcome.err
    table = pq.read_table(cli.result)
    expected = array[tuple(points.T)]
    for channel in range(2):
        np.testing.assert_array_equal(table[f"label_{channel}"].to_numpy(), expected[:, channel])
    fetched = [json.loads(path.read_text())["facts"]["absent"] for path in cli.run_folder.glob("fetch/*.json")]
    assert sum(fetched) == 1
    outcome = cli.run(**command, missing_chunks="error", output=tmp_path / "o.parquet")
    assert outcome.code != 0
    assert "chunk 64-72_48-50_32-40 of zarr" in outcome.err
    assert "the volume's fill value 5" in outcome.err


@pytest.mark.parametrize(("kind", "workers"), [("n5", 2), ("shards", 1)])
def test_killed_while_fetching(kind: str, workers: int, cli: Any, other_cli: Any, tmp_path: Path, write_points: Any,
                               wait_until: Any) -> None:
    """Killed with -9 while chunks are fetched, the same command gives the table of a run that wasn't."""
    array = noise()
    cloudpath = write_pyramid(tmp_path / "v", array, kind).partition("://")[0]
    points = write_points(tmp_path / "p.npy", voxels(5000))
    with HttpStore(tmp_path / "v") as store:
        volume = f"{cloudpath}://{store.url}"
        assert other_cli.run(volume=volume, points=points).code == 0
        asked = Counter((request.path, request.range) for request in store.requests
                        if request.path.startswith("s0/") and not request.path.endswith(("json", ".zarray", ".zattrs")))
        assert set(asked.values()) == {1}
        store.clear()

        def stall(request: Request) -> Fault | None:
            return Fault("stall", seconds=600) if len(store.requests) > 22 else None

        store.fault_for = stall
        process = cli.start(volume=volume, points=points, fetch_threads=2, workers=workers)
        wait_until(lambda: len(store.requests) >= 24, "a fetch that stalls", pause=0.02)
        assert cli.kill(process).code == -signal.SIGKILL
        store.fault_for = None
        outcome = cli.run(volume=volume, points=points, workers=workers)
        assert outcome.code == 0, outcome.err
    assert cli.result.read_bytes() == other_cli.result.read_bytes()


@pytest.mark.parametrize("kind", ["zarr2", "shards"])
def test_a_damaged_chunk_is_named_and_mended(kind: str, cli: Any, tmp_path: Path, write_points: Any) -> None:
    """A damaged object costs its own points, is named, and the same command reads it when it is whole again."""
    array = noise()
    cloudpath = write_pyramid(tmp_path / "v", array, kind)
    path = tmp_path / "v/s0" / {"zarr2": "1.1.1", "zarr3": "c/1/1/1", "shards": "c/1/1/1", "n5": "1/1/1"}[kind]
    good = path.read_bytes()
    path.write_bytes(good[:-2])
    points = voxels()
    command = {"volume": cloudpath, "points": write_points(tmp_path / "p.npy", points)}
    outcome = cli.run(**command)
    assert outcome.code != 0
    begin = tuple(o + size * (2 if kind == "shards" else 1) for o, size in zip(OFFSET, CHUNK, strict=True))
    assert f"chunk {begin[0]}-{begin[0] + 16}_{begin[1]}-" in outcome.err
    table = pq.read_table(cli.result)
    whole = np.array(CHUNK) * (2 if kind == "shards" else 1)
    damaged = ((points - OFFSET) // whole == 1).all(axis=1) & ((points - OFFSET) < SHAPE).all(axis=1)
    status = np.array(table["status"].to_pylist())
    assert set(status[damaged]) == {"corrupt_chunk"}
    assert "corrupt_chunk" not in set(status[~damaged])
    path.write_bytes(good)
    outcome = cli.run(**command)
    assert outcome.code == 0, outcome.err
    labels = pq.read_table(cli.result)["label"].to_pylist()
    inside = np.flatnonzero(((points >= OFFSET) & (points - OFFSET < SHAPE)).all(axis=1))
    assert [labels[i] for i in inside] == array[tuple((points[inside] - OFFSET).T)].tolist()


@pytest.mark.parametrize(("document", "said"), [
    ({"codecs": [{"name": "bytes"}, {"name": "pcodec"}]}, "codec 'pcodec' can't be read"),
    ({"data_type": "complex64"}, "data_type 'complex64' is not one of"),
])
def test_what_cannot_be_read_is_said_before_anything_is_fetched(
    document: dict[str, Any], said: str, cli: Any, tmp_path: Path, write_points: Any
) -> None:
    """An array that can't be read is named with the reason, without a traceback or a plan."""
    write_level(tmp_path / "v", noise("uint8"), "zarr3")
    path = tmp_path / "v/zarr.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | document))
    outcome = cli.run(volume=f"zarr3://file://{tmp_path}/v", points=write_points(tmp_path / "p.npy", voxels(10)))
    assert outcome.code != 0
    assert said in outcome.err
    assert "Traceback" not in outcome.err
    assert not (cli.workspace / "runs").exists()
