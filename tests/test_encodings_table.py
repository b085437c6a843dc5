"""The README's table of encodings: which there are, what each needs, and how much of a chunk one point takes."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from voxelprobe.codecs import ENCODINGS, load_reader
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import UnsupportedError
from voxelprobe.testing.encoders import encode_chunk
from voxelprobe.testing.encoding_floats import encode_zfpc

ROOT = Path(__file__).parents[1]
ROW = re.compile(r"^\| `(\w+)` \| (.*?) \| (?:`([\w-]+)` )?\|", re.MULTILINE)
README = (ROOT / "README.md").read_text()
TABLE = {name: (read, package) for name, read, package in ROW.findall(README[README.index("## What is read"):])}
SHAPE = (24, 20, 16)
WHOLE = SHAPE[0] * SHAPE[1] * SHAPE[2]
VOXEL = np.array([[5, 9, 3]])
DTYPES = {"jpeg": "u1", "jxl": "u1", "png": "u1", "fpzip": "<f4", "kempressed": "<f4", "zfpc": "<f4"}
# What makes values out of encoded bytes, by the module that calls it.
DECODERS = {
    "crackle": ("crackle.codec", "decompress"), "compresso": ("compresso", "decompress"),
    "jpeg": ("simplejpeg", "decode_jpeg"), "jxl": ("imagecodecs", "jpegxl_decode"), "png": ("pyspng", "load"),
    "fpzip": ("voxelprobe.codecs.fpzip", "decode_stream"),
    "kempressed": ("voxelprobe.codecs.kempressed", "decode_stream"), "zfpc": ("zfpy", "decompress_numpy"),
    "zarr": ("voxelprobe.codecs.blosc_frame", "_decompress"), "n5": ("voxelprobe.codecs.blosc_frame", "_decompress"),
}


def make_chunk(encoding: str) -> np.ndarray[Any, Any]:
    x, y, z = np.indices(SHAPE)
    return ((x * 3 + y * 5 + z * 7) % 200).astype(DTYPES.get(encoding, "<u8"))[..., None]


def count_decoded(monkeypatch: pytest.MonkeyPatch, encoding: str, payload: bytes, layout: ChunkLayout) -> int:
    """Return how many values were made to read one voxel, after its value was compared."""
    reader = load_reader(encoding, "here")
    made = [0]
    if encoding in DECODERS:
        module, name = DECODERS[encoding]
        decode: Callable[..., Any] = getattr(sys.modules[module], name)

        def count(*args: Any, **options: Any) -> Any:
            values = decode(*args, **options)
            picture = options.get("out", values)
            made[0] += len(values) // layout.dtype.itemsize if isinstance(values, bytes) else int(picture.size)
            return values

        monkeypatch.setattr(sys.modules[module], name, count)
    found = reader.read_points(payload, layout, VOXEL)
    if encoding not in ("jpeg", "jxl"):
        assert found[0, 0] == make_chunk(encoding)[tuple(VOXEL[0])][0]
    return made[0]


def test_the_table_is_that_of_the_code() -> None:
    """The README and docs/encodings.md have each encoding that can be read, what is read, and what to install."""
    page = (ROOT / "docs/encodings.md").read_text()
    assert {name: package or None for name, (_, package) in TABLE.items()} == dict(ENCODINGS)
    for name, (read, package) in TABLE.items():
        assert f"| `{name}` | {read} | {f'`{package}` ' if package else ''}|" in page


@pytest.mark.parametrize("encoding", [name for name, package in ENCODINGS.items() if package])
def test_a_missing_package_is_said(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """Without its package an encoding is refused when the volume is opened, with the pip command of the table."""
    names = {"crackle-codec": "crackle", "pyspng-seunglab": "pyspng", "zfpc": "zfpy"}
    package = TABLE[encoding][1]
    monkeypatch.setitem(sys.modules, names.get(package, package), None)
    for name in [name for name in sys.modules if name.startswith("voxelprobe.codecs.")]:
        monkeypatch.delitem(sys.modules, name)
    with pytest.raises(UnsupportedError, match=rf"encoding '{encoding}' needs .*: pip install {package}$"):
        load_reader(encoding, "file:///seg")


READS = {
    "the whole chunk": WHOLE,
    "its z slice": SHAPE[0] * SHAPE[1],
    "the rows up to its own": SHAPE[0] * (3 * SHAPE[1] + 10),
}


@pytest.mark.parametrize("encoding", [name for name in ENCODINGS if name not in ("raw", "zfpc", "zarr", "n5")])
def test_what_is_read_for_one_point(monkeypatch: pytest.MonkeyPatch, encoding: str) -> None:
    """As many values are decoded as the table says: the chunk, a slice, some rows; none of what is looked up."""
    read = TABLE[encoding][0].partition(";")[0]
    array = make_chunk(encoding)
    layout = ChunkLayout(SHAPE, 1, array.dtype, (8, 8, 8))
    found = count_decoded(monkeypatch, encoding, encode_chunk(array, encoding), layout)
    assert found == (0 if encoding == "compressed_segmentation" else READS[read])


@pytest.mark.parametrize("encoding", ["raw", "compressed_segmentation"])
def test_what_is_looked_up(encoding: str) -> None:
    """Of these, chunks that differ in every other block give one label each: nothing else of them is looked at."""
    array = make_chunk(encoding)
    other = array[::-1, ::-1, ::-1].copy()
    block = tuple(slice(place // 8 * 8, place // 8 * 8 + 8) for place in VOXEL[0])
    other[block] = array[block]
    layout = ChunkLayout(SHAPE, 1, array.dtype, (8, 8, 8))
    read = partial(load_reader(encoding, "here").read_points, layout=layout, voxels=VOXEL)
    assert read(encode_chunk(array, encoding)) == read(encode_chunk(other, encoding)) == array[tuple(VOXEL[0])]


@pytest.mark.parametrize(("options", "expected"), [
    ({"correlated": (True, True, False, False)}, SHAPE[0] * SHAPE[1]), ({"rate": 8}, 4**4), ({}, WHOLE),
])
def test_what_is_read_of_zfpc(monkeypatch: pytest.MonkeyPatch, options: Any, expected: int) -> None:
    """Of several zfp streams the voxel's own is decoded; of one at a fixed rate, its block."""
    array = make_chunk("zfpc")
    payload = encode_zfpc(array, **options)
    if "rate" in options:
        import zfpc

        array[:] = zfpc.decompress(payload)
        monkeypatch.setattr(sys.modules[__name__], "make_chunk", lambda encoding: array)
    found = count_decoded(monkeypatch, "zfpc", payload, ChunkLayout(SHAPE, 1, array.dtype))
    assert found in (expected, expected // 4)  # zfp pads an axis of one channel, or leaves it out


@pytest.mark.parametrize("blocks", [0, 8])
def test_what_is_read_of_zarr(monkeypatch: pytest.MonkeyPatch, blocks: int) -> None:
    """Without a codec nothing is decoded; of blosc, the block that the voxel is in."""
    from numcodecs import Blosc

    shape = (64, 64, 64)
    array = np.random.default_rng(0).integers(0, 99, shape, np.uint64)
    array[tuple(VOXEL[0])] = make_chunk("zarr")[tuple(VOXEL[0])][0]
    payload, codecs = array.tobytes("F"), []
    if blocks:
        blosc = Blosc("zstd", 5, Blosc.SHUFFLE, len(payload) // blocks)
        payload, codecs = blosc.encode(payload), [blosc.get_config()]
    layout = ChunkLayout(shape, 1, array.dtype, codecs=json.dumps({
        "axes": [2, 1, 0], "chunk": shape, "codecs": codecs, "dtype": "<u8", "fill_value": 0, "order": [0, 1, 2],
        "parts": 1,
    }))
    assert count_decoded(monkeypatch, "zarr", payload, layout) == (array.size // blocks if blocks else 0)
