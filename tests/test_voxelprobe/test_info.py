import contextlib
import copy
import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.errors import InputError, UnsupportedError
from voxelprobe.sharding.spec import Sharding
from voxelprobe.volume.info import parse_info
from voxelprobe.volume.scale import Scale

WHERE = "gs://bucket/seg"
SHARDING = {"@type": "neuroglancer_uint64_sharded_v1", "hash": "identity", "preshift_bits": 9, "minishard_bits": 6,
            "shard_bits": 15, "minishard_index_encoding": "gzip", "data_encoding": "gzip"}


def make_info(sharding=None, **changed):
    """An info as published ones are, with members of its first scale changed (None: left out)."""
    scale = {"key": "8_8_40", "size": [100, 200, 30], "voxel_offset": [5, -6, 7], "resolution": [8, 8, 40],
             "chunk_sizes": [[64, 64, 16]], "encoding": "compressed_segmentation",
             "compressed_segmentation_block_size": [8, 8, 8]}
    scale |= changed
    if sharding is not None:
        scale["sharding"] = sharding if isinstance(sharding, str) else {
            name: value for name, value in (SHARDING | sharding).items() if value is not None}
    return {"@type": "neuroglancer_multiscale_volume", "type": "segmentation", "data_type": "uint64",
            "num_channels": 1, "scales": [{name: value for name, value in scale.items() if value is not None}]}


def test_a_published_info_is_taken_over_whole():
    """Every fact that finds or reads a voxel is kept as the info has it."""
    volume = parse_info(make_info(sharding={}), WHERE)
    assert (volume.kind, len(volume.scales)) == ("segmentation", 1)
    assert volume.scales[0] == Scale(
        "8_8_40", (100, 200, 30), (5, -6, 7), (8.0, 8.0, 40.0), (64, 64, 16), "compressed_segmentation",
        np.dtype("<u8"), 1, (8, 8, 8), Sharding("identity", 9, 6, 15, "gzip", "gzip"))


def test_what_may_be_left_out_has_the_formats_default():
    """No offset is 0, no encoding raw, no compression of shards raw; a block size is for its encoding only."""
    info = make_info(voxel_offset=None, encoding=None, sharding={"minishard_index_encoding": None,
                                                                 "data_encoding": None})
    scale = parse_info(info, WHERE).scales[0]
    assert (scale.voxel_offset, scale.encoding, scale.block_size) == ((0, 0, 0), "raw", None)
    assert scale.sharding is not None
    assert (scale.sharding.minishard_index_encoding, scale.sharding.data_encoding) == ("raw", "raw")


@pytest.mark.parametrize(("given", "kept"), [
    ([17.2, 17.2, 45.0], (17.2, 17.2, 45.0)), ([0.5, 1e-3, 1066.6666666666667], (0.5, 1e-3, 1066.6666666666667)),
    ([8, 8.0, 40], (8.0, 8.0, 40.0)),
])
def test_fractional_resolutions_are_kept(given, kept):
    """A resolution is never rounded: 17.2 nm taken for 17 is 100 voxels off."""
    assert parse_info(make_info(resolution=given), WHERE).scales[0].resolution == kept


@pytest.mark.parametrize(("changed", "said"), [
    ({"key": "../other/8_8_40"}, "key '../other/8_8_40' leads out of the volume"),
    ({"key": "a/../../b"}, "leads out of the volume"),
    ({"key": ".."}, "leads out of the volume"),
    ({"key": "/etc"}, "key '/etc' leads out of the volume"),
    ({"key": "gs://other/8_8_40"}, "leads out of the volume"),
    ({"key": "C:\\seg"}, "leads out of the volume"),
    ({"key": ""}, "expected a path for key, found ''"),
    ({"key": "8\x008"}, "expected a path for key, found '8\\x008'"),
    ({"key": "8\ud8008"}, "expected a path for key"),
    ({"key": 8}, "expected a text for key, found 8"),
    ({"key": None}, "expected a text for key, found None"),
    ({"resolution": "8_8"}, "expected three positive numbers for resolution, found '8_8'"),
    ({"resolution": "888"}, "expected three positive numbers for resolution, found '888'"),
    ({"resolution": [8, 8, "40"]}, "expected three positive numbers for resolution"),
    ({"resolution": [8, 8]}, "expected three positive numbers for resolution, found [8, 8]"),
    ({"resolution": [8, 8, math.nan]}, "expected three positive numbers for resolution"),
    ({"resolution": [8, 8, math.inf]}, "expected three positive numbers for resolution"),
    ({"resolution": [8, 8, 0]}, "expected three positive numbers for resolution"),
    ({"resolution": [8, 8, True]}, "expected three positive numbers for resolution"),
    ({"size": None}, "size: expected three whole numbers, found None"),
    ({"size": [100, 200]}, "size: expected three whole numbers, found [100, 200]"),
    ({"size": "100"}, "size: expected three whole numbers, found '100'"),
    ({"size": [100, 0, 30]}, "size: expected at least 1, found 0"),
    ({"size": [100, True, 30]}, "size: expected a whole number, found True"),
    ({"size": [100, 1.5, 30]}, "size: expected a whole number, found 1.5"),
    ({"size": [100, math.nan, 30]}, "size: expected a whole number, found nan"),
    ({"size": [100, 2**60, 30]}, f"size: expected a whole number, found {2**60}"),
    ({"voxel_offset": [0, 0, None]}, "voxel_offset: expected a whole number, found None"),
    ({"voxel_offset": [False, 0, 0]}, "voxel_offset: expected a whole number, found False"),
    ({"chunk_sizes": None}, "expected a list of chunk_sizes, found None"),
    ({"chunk_sizes": []}, "expected a list of chunk_sizes, found []"),
    ({"chunk_sizes": [64, 64, 64]}, "chunk_sizes[0]: expected three whole numbers, found 64"),
    ({"chunk_sizes": [[64, -64, 64]]}, "chunk_sizes[0]: expected at least 1, found -64"),
    ({"compressed_segmentation_block_size": None}, "compressed_segmentation_block_size: expected three whole numbers"),
    ({"compressed_segmentation_block_size": [8, 8, 0]}, "compressed_segmentation_block_size: expected at least 1"),
    ({"encoding": 3}, "expected a text for encoding, found 3"),
    ({"sharding": "yes"}, "sharding: expected a JSON object, found str"),
    ({"sharding": SHARDING | {"shard_bits": -1}}, "sharding: shard_bits: expected at least 0, found -1"),
    ({"sharding": SHARDING | {"minishard_bits": True}}, "sharding: minishard_bits: expected a whole number"),
    ({"sharding": SHARDING | {"minishard_bits": 21}}, "bits [9, 21, 15] don't fit 64-bit chunk ids"),
    ({"sharding": SHARDING | {"shard_bits": 59}}, "bits [9, 6, 59] don't fit 64-bit chunk ids"),
    ({"sharding": SHARDING | {"preshift_bits": 65}}, "bits [65, 6, 15] don't fit 64-bit chunk ids"),
])
def test_a_scale_that_contradicts_the_format_is_refused(changed, said):
    """The message names the volume and the scale, what was expected, and what was found."""
    with pytest.raises(InputError) as caught:
        parse_info(make_info(**changed), WHERE)
    assert str(caught.value).startswith("gs://bucket/seg/info, scale 0")
    assert said in str(caught.value)


@pytest.mark.parametrize(("changed", "said"), [
    ({"chunk_sizes": [[65536, 65536, 1]]}, "chunks of (65536, 65536, 1) voxels; fewer than 2^32"),
    ({"chunk_sizes": [[2**50, 2**50, 2**50]]}, "fewer than 2^32"),
    ({"sharding": SHARDING | {"@type": "zarr_sharding"}}, "@type 'zarr_sharding' is not neuroglancer_uint64_sharded"),
    ({"sharding": SHARDING | {"hash": "md5"}}, "hash 'md5' is not identity or murmurhash3_x86_128"),
    ({"sharding": SHARDING | {"data_encoding": "br"}}, "encoding 'br' is not raw or gzip"),
])
def test_a_scale_of_a_kind_that_cant_be_read_is_unsupported(changed, said):
    """What is legal but can't be read here is told apart from what is wrong."""
    with pytest.raises(UnsupportedError) as caught:
        parse_info(make_info(**changed), WHERE)
    assert said in str(caught.value)


def test_a_chunk_just_below_the_limit_is_taken():
    """Places in a chunk are 32-bit numbers; 2^32 - 65,536 voxels still have one each."""
    assert parse_info(make_info(chunk_sizes=[[65536, 65535, 1]]), WHERE).scales[0].chunk_size == (65536, 65535, 1)


@pytest.mark.parametrize(("document", "error", "said"), [
    ([], InputError, "gs://bucket/seg/info: expected a JSON object, found list"),
    ({"@type": "neuroglancer_annotations_v1"}, InputError, "expected a volume with `scales`, found ['@type']"),
    (make_info() | {"scales": []}, InputError, "expected a list of scales, found []"),
    (make_info() | {"scales": "8_8_40"}, InputError, "expected a list of scales, found '8_8_40'"),
    (make_info() | {"scales": [7]}, InputError, "info, scale 0: expected a JSON object, found int"),
    (make_info() | {"data_type": 64}, InputError, "expected a text for data_type, found 64"),
    (make_info() | {"data_type": "complex64"}, UnsupportedError, "data_type 'complex64' is not one of uint8, uint16"),
    (make_info() | {"num_channels": 0}, InputError, "num_channels: expected at least 1, found 0"),
    (make_info() | {"num_channels": True}, InputError, "num_channels: expected a whole number, found True"),
    (make_info() | {"type": None}, InputError, "expected a text for type, found None"),
])
def test_what_is_no_volumes_info_is_refused(document, error, said):
    """A document of another kind is named as such, with what it lacks."""
    with pytest.raises(error) as caught:
        parse_info(document, WHERE)
    assert said in str(caught.value)


SCALES = [[4, 4, 40], [17.2, 17.2, 45], [1066.6666666666667, 1066.6666666666667, 1234567.25]]
THREE = parse_info(make_info() | {"scales": [
    make_info(key=str(i), resolution=r)["scales"][0] for i, r in enumerate(SCALES)]}, WHERE)


@pytest.mark.parametrize(("mip", "index"), [
    (0, 0), ("2", 2), (" 1 ", 1), ("4,4,40", 0), ("4.0, 4, 40.000", 0), ("17.2,17.2,45", 1)])
def test_a_scale_is_found_by_index_or_resolution(mip, index):
    """Both ways of naming a scale lead to it."""
    assert THREE.scale_at(mip, WHERE) == (index, THREE.scales[index])


@pytest.mark.parametrize("mip", ["3", "-1,4,40", "17,17,45", "17.2000001,17.2,45", "nan,4,40", "inf,4,40"])
def test_a_missing_scale_lists_those_there_are(mip):
    """A scale is never taken for another one near it, and every resolution that the message lists can be asked for."""
    with pytest.raises(InputError, match=r"gs://bucket/seg has no mip .*; its scales are 0: 4,4,40 nm; 1: 17\.2") as c:
        THREE.scale_at(mip, WHERE)
    listed = str(c.value).partition("scales are ")[2].replace(" nm", "").split("; ")
    assert [THREE.scale_at(entry.partition(": ")[2], WHERE)[0] for entry in listed] == [0, 1, 2]


@pytest.mark.parametrize("mip", ["", "-1", "4,4", "4,4,40,1", "full", "4;4;40"])
def test_what_names_no_scale_is_refused_with_an_example(mip):
    """A text that is neither an index nor a resolution says what would be."""
    with pytest.raises(InputError, match="expected a scale's index or its resolution as in 8,8,40"):
        THREE.scale_at(mip, WHERE)


def test_a_fingerprint_tells_every_fact_apart():
    """Two scales that differ in anything that finds or reads a voxel have two fingerprints; equal ones one."""
    infos = [make_info(), make_info(key="8_8_41"), make_info(size=[100, 200, 31]), make_info(voxel_offset=[5, -6, 8]),
             make_info(resolution=[8, 8, 40.5]), make_info(chunk_sizes=[[64, 64, 32]]), make_info(encoding="raw"),
             make_info(encoding="crackle"), make_info(compressed_segmentation_block_size=[8, 8, 4]),
             make_info() | {"data_type": "uint32"}, make_info() | {"num_channels": 2}]
    infos += [make_info(sharding=changed) for changed in (
        {}, {"hash": "murmurhash3_x86_128"}, {"preshift_bits": 8}, {"minishard_bits": 5}, {"shard_bits": 14},
        {"minishard_index_encoding": "raw"}, {"data_encoding": "raw"})]
    prints = [parse_info(info, WHERE).scales[0].fingerprint for info in infos]
    assert len(set(prints)) == len(infos)
    assert prints == [parse_info(copy.deepcopy(info), "file:///elsewhere").scales[0].fingerprint for info in infos]


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8),
              st.sampled_from(["uint64", "raw", "identity", [64, 64, 64], [4, 4, 40], 1, 0, 2**32, 2**64, 1e300])),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=4), inner, max_size=4)),
    max_leaves=8)


@settings(deadline=None, max_examples=200)
@given(st.data())
def test_any_json_gives_a_volume_or_one_of_our_errors(data):
    """An info from outside can't cause any other error, wherever in it something odd stands."""
    document = make_info(sharding={})
    scale = document["scales"][0]
    places = [document, scale, scale["sharding"]]
    for _ in range(data.draw(st.integers(1, 3))):
        place = places[data.draw(st.integers(0, 2))]
        place[data.draw(st.sampled_from(sorted(place)))] = data.draw(JSON)
    document = json.loads(json.dumps(document))
    with contextlib.suppress(InputError, UnsupportedError):
        volume = parse_info(document, WHERE)
        assert all(len(scale.fingerprint) == 32 and scale.key for scale in volume.scales)


@settings(deadline=None)
@given(JSON)
def test_any_document_gives_a_volume_or_one_of_our_errors(document):
    """The same where the whole document is odd."""
    with pytest.raises((InputError, UnsupportedError)):
        parse_info(document, WHERE)
