"""Chunks as zarr-python and TensorStore write them, whose own reading of all voxels is what ours are held against."""

import json
from math import prod

import numpy as np
import pytest

from voxelprobe.codecs import n5, zarr
from voxelprobe.codecs.parts import pack_parts
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.testing.contracts import every_voxel

DTYPES = ("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float32", "float64", "bool",
          "float16")
BLOSC = {"cname": "zstd", "clevel": 5, "shuffle": "bitshuffle", "typesize": 2, "blocksize": 512}


def make_values(shape, dtype, seed=0):
    """Return small segments with the dtype's largest value and, of floats, NaN and infinity."""
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "b":
        return rng.integers(0, 2, shape).astype(bool)
    values = rng.integers(0, 100, 20).astype(dtype)
    if dtype.kind == "f":
        values[:3] = np.nan, np.inf, 0.1
    else:
        values[:2] = np.iinfo(dtype).max, np.iinfo(dtype).min
    return values[np.sort(rng.integers(0, 20, prod(shape))).reshape(shape)]


def check_chunks(reader, read, array, chunk, axes, **facts):
    """Hold every voxel of all chunks against the array, shape as `axes`; `read` gives a chunk by its position."""
    facts = {"axes": list(axes), "chunk": list(chunk), "codecs": [], "fill_value": 0, "parts": 1} | facts
    kept = [axis for axis in axes if axis >= 0]
    whole = array[tuple(0 if axis < 0 else slice(None) for axis in axes)]
    whole = np.moveaxis(whole.reshape(whole.shape + (1,) * (4 - len(kept))),
                        range(4), [*kept, *sorted({0, 1, 2, 3} - set(kept))])
    sizes = dict.fromkeys(range(4), (1, 1)) | {axis: (size, total) for axis, size, total
                                               in zip(axes, chunk, array.shape, strict=True)}
    if facts["parts"] > 1:
        sizes[3] = (whole.shape[3], whole.shape[3])
    counts = [-(-total // size) for size, total in (sizes[axis] for axis in range(4))]
    for position in np.ndindex(*counts[:3]):
        begin = [position[axis] * sizes[axis][0] for axis in range(3)]
        shape = tuple(min(sizes[axis][0], sizes[axis][1] - begin[axis]) for axis in range(3))
        parts = [read([{**dict(enumerate(position)), 3: part}.get(axis, 0) for axis in axes])
                 for part in range(facts["parts"])]
        payload = parts[0] if len(parts) == 1 else pack_parts(parts)
        layout = ChunkLayout(shape, whole.shape[3], array.dtype.newbyteorder("<"),
                             codecs=json.dumps(facts, sort_keys=True))
        expected = whole[tuple(slice(b, b + size) for b, size in zip(begin, shape, strict=True))]
        voxels = every_voxel(shape)
        for some in (voxels, voxels[::97]):
            labels = reader.read_points(payload, layout, some)
            assert np.array_equal(labels, expected[tuple(some.T)], equal_nan=array.dtype.kind == "f"), position


# --- zarr-python

V2_COMPRESSORS = [
    None, {"id": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 0},
    {"id": "blosc", "cname": "zstd", "clevel": 1, "shuffle": 2, "blocksize": 512}, {"id": "zstd", "level": 0},
    {"id": "gzip", "level": 1}, {"id": "zlib", "level": 1}, {"id": "lz4", "acceleration": 1}, {"id": "bz2", "level": 1},
    {"id": "lzma", "format": 1, "check": -1, "preset": 0, "filters": None},
]
V2_FILTERS = [None, [{"id": "delta", "dtype": "<u4"}],
              [{"id": "fixedscaleoffset", "offset": 0, "scale": 2, "dtype": "<u4", "astype": "<u8"},
               {"id": "shuffle", "elementsize": 8}]]


def write_v2(folder, array, chunk, *, order="C", compressor=None, filters=None):
    """Return a function that reads a chunk, and what of `.zarray` becomes `ChunkLayout.codecs`."""
    import numcodecs
    import zarr as package

    made = package.create_array(
        folder, shape=array.shape, chunks=chunk, dtype=array.dtype, zarr_format=2, order=order, fill_value=0,
        filters=[numcodecs.get_codec(config) for config in filters] if filters else None,
        compressors=numcodecs.get_codec(compressor) if compressor else None,
        config={"write_empty_chunks": True})
    made[...] = array
    assert np.array_equal(made[...], array, equal_nan=array.dtype.kind == "f")
    facts = json.loads((folder / ".zarray").read_text())
    rank = len(array.shape)
    return (lambda position: (folder / ".".join(map(str, position))).read_bytes()), {
        "chunk": facts["chunks"], "dtype": facts["dtype"],
        "order": list(range(rank))[::1 if facts["order"] == "C" else -1],
        "codecs": [*(facts["filters"] or []), *([facts["compressor"]] if facts["compressor"] else [])]}


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("dtype", DTYPES)
def test_zarr_python_v2_dtypes(tmp_path, dtype, order):
    """Every dtype in both byte orders and both orders of the axes is read as zarr-python reads it."""
    for number, sign in enumerate("<>"):
        array = make_values((11, 9, 10), dtype).astype(np.dtype(dtype).newbyteorder(sign))
        read, facts = write_v2(tmp_path / str(number), array, (4, 5, 6), order=order, compressor=V2_COMPRESSORS[1])
        check_chunks(zarr, read, array, axes=(2, 1, 0), **facts)


@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("compressor", V2_COMPRESSORS, ids=str)
@pytest.mark.parametrize("filters", V2_FILTERS, ids=["none", "delta", "two"])
def test_zarr_python_v2_codecs(tmp_path, compressor, filters, order):
    """Every compressor alone and behind filters is undone as zarr-python undoes it."""
    array = make_values((21, 20, 19), "uint32") % 1000
    read, facts = write_v2(tmp_path / "a", array, (16, 20, 15), order=order, compressor=compressor, filters=filters)
    check_chunks(zarr, read, array, axes=(2, 1, 0), **facts)


AXES = {
    "y x": ((20, 21), (8, 8), (1, 0), 1),
    "x y z": ((9, 10, 11), (4, 5, 6), (0, 1, 2), 1),
    "channels together": ((3, 5, 6, 7), (3, 4, 4, 4), (3, 2, 1, 0), 1),
    "channels apart": ((3, 5, 6, 7), (1, 4, 4, 4), (3, 2, 1, 0), 3),
    "channels by two": ((3, 5, 6, 7), (2, 4, 4, 4), (3, 2, 1, 0), 2),
    "channels last": ((7, 6, 5, 3), (4, 4, 4, 2), (0, 1, 2, 3), 2),
    "t c z y x": ((1, 2, 5, 6, 7), (1, 1, 4, 4, 4), (-1, 3, 2, 1, 0), 2),
    "t c z y x together": ((1, 2, 5, 6, 7), (1, 2, 4, 4, 4), (-1, 3, 2, 1, 0), 1),
}


@pytest.mark.parametrize("name", AXES)
def test_zarr_python_axes(tmp_path, name):
    """Two to five axes, channels in one chunk and apart, are read at the right voxels, in C and F order."""
    shape, chunk, axes, parts = AXES[name]
    array = np.arange(prod(shape), dtype="uint16").reshape(shape)
    for order in "CF":
        read, facts = write_v2(tmp_path / order, array, chunk, order=order, compressor=V2_COMPRESSORS[2])
        check_chunks(zarr, read, array, axes=axes, parts=parts, **facts)


def translate_v3(folder):
    """Return what of `zarr.json` becomes `ChunkLayout.codecs`."""
    facts = json.loads((folder / "zarr.json").read_text())
    order, dtype, codecs = list(range(len(facts["shape"]))), np.dtype(facts["data_type"]), []
    for codec in facts["codecs"]:
        name, configuration = codec["name"], codec.get("configuration", {})
        if name == "transpose":
            order = [order[axis] for axis in configuration["order"]]
        elif name == "bytes":
            dtype = dtype.newbyteorder({"big": ">", "little": "<"}[configuration.get("endian", "little")])
        else:
            codecs.append({"id": name.removeprefix("numcodecs."), **configuration})
    return {"chunk": facts["chunk_grid"]["configuration"]["chunk_shape"], "dtype": dtype.str, "order": order,
            "codecs": codecs}


def list_v3_codecs():
    from zarr.codecs import BloscCodec, Crc32cCodec, GzipCodec, ZstdCodec, numcodecs

    return {
        "none": (), "blosc": (BloscCodec(**BLOSC),), "blosc stored": (BloscCodec(typesize=4, clevel=0),),
        "gzip": (GzipCodec(level=1),), "zstd": (ZstdCodec(level=1),), "zstd checksum": (ZstdCodec(checksum=True),),
        "crc32c": (Crc32cCodec(),), "blosc crc32c": (BloscCodec(typesize=4, cname="lz4"), Crc32cCodec()),
        "crc32c gzip": (Crc32cCodec(), GzipCodec(level=1)),
        "shuffle zlib": (numcodecs.Shuffle(elementsize=4), numcodecs.Zlib(level=1)),
        "lz4": (numcodecs.LZ4(),), "bz2": (numcodecs.BZ2(),), "fletcher32": (numcodecs.Fletcher32(),),
        "adler32 crc32": (numcodecs.Adler32(), numcodecs.CRC32()),
    }


@pytest.mark.filterwarnings("ignore:Numcodecs codecs are not in the Zarr version 3 specification")
@pytest.mark.parametrize("name", ["none", "blosc", "blosc stored", "gzip", "zstd", "zstd checksum", "crc32c",
                                  "blosc crc32c", "crc32c gzip", "shuffle zlib", "lz4", "bz2", "fletcher32",
                                  "adler32 crc32"])
@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)], ids=str)
def test_zarr_python_v3(tmp_path, name, order):
    """Codecs of zarr v3, in both byte orders and behind a transpose, are undone as zarr-python undoes them."""
    import zarr as package
    from zarr.codecs import BytesCodec, TransposeCodec

    array = make_values((17, 20, 19), "uint32")
    for endian in ("little", "big"):
        folder = tmp_path / endian
        made = package.create_array(
            folder, shape=array.shape, chunks=(8, 10, 12), dtype=array.dtype, fill_value=0,
            filters=[TransposeCodec(order=order)] if order != (0, 1, 2) else None, serializer=BytesCodec(endian=endian),
            compressors=list_v3_codecs()[name], config={"write_empty_chunks": True})
        made[...] = array
        assert np.array_equal(made[...], array)
        check_chunks(zarr, lambda position, folder=folder: (folder / "c" / "/".join(map(str, position))).read_bytes(),
                     array, axes=(2, 1, 0), **translate_v3(folder))


# --- TensorStore

def write_by_tensorstore(driver, folder, metadata, array):
    import tensorstore as ts

    store = ts.open({"driver": driver, "kvstore": {"driver": "file", "path": str(folder)}, "metadata": metadata,
                     "store_data_equal_to_fill_value": True}, create=True).result()
    store.write(array).result()
    assert np.array_equal(store.read().result(), array, equal_nan=array.dtype.kind == "f")


@pytest.mark.parametrize("dtype", DTYPES)
def test_tensorstore_zarr3_dtypes(tmp_path, dtype):
    """Every dtype is read as TensorStore reads it, in both byte orders."""
    array = make_values((11, 9, 10), dtype)
    for endian in ("little", "big"):
        folder = tmp_path / endian
        serializer = {"name": "bytes", "configuration": {"endian": endian} if array.dtype.itemsize > 1 else {}}
        write_by_tensorstore("zarr3", folder, {
            "shape": array.shape, "data_type": dtype, "chunk_grid": {
                "name": "regular", "configuration": {"chunk_shape": [4, 5, 6]}},
            "codecs": [{"name": "transpose", "configuration": {"order": [2, 0, 1]}}, serializer,
                       {"name": "blosc", "configuration": BLOSC | {"typesize": array.dtype.itemsize}},
                       {"name": "crc32c"}]}, array)
        check_chunks(zarr, lambda position, folder=folder: (folder / "c" / "/".join(map(str, position))).read_bytes(),
                     array, axes=(2, 1, 0), **translate_v3(folder))


@pytest.mark.parametrize("compressor", [*V2_COMPRESSORS[:6], V2_COMPRESSORS[7]], ids=str)
def test_tensorstore_zarr_v2(tmp_path, compressor):
    """Compressors of zarr v2 are undone as TensorStore undoes them."""
    array = make_values((21, 20, 19), "uint64")
    for order in "CF":
        folder = tmp_path / order
        write_by_tensorstore("zarr", folder, {"shape": array.shape, "chunks": [16, 20, 15], "dtype": ">u8",
                                              "order": order, "compressor": compressor}, array)
        check_chunks(zarr, lambda position, folder=folder: (folder / ".".join(map(str, position))).read_bytes(),
                     array, (16, 20, 15), (2, 1, 0), dtype=">u8", codecs=[compressor] if compressor else [],
                     order=[0, 1, 2] if order == "C" else [2, 1, 0])


N5_COMPRESSIONS = {
    "raw": ({"type": "raw"}, []), "gzip": ({"type": "gzip"}, [{"id": "gzip"}]),
    "zlib": ({"type": "gzip", "useZlib": True}, [{"id": "zlib"}]), "bzip2": ({"type": "bzip2"}, [{"id": "bz2"}]),
    "xz": ({"type": "xz"}, [{"id": "lzma", "format": 1}]), "zstd": ({"type": "zstd"}, [{"id": "zstd"}]),
    "blosc": ({"type": "blosc", "cname": "lz4", "clevel": 5, "shuffle": 1, "blocksize": 512},
              [{"id": "blosc", "cname": "lz4"}]),
}


def write_n5(folder, array, chunk, compression):
    write_by_tensorstore("n5", folder, {"dimensions": array.shape, "blockSize": chunk, "dataType": array.dtype.name,
                                        "compression": compression}, array)
    return lambda position: (folder / "/".join(map(str, position))).read_bytes()


@pytest.mark.parametrize("name", N5_COMPRESSIONS)
def test_tensorstore_n5_compressions(tmp_path, name):
    """Blocks of every compression are read as TensorStore reads them, those at the end of the dataset too."""
    compression, codecs = N5_COMPRESSIONS[name]
    array = make_values((21, 20, 19), "uint64")
    read = write_n5(tmp_path / "a", array, (16, 20, 15), compression)
    check_chunks(n5, read, array, (16, 20, 15), (0, 1, 2), dtype=">u8", codecs=codecs)


@pytest.mark.parametrize("dtype", DTYPES[:10])
def test_tensorstore_n5_dtypes(tmp_path, dtype):
    """Every dtype of n5, which is stored big-endian, is read as TensorStore reads it."""
    array = make_values((11, 9, 10), dtype)
    read = write_n5(tmp_path / "a", array, (4, 5, 6), {"type": "gzip"})
    check_chunks(n5, read, array, (4, 5, 6), (0, 1, 2), dtype=array.dtype.newbyteorder(">").str,
                 codecs=[{"id": "gzip"}])


@pytest.mark.parametrize("name", AXES)
def test_tensorstore_n5_axes(tmp_path, name):
    """Two to five dimensions, channels in one block and apart, are read at the right voxels."""
    shape, chunk, axes, parts = AXES[name]
    array = np.arange(prod(shape), dtype="uint16").reshape(shape)
    read = write_n5(tmp_path / "a", array, chunk, {"type": "zstd"})
    check_chunks(n5, read, array, chunk, axes, parts=parts, dtype=">u2", codecs=[{"id": "zstd"}])
