import gzip
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.errors import CorruptDataError
from voxelprobe.sharding.hashing import hash_codes
from voxelprobe.sharding.index import parse_minishard_index, parse_shard_index, shard_index_bytes
from voxelprobe.sharding.locate import locate_chunks, shard_file_name
from voxelprobe.sharding.spec import Sharding
from voxelprobe.transport.wrappers import strip_compression

RAW = Sharding("identity", 0, 2, 0)
U64 = np.uint64


def encode_minishard(entries: list[tuple[int, int, int]]) -> bytes:
    """The stored form of (chunk id, start, size), starts relative to the shard index's end; deltas modulo 2**64."""
    rows, last_id, last_end = [], 0, 0
    for chunk_id, start, size in entries:
        rows.append([(chunk_id - last_id) % 2**64, (start - last_end) % 2**64, size])
        last_id, last_end = chunk_id, start + size
    return np.array(rows, "<u8").reshape(-1, 3).T.tobytes()


def read_chunk(shard: bytes, chunk_id: int, minishard: int, spec: Sharding) -> bytes | None:
    """A chunk of a whole shard file by our indices."""
    start, end = parse_shard_index(shard[: shard_index_bytes(spec)], spec)[minishard].tolist()
    starts, ends, found = parse_minishard_index(shard[start:end], spec).find(np.array([chunk_id], U64))
    if not found[0]:
        return None
    return strip_compression(shard[starts[0] : ends[0]], "gzip" if spec.data_encoding == "gzip" else None)


@settings(max_examples=60, deadline=None)
@given(
    spec=st.builds(Sharding, st.sampled_from(["identity", "murmurhash3_x86_128"]), st.integers(0, 6), st.integers(0, 5),
                   st.integers(0, 4), st.sampled_from(["raw", "gzip"]), st.sampled_from(["raw", "gzip"])),
    chunks=st.dictionaries(st.integers(0, 2**20), st.binary(min_size=1, max_size=40), min_size=1, max_size=40),
    absent=st.integers(0, 2**20),
)
def test_shards_that_cloudvolume_wrote_are_read_back(spec, chunks, absent):
    """Every chunk of cloud-volume's shard files is found with its bytes, and one that isn't there is not found."""
    from cloudvolume.datasource.precomputed.sharding import ShardingSpecification

    oracle = ShardingSpecification("neuroglancer_uint64_sharded_v1", spec.preshift_bits, spec.hash, spec.minishard_bits,
                                   spec.shard_bits, spec.minishard_index_encoding, spec.data_encoding)
    files = oracle.synthesize_shards(dict(chunks))
    ids = np.array([*chunks, absent], U64)
    hashes = hash_codes(ids >> U64(spec.preshift_bits), spec.hash)
    for chunk_id, hashed in zip(ids.tolist(), hashes.tolist(), strict=True):
        shard = hashed >> spec.minishard_bits & 2**spec.shard_bits - 1
        file = files.get(shard_file_name(shard, spec))
        content = None if file is None else read_chunk(file, chunk_id, hashed & 2**spec.minishard_bits - 1, spec)
        assert content == chunks.get(chunk_id)


@pytest.mark.parametrize(("hash_name", "shard_bits", "encoding"), [
    ("identity", 0, "raw"), ("identity", 3, "gzip"), ("murmurhash3_x86_128", 2, "gzip"),
])
def test_a_volume_that_tensorstore_wrote_is_read_back(tmp_path, hash_name, shard_bits, encoding):
    """Every chunk of a raw sharded volume written by TensorStore holds the voxels that were written."""
    import tensorstore

    spec = Sharding(hash_name, 1, 2, shard_bits, encoding, encoding)
    size, chunk, grid = (50, 40, 20), (16, 8, 8), (4, 5, 3)
    volume = np.random.default_rng(1).integers(1, 2**60, size, np.uint64)
    store = tensorstore.open({
        "driver": "neuroglancer_precomputed", "kvstore": f"file://{tmp_path}/",
        "multiscale_metadata": {"type": "segmentation", "data_type": "uint64", "num_channels": 1},
        "scale_metadata": {
            "key": "s", "size": size, "resolution": [8, 8, 40], "chunk_size": chunk, "encoding": "raw",
            "sharding": {"@type": "neuroglancer_uint64_sharded_v1", "hash": hash_name, "preshift_bits": 1,
                         "minishard_bits": 2, "shard_bits": shard_bits, "minishard_index_encoding": encoding,
                         "data_encoding": encoding}},
    }, create=True).result()
    store[..., 0] = volume

    positions = np.argwhere(np.ones(grid, bool)).astype(np.int64)
    found = locate_chunks(positions, grid, spec)
    names = {shard_file_name(s, spec) for s in found.shards.tolist()}
    assert names == {path.name for path in (tmp_path / "s").iterdir()}
    for row, position in enumerate(positions):
        shard = (tmp_path / "s" / shard_file_name(int(found.shards[row]), spec)).read_bytes()
        content = read_chunk(shard, int(found.chunk_ids[row]), int(found.minishards[row]), spec)
        low = position * chunk
        expected = volume[tuple(slice(a, a + c) for a, c in zip(low, chunk, strict=True))]
        assert content == expected.tobytes("F")


def test_a_shard_index_becomes_absolute():
    """Ranges count from the file's beginning, empty minishards stay empty."""
    table = np.array([[0, 5], [0, 0], [5, 5], [7, 30]], "<u8")
    ranges = parse_shard_index(table.tobytes(), RAW)
    assert ranges.dtype == np.int64
    assert ranges.tolist() == [[64, 69], [64, 64], [69, 69], [71, 94]]


@pytest.mark.parametrize("bits", [0, 1, 7])
def test_a_shard_index_of_another_length_is_corrupt(bits):
    """Only the exact length is taken; the message has both."""
    spec = replace(RAW, minishard_bits=bits)
    whole = bytes(shard_index_bytes(spec))
    assert parse_shard_index(whole, spec).shape == (2**bits, 2)
    for wrong in (b"", whole[:-1], whole + b"\0", whole * 2):
        with pytest.raises(CorruptDataError, match=f"has {len(whole)} bytes, found {len(wrong)}"):
            parse_shard_index(wrong, spec)


@pytest.mark.parametrize("pair", [(5, 4), (0, 2**63), (2**64 - 1, 2**64 - 1), (1, 0), (0, 2**63 - 64)])
def test_impossible_ranges_in_a_shard_index_are_corrupt(pair):
    """A range that ends before it starts, or beyond any file, is an error that names the minishard."""
    table = np.array([(0, 0), (0, 8), pair, (0, 0)], "<u8")
    with pytest.raises(CorruptDataError, match="minishard 2"):
        parse_shard_index(table.tobytes(), RAW)


@settings(deadline=None)
@given(
    st.lists(st.tuples(st.integers(0, 2**64 - 1), st.integers(0, 2**50), st.integers(0, 2**40)), max_size=20),
    st.lists(st.integers(0, 2**64 - 1), max_size=5),
    st.sampled_from(["raw", "gzip"]),
)
def test_minishard_entries_are_found_in_any_order(entries, others, encoding):
    """Ids and places may go down and repeat: the first place of each id is found, and nothing else is."""
    spec = replace(RAW, minishard_index_encoding=encoding)
    payload = encode_minishard(entries)
    index = parse_minishard_index(gzip.compress(payload) if encoding == "gzip" else payload, spec)
    assert (index.chunk_ids.dtype, index.starts.dtype, index.ends.dtype) == (np.uint64, np.int64, np.int64)
    assert index.chunk_ids.tolist() == sorted(e[0] for e in entries)
    first: dict[int, tuple[int, int]] = {}
    for chunk_id, start, size in entries:
        first.setdefault(chunk_id, (start + 64, start + size + 64))
    wanted = [*(e[0] for e in reversed(entries)), *others]
    starts, ends, found = index.find(np.array(wanted, U64))
    assert found.tolist() == [w in first for w in wanted]
    assert list(zip(starts.tolist(), ends.tolist(), strict=True)) == [first.get(w, (0, 0)) for w in wanted]


@pytest.mark.parametrize("encoding", ["raw", "gzip"])
def test_an_empty_minishard_index_holds_nothing(encoding):
    """No bytes are no chunks."""
    index = parse_minishard_index(b"", replace(RAW, minishard_index_encoding=encoding))
    starts, ends, found = index.find(np.array([0, 7], U64))
    assert (starts.tolist(), ends.tolist(), found.tolist()) == ([0, 0], [0, 0], [False, False])


def test_a_truncated_minishard_index_is_corrupt_or_too_short_to_tell():
    """Cut anywhere, gzip is an error; raw is one unless whole entries are left, which no reader can tell apart."""
    payload = encode_minishard([(3, 0, 10), (9, 10, 20), (12, 50, 1)])
    for length in range(len(payload)):
        if length % 24:
            with pytest.raises(CorruptDataError, match=f"found {length} bytes"):
                parse_minishard_index(payload[:length], RAW)
    packed = gzip.compress(payload)
    for length in range(1, len(packed)):
        with pytest.raises(CorruptDataError):
            parse_minishard_index(packed[:length], replace(RAW, minishard_index_encoding="gzip"))


@pytest.mark.parametrize(("delta", "size"), [
    (0, 2**64 - 1), (2**63, 0), (2**64 - 31, 0), (2**63 - 10, 10), (0, 2**63 - 94), (2**64 - 30, 2**63 - 64),
])
def test_overflow_in_a_minishard_index_is_corrupt(delta, size):
    """Sizes and places beyond any file, or before the data's beginning, are errors that name the entry."""
    stored = np.array([[1, 1], [0, delta], [30, size]], "<u8")
    with pytest.raises(CorruptDataError, match="entry 1"):
        parse_minishard_index(stored.tobytes(), RAW)
