"""crackle streams of every kind that a release of the package wrote, and of the kinds that only its specification has.

`OLD` and `OLDER` were written by releases of crackle-codec from PyPI, with numpy 1.26, from `small_chunk()`.
"""

import base64

import crackle as package
import fastcrackle
import numpy as np
import pytest

from voxelprobe.codecs import crackle
from voxelprobe.codecs.protocol import ChunkLayout
from voxelprobe.errors import CorruptDataError, UnsupportedError
from voxelprobe.testing.contracts import Crashed, every_voxel, flip_bits, make_segments, read_damaged

SMALL = ChunkLayout((6, 5, 4), 1, np.dtype("<u8"))
OLD = {
    ("0.4.0", "flat"): (
        "Y3JrbACPAAYAAAAFAAAABAAAAB88AAAAFAAAABQAAAASAAAAFAAAAAQAAAAAAAAAAAAAAAAAAAAFAAAAAAAAAAcAAAAAAAAAAAAA"
        "AAABAAAEBAQEAQADAgEAAwIAAwIBAwIBAAoAAAADAAEDAQEGAwEGdrff3fgICgAAAAMAAQUCAQABAQZ2d2N3ciMIAAAAAgACAQMC"
        "AQa2dnf73QgKAAAAAwABAwEBBgMBBna33934CA=="
    ),
    ("0.4.0", "pins"): (
        "Y3JrbADPAAYAAAAFAAAABAAAAB8/AAAAFAAAABQAAAASAAAAFAAAAAAAAAAAAAAAAwAAAAAAAAAFAAAAAAAAAAcAAAAAAAAAAAAA"
        "AAABAAAEBAQEAAAEAAQHAwAEAwQDAwAEAgQDAwoAAAADAAEDAQEGAwEGdrff3fgICgAAAAMAAQUCAQABAQZ2d2N3ciMIAAAAAgAC"
        "AQMCAQa2dnf73QgKAAAAAwABAwEBBgMBBna33934CA=="
    ),
    ("0.16.0", "flat"): (
        "Y3JrbACPAAYAAAAFAAAABAAAAB88AAAAFAAAABIAAAASAAAAFAAAAAQAAAAAAAAAAAAAAAAAAAAFAAAAAAAAAAcAAAAAAAAAAAAA"
        "AAABAAAEBAQEAQADAgEAAwIAAwIBAwIBAAoAAAADAAEDAQEGAwEGdrff3fgICAAAAAIAAgIDAwEGdmt3N34jCAAAAAIAAgEDAgEG"
        "tnZ3+90ICgAAAAMAAQMBAQYDAQZ2t9/d+Ag="
    ),
    ("0.16.0", "C order"): (
        "Y3JrbAAPAAYAAAAFAAAABAAAAB88AAAAFAAAABIAAAASAAAAFAAAAAQAAAAAAAAAAAAAAAAAAAAFAAAAAAAAAAcAAAAAAAAAAAAA"
        "AAABAAAEBAQEAQADAgEAAwIAAwIBAwIBAAoAAAADAAEDAQEGAwEGdrff3fgICAAAAAIAAgIDAwEGdmt3N34jCAAAAAIAAgEDAgEG"
        "tnZ3+90ICgAAAAMAAQMBAQYDAQZ2t9/d+Ag="
    ),
    ("0.16.0", "Markov model"): (
        "Y3JrbACPBAYAAAAFAAAABAAAAB88AAAAEgAAABAAAAAQAAAAEgAAAAQAAAAAAAAAAAAAAAAAAAAFAAAAAAAAAAcAAAAAAAAAAAAA"
        "AAABAAAEBAQEAQADAgEAAwIAAwIBAwIBAAwABoCUChgLkDQKAAAAAwABAwEBBgMBBgIBTAIIAAAAAgACAgMDAQZCAUwYCAAAAAIA"
        "AgEDAgEGUgABAwoAAAADAAEDAQEGAwEGAgFMAg=="
    ),
    ("0.16.0", "pins"): (
        "Y3JrbADPAAYAAAAFAAAABAAAAB8/AAAAFAAAABIAAAASAAAAFAAAAAAAAAAAAAAAAwAAAAAAAAAFAAAAAAAAAAcAAAAAAAAAAAAA"
        "AAABAAAEBAQEAAAEAAQHAwAEAwQDAwAEAgQDAwoAAAADAAEDAQEGAwEGdrff3fgICAAAAAIAAgIDAwEGdmt3N34jCAAAAAIAAgED"
        "AgEGtnZ3+90ICgAAAAMAAQMBAQYDAQZ2t9/d+Ag="
    ),
    ("0.18.0", "C order"): (
        "Y3JrbAEPAAYAAAAFAAAABAAAAB88AAAAAAAAACkUAAAAEgAAABIAAAAUAAAA+R3QbQQAAAAAAAAAAAAAAAAAAAAFAAAAAAAAAAcA"
        "AAAAAAAAAAAAAAABAAAEBAQEAQADAgEAAwIAAwIBAwIBAAoAAAADAAEDAQEGAwEGdrff3fgICAAAAAIAAgIDAwEGdmt3N34jCAAA"
        "AAIAAgEDAgEGtnZ3+90ICgAAAAMAAQMBAQYDAQZ2t9/d+Aj8coV4sKgjTZsWE2TDXNYFsKgjTQ=="
    ),
    ("0.18.0", "pins"): (
        "Y3JrbAHPAAYAAAAFAAAABAAAAB8/AAAAAAAAAI4UAAAAEgAAABIAAAAUAAAA+R3QbQAAAAAAAAAAAwAAAAAAAAAFAAAAAAAAAAcA"
        "AAAAAAAAAAAAAAABAAAEBAQEAAAEAAQHAwAEAwQDAwAEAgQDAwoAAAADAAEDAQEGAwEGdrff3fgICAAAAAIAAgIDAwEGdmt3N34j"
        "CAAAAAIAAgEDAgEGtnZ3+90ICgAAAAMAAQMBAQYDAQZ2t9/d+AhVId5BsKgjTZsWE2TDXNYFsKgjTQ=="
    ),
}
# Laid out in other ways.
OLDER = {
    ("0.3.0", "flat"): (
        "Y3JrbACPAAYAAAAFAAAABAAAAB88AAAACQAAAAoAAAAJAAAACQAAAAQAAAAAAAAAAAAAAAAAAAAFAAAAAAAAAAcAAAAAAAAAAAAA"
        "AAABAAAEBAQEAQADAgEAAwIAAwIBAwIBAAO7Ow3u7gMiPg4RCQW7uw8b7gMBOwS7uwMU7j4DuzsN7u4DIj4="
    ),
    ("0.3.0", "pins"): (
        "Y3JrbADPAAYAAAAFAAAABAAAAB8/AAAACQAAAAoAAAAJAAAACQAAAAAAAAAAAAAAAwAAAAAAAAAFAAAAAAAAAAcAAAAAAAAAAAAA"
        "AAABAAAEBAQEAAAEAAQHAwAEAwQDAwAEAgQDAwO7Ow3u7gMiPg4RCQW7uw8b7gMBOwS7uwMU7j4DuzsN7u4DIj4="
    ),
    ("0.17.3", "flat"): (
        "Y3JrbAGPAAYAAAAFAAAABAAAAB88AAAAAAAAAI4UAAAAEgAAABIAAAAUAAAABAAAAAAAAAAAAAAAAAAAAAUAAAAAAAAABwAAAAAA"
        "AAAAAAAAAAEAAAQEBAQBAAMCAQADAgADAgEDAgEACgAAAAMAAQMBAQYDAQZ2t9/d+AgIAAAAAgACAgMDAQZ2a3c3fiMIAAAAAgAC"
        "AQMCAQa2dnf73QgKAAAAAwABAwEBBgMBBna33934CA=="
    ),
    ("0.17.3", "pins"): (
        "Y3JrbAHPAAYAAAAFAAAABAAAAB8/AAAAAAAAAI4UAAAAEgAAABIAAAAUAAAAAAAAAAAAAAADAAAAAAAAAAUAAAAAAAAABwAAAAAA"
        "AAAAAAAAAAEAAAQEBAQAAAQABAcDAAQDBAMDAAQCBAMDCgAAAAMAAQMBAQYDAQZ2t9/d+AgIAAAAAgACAgMDAQZ2a3c3fiMIAAAA"
        "AgACAQMCAQa2dnf73QgKAAAAAwABAwEBBgMBBna33934CA=="
    ),
}


def small_chunk():
    x, y, z = np.indices(SMALL.shape)
    return np.array([5, 0, 2**40, 7], "<u8")[((x + y + z) // 3 + z // 2) % 4]


def check_same(payload, array=None):
    """Some voxels, one alone and all of them have the labels of the package's full decode, and of the array."""
    payload = bytes(payload)
    header = package.codec.header(payload)
    layout = ChunkLayout((header.sx, header.sy, header.sz), 1,
                         np.dtype(f"<{'i' if header.signed else 'u'}{header.data_width}"))
    decoded = package.decompress(payload, parallel=1)
    if array is not None:
        assert np.array_equal(decoded, array)
    voxels = every_voxel(layout.shape)
    for some in (voxels, voxels[::-7], voxels[voxels[:, 2] % 3 == 1], voxels[len(voxels) // 2:][:1]):
        assert np.array_equal(crackle.read_points(payload, layout, some)[:, 0], decoded[tuple(some.T)])
    return header


@pytest.mark.parametrize(("release", "kind"), OLD)
def test_streams_of_earlier_releases(release, kind):
    """Chunks of earlier releases, of both formats, read as they were written, and as today's package decodes them."""
    header = check_same(base64.b64decode(OLD[release, kind]), small_chunk())
    assert header.format_version == (1 if release == "0.18.0" else 0)
    assert (header.label_format, header.fortran_order, header.markov_model_order) == (
        2 if kind == "pins" else 0, kind != "C order", 2 if kind == "Markov model" else 0)


@pytest.mark.parametrize(("release", "kind"), OLDER)
def test_streams_that_the_package_no_longer_reads(release, kind):
    """Chunks of releases whose layout the package gave up without a new number are refused, not read wrongly."""
    payload = base64.b64decode(OLDER[release, kind])
    for some in (every_voxel(SMALL.shape), every_voxel(SMALL.shape)[40:41]):
        outcome, = read_damaged(crackle, SMALL, [payload], some)
        assert isinstance(outcome, CorruptDataError), outcome


@pytest.mark.parametrize("order", [1, 2, 3, 4, 5, 7, 9])
def test_markov_orders(order):
    """Every order of the Markov model reads as it was written; of order 1 the model ends inside a byte."""
    for seed, pins in ((0, 0), (1, 0), (0, 2)):
        array = make_segments(ChunkLayout((17, 13, 5), 1, np.dtype("<u8")), seed)[..., 0]
        header = check_same(package.compress(array, markov_model_order=order, allow_pins=pins, parallel=1), array)
        assert header.markov_model_order == order


@pytest.mark.parametrize("order", "FC")
@pytest.mark.parametrize("pins", [0, 1, 2])
@pytest.mark.parametrize("dtype", ["u1", "<u2", "<u4", "<u8"])
def test_dtypes_pins_and_orders(dtype, pins, order):
    """Every dtype, with few labels (stored narrower) and large ones, reads as written; both crack formats occur."""
    crack_formats = set()
    for seed in (0, 1):
        array = make_segments(ChunkLayout((23, 19, 7), 1, np.dtype(dtype)), seed)[..., 0]
        for some in (array, array % 11):
            payload = package.compress(np.array(some, order=order), allow_pins=pins, parallel=1)
            header = check_same(payload, some)
            assert header.fortran_order == (order == "F")
            assert header.stored_data_width == (1 if some.max() < 256 else array.itemsize)
            crack_formats.add(header.crack_format)
    assert crack_formats == {0, 1}


@pytest.mark.parametrize("dtype", ["i1", "<i2", "<i4", "<i8"])
def test_signed_labels_by_the_packages_core(dtype):
    """Signed labels, which the package's core writes though its Python front refuses them, keep their sign."""
    array = np.asfortranarray(make_segments(ChunkLayout((23, 19, 7), 1, np.dtype("u1")))[..., 0] % 100).astype(dtype)
    array -= np.array(50, dtype)
    payload = fastcrackle.compress(array, False, True, 0, False, True, 0, 1)
    assert check_same(payload, array).signed


@pytest.mark.parametrize("shape", [(15, 17, 3), (16, 16, 3), (257, 1, 3), (255, 257, 1), (256, 256, 1), (16, 16, 256)])
def test_numbers_at_the_bounds_of_their_widths(shape):
    """Where components, voxels or slices just fit a width, or just don't, chunks read as they were written."""
    rng = np.random.default_rng(0)
    for array in (rng.integers(0, 2**60, shape).astype("<u8"), (rng.random(shape) < 0.05).astype("<u8") * 7 + 2):
        check_same(package.compress(np.asfortranarray(array), parallel=1), array)
        if array.size < 10_000:
            check_same(package.compress(np.asfortranarray(array), allow_pins=2, parallel=1), array)


@pytest.mark.parametrize("number", [255, 256, 257, 65535, 65536, 65537])
def test_numbers_of_labels_at_the_bounds_of_their_widths(number):
    """Where the labels' numbers just fit a width, or just don't, chunks read as they were written."""
    array = np.asfortranarray((np.arange(72 * 70 * 14) % number).reshape(72, 70, 14).astype("<u8"))
    check_same(package.compress(array, parallel=1), array)


OPERATIONS = {
    "refit": package.operations.refit,
    "ascontiguousarray": package.operations.ascontiguousarray,
    "reencode": lambda payload: package.codec.reencode(payload, 5),
    "zstack": lambda payload: package.operations.zstack([payload, package.operations.astype(payload, np.uint64)]),
    "renumber": lambda payload: package.operations.renumber(payload, start=5)[0],
    "add_scalar": lambda payload: package.operations.add_scalar(payload, 250),
    "lshift_scalar": lambda payload: package.operations.lshift_scalar(payload, 40),
    "mask": lambda payload: package.operations.mask(payload, [3]),
    "zsplit": lambda payload: package.operations.zsplit(payload, 3)[0],
    "zshatter": lambda payload: package.operations.zshatter(payload)[4],
    "remap": lambda payload: package.operations.remap(payload, {0: 5, 1: 5}, preserve_missing_labels=True),
    "condense_unique": lambda payload: package.codec.condense_unique(OPERATIONS["remap"](payload)),
    "zeros": lambda payload: package.operations.zeros((5, 4, 3), dtype=np.uint32).binary,
}


@pytest.mark.parametrize("name", OPERATIONS)
def test_streams_that_the_package_changed(name):
    """What the package's operations make of a stream, without decoding it, reads as its full decode has it."""
    array = make_segments(ChunkLayout((23, 19, 7), 1, np.dtype("<u8")))[..., 0] % 13
    check_same(OPERATIONS[name](package.compress(np.asfortranarray(array), parallel=1)))
    if name in ("refit", "ascontiguousarray", "reencode", "zstack"):
        payload = package.compress(np.asfortranarray(array), allow_pins=2, parallel=1)
        assert check_same(OPERATIONS[name](payload)).label_format == 2


@pytest.mark.parametrize(("place", "change", "message"), [
    (5, lambda fields: fields | 1 << 5, r"pins of fixed width with cells of 2\^31 .* can't be read, and no release"),
    (5, lambda fields: fields | 3 << 5, r"labels of format 3 with cells of 2\^31 .* can't be read, and no release"),
    (19, lambda grid: 2, r"flat labels with cells of 2\^2 voxels in slices of 6 x 5 can't be read"),
])
def test_kinds_that_no_release_writes(place, change, message):
    """Pins of fixed width and a grid within slices, which only the specification has, are refused by name."""
    payload = bytearray(package.compress(np.asfortranarray(small_chunk()), parallel=1))
    payload[place] = change(payload[place])
    payload[28] = package.headers.crc8(payload[5:28])
    with pytest.raises(UnsupportedError, match=message):
        crackle.read_points(bytes(payload), SMALL, every_voxel(SMALL.shape))


@pytest.mark.parametrize("place", [5, 19])
def test_a_kind_without_a_checksum_is_damage(place):
    """Format 0 has no checksum of its header: what no release writes is one damaged chunk there, and ends no run."""
    payload = bytearray(base64.b64decode(OLD["0.16.0", "flat"]))
    payload[place] = payload[place] ^ 1 << 5 if place == 5 else 2
    with pytest.raises(CorruptDataError, match="can't be read, and no release"):
        crackle.read_points(bytes(payload), SMALL, every_voxel(SMALL.shape))


@pytest.mark.parametrize("number", [2**64 - 1, 2**63, 2**62, 2**32, 100])
def test_numbers_of_pins_that_cant_be(number):
    """However many pins or components a damaged label claims to have, that is a CorruptDataError, and no allocation."""
    payload = bytearray(base64.b64decode(OLD["0.16.0", "pins"]))
    assert payload[4] == 0
    size = int.from_bytes(payload[20:24], "little")
    widths = payload.index(b"\4\4\4\4", 24 + 16) + 4  # the components of each slice; then three widths, and the pins
    for tail in (number.to_bytes(8, "little"), bytes(8) + number.to_bytes(8, "little")):
        damaged = payload[:widths] + b"\x3f" + tail + payload[24 + 16 + size :]
        damaged[20:24] = (size + len(damaged) - len(payload)).to_bytes(4, "little")
        with pytest.raises(CorruptDataError, match="pins"):
            crackle.read_points(bytes(damaged), SMALL, every_voxel(SMALL.shape))


@pytest.mark.parametrize("single", [2**64 - 1, 2**63, 16])
def test_pins_outside_of_the_chunk(single):
    """A component that isn't there, before the first one too, is a CorruptDataError: no other one's label changes."""
    payload = bytearray(base64.b64decode(OLD["0.16.0", "pins"]))
    size = int.from_bytes(payload[20:24], "little")
    widths = payload.index(b"\4\4\4\4", 24 + 16) + 4
    pins = b"\x30\0\1" + single.to_bytes(8, "little") + b"\0\0" * 2  # numbers of 1 byte, components of 8
    damaged = payload[:widths] + pins + payload[24 + 16 + size :]
    damaged[20:24] = (size + len(damaged) - len(payload)).to_bytes(4, "little")
    with pytest.raises(CorruptDataError, match="a pin is outside the chunk"):
        crackle.read_points(bytes(damaged), SMALL, every_voxel(SMALL.shape))


def test_flipped_bits_of_order_1():
    """With a Markov model of order 1, too, damage raises CorruptDataError or leaves the original's labels."""
    layout = ChunkLayout((17, 13, 5), 1, np.dtype("<u8"))
    array = make_segments(layout)
    payload = package.compress(array[..., 0], markov_model_order=1, parallel=1)
    voxels = every_voxel(layout.shape)
    damaged = flip_bits(payload, 40) + [payload[:end] for end in range(0, len(payload), 40)]
    outcomes = read_damaged(crackle, layout, damaged, voxels, calls_a_child=1)
    for outcome in outcomes:
        assert isinstance(outcome, CorruptDataError | Crashed | np.ndarray), outcome
        if isinstance(outcome, np.ndarray):
            assert np.array_equal(outcome, array[tuple(voxels.T)])
    assert sum(isinstance(outcome, CorruptDataError) for outcome in outcomes) > len(outcomes) // 2
