from __future__ import annotations

import itertools
import warnings
from decimal import Decimal

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.errors import InputError
from voxelprobe.points import PointColumns, parse_point_columns, read_coordinates

LIST = pa.list_(pa.int64())
STRUCT = pa.struct([(axis, pa.int32()) for axis in "xyz"])
NUMBERS = [pa.int8(), pa.uint8(), pa.int16(), pa.uint16(), pa.int32(), pa.uint32(), pa.int64(), pa.uint64(),
           pa.float16(), pa.float32(), pa.float64(), pa.decimal128(20, 3)]


def schema(**types: pa.DataType) -> pa.Schema:
    return pa.schema(types.items())


@pytest.mark.parametrize(("text", "columns", "expected"), [
    ("x,y,z", dict.fromkeys("xyz", pa.int64()), [(None, ("x", "y", "z"))]),
    (" x, y ,z ", dict.fromkeys("xyz", pa.float32()), [(None, ("x", "y", "z"))]),
    ("z,y,x", dict.fromkeys("xyz", pa.int64()), [(None, ("z", "y", "x"))]),
    ("pos_x,b,c", {"c": pa.uint8(), "b": pa.float64(), "pos_x": pa.decimal128(9, 2)}, [(None, ("pos_x", "b", "c"))]),
    ("x,y,z", dict.fromkeys("xyz", pa.dictionary(pa.int8(), pa.int64())), [(None, ("x", "y", "z"))]),
    ("x,y,z", dict.fromkeys("xyz", pa.null()), [(None, ("x", "y", "z"))]),
    ("pre_pt,post_pt", {"pre_pt_position": LIST, "post_pt": STRUCT},
     [("pre_pt", ("pre_pt_position",)), ("post_pt", ("post_pt",))]),
    ("pt", {"pt": pa.list_(pa.float32(), 3)}, [("pt", ("pt",))]),
    ("pt", {"pt": pa.large_list(pa.uint64())}, [("pt", ("pt",))]),
    ("pt", {"pt": pa.fixed_shape_tensor(pa.int64(), [3])}, [("pt", ("pt",))]),
    ("pt", {f"pt_{a}": pa.int64() for a in "zyx"}, [("pt", ("pt_x", "pt_y", "pt_z"))]),
    ("a,b,c", {"a": LIST, "b": LIST, "c": LIST}, [(p, (p,)) for p in "abc"]),
    ("a,b,c", {"a": pa.int64(), "b": pa.int64(), "c": LIST, "a_x": pa.int64(), "a_y": pa.int64(), "a_z": pa.int64(),
               "b_position": LIST}, [("a", ("a_x", "a_y", "a_z")), ("b", ("b_position",)), ("c", ("c",))]),
    ("pt_position", {"pt_position": LIST}, [("pt_position", ("pt_position",))]),
    ("pt", {"pt": pa.string(), "pt_x": pa.int64(), "pt_y": pa.int64(), "pt_z": pa.int64()},
     [("pt", ("pt_x", "pt_y", "pt_z"))]),
])
def test_points_are_found(text: str, columns: dict[str, pa.DataType],
                          expected: list[tuple[str | None, tuple[str, ...]]]) -> None:
    """Three columns of numbers are one point; other names are prefixes of lists, structs or three columns."""
    found = parse_point_columns(text, schema(**columns), "p.parquet")
    assert [(point.prefix, point.sources) for point in found] == expected


def test_the_first_of_several_ways_counts() -> None:
    """Position list, plain list, three position columns, three plain columns: in that order."""
    ways = [{"pt_position": LIST}, {"pt": STRUCT}, {f"pt_position_{a}": pa.int64() for a in "xyz"},
            {f"pt_{a}": pa.int64() for a in "xyz"}]
    for first in range(len(ways)):
        columns = {name: dtype for way in reversed(ways[first:]) for name, dtype in way.items()}
        assert parse_point_columns("pt", schema(**columns), "p")[0].sources == tuple(ways[first])


@settings(max_examples=50, deadline=None)
@given(order=st.permutations([f"{p}_pt_position_{a}" for p in ("pre", "post") for a in "xyz"]),
       prefixes=st.permutations(["pre_pt", "post_pt"]))
def test_axes_of_two_points_never_mix(order: list[str], prefixes: list[str]) -> None:
    """Whatever the order of the columns, a point's x, y and z have its own prefix, in x y z order."""
    for point in parse_point_columns(",".join(prefixes), schema(**dict.fromkeys(order, pa.int64())), "p"):
        assert point.sources == tuple(f"{point.prefix}_position_{axis}" for axis in "xyz")


@pytest.mark.parametrize(("text", "columns", "message"), [
    ("x,y,z", {"x": pa.int64(), "y": pa.int64(), "Z": pa.int64()}, r"no column 'z' \(did you mean 'Z'\?\); its columns "
     "are x int64, y int64, Z int64"),
    ("x,y,z", {"x": pa.int64(), " y": pa.int64(), "z": pa.int64()}, r"no column 'y' \(did you mean ' y'\?\)"),
    ("x,y,z", dict.fromkeys(["x", "y"], pa.int64()) | {"z": pa.string()}, r"numbers in column z, found string"),
    ("x,y,z", dict.fromkeys(["x", "y"], pa.int64()) | {"z": pa.bool_()}, r"numbers in column z, found bool"),
    ("x,y,z", {"pt_position": LIST}, r"three columns of numbers, or prefixes .* found no column 'x', 'y', 'z'"),
    ("pre_pt,post_pt", {"pre_pt_position": LIST, "post_pt_postion": LIST},
     r"expected a list or struct column post_pt_position or post_pt, or three columns post_pt_position_x,"
     r"post_pt_position_y,post_pt_position_z or post_pt_x,post_pt_y,post_pt_z; found none of them "
     r"\(did you mean 'post_pt_postion'\?\); its columns are pre_pt_position list"),
    ("pt", {"pt_position": pa.string()}, r"found none of them; pt_position is string, not a list or struct"),
    ("pt", {"pt_x": pa.int64(), "pt_y": pa.int64()}, r"found none of them"),
    ("pt", {"pt_x": pa.int64(), "pt_y": pa.int64(), "pt_z": pa.string()}, r"numbers in column pt_z, found string"),
    ("pt", {"pt": pa.list_(pa.string())}, r"three numbers or a struct with x, y and z in column pt, found list"),
    ("pt", {"pt": pa.list_(pa.int64(), 2)}, r"in column pt, found fixed_size_list<.*>\[2\]"),
    ("pt", {"pt": pa.struct([("x", pa.int64()), ("y", pa.int64())])}, r"column pt, found struct<x: int64, y: int64>"),
    ("pt", {"pt": pa.struct([("x", pa.int64()), ("y", pa.int64()), ("z", pa.bool_())])}, r"in column pt, found struct"),
    ("pt,pt", {"pt": LIST}, r"point columns 'pt,pt': expected different column names as in x,y,z or prefixes"),
    ("x,,z", {"x": LIST}, r"expected different column names"),
    ("", {"x": LIST}, r"expected different column names"),
    ("pt", {f"c{i}": pa.int64() for i in range(100)}, r"c59 int64 and 40 more$"),
])
def test_points_that_are_not_there(text: str, columns: dict[str, pa.DataType], message: str) -> None:
    """The message says what was looked for, what there is, and the nearest name."""
    with pytest.raises(InputError, match=message):
        parse_point_columns(text, schema(**columns), "p.parquet")


def test_why_a_column_is_no_number() -> None:
    """What the CSV reader noted of a text column is in the message."""
    columns = schema(x=pa.int64(), y=pa.int64(), z=pa.string())
    with pytest.raises(InputError, match=r"of p\.csv: .*column z, found string \(because of 'oops' in row 4\)"):
        parse_point_columns("x,y,z", columns, "p.csv", {"z": "'oops' in row 4"})


def batch_of(array: pa.Array) -> tuple[pa.RecordBatch, PointColumns]:
    return pa.record_batch([array], names=["pt"]), PointColumns("pt", ("pt",))


POINTS = [(1, 2, 3), None, (4, 5, 6), (7, None, 9), (10, 11, 12), None]
VALUES = [[1, 2, 3], [0, 0, 0], [4, 5, 6], [0, 0, 0], [10, 11, 12], [0, 0, 0]]
VALID = [True, False, True, False, True, False]


def layouts(dtype: pa.DataType) -> dict[str, pa.RecordBatch]:
    """POINTS in every layout that a point may have."""
    tuples = [p if p is None else tuple(None if v is None else Decimal(v) if pa.types.is_decimal(dtype) else
                                        np.float16(v) if dtype == pa.float16() else v for v in p) for p in POINTS]
    axes = [pa.array([None if p is None else p[i] for p in tuples], dtype) for i in range(3)]
    lists = [None if p is None else list(p) for p in tuples]
    struct = pa.struct([("z", dtype), ("other", pa.string()), ("y", dtype), ("x", dtype)])
    return {
        "scalars": pa.record_batch(axes, names=["pt_x", "pt_y", "pt_z"]),
        "list": batch_of(pa.array(lists, pa.list_(dtype)))[0],
        "large_list": batch_of(pa.array(lists, pa.large_list(dtype)))[0],
        "fixed": batch_of(pa.array(lists, pa.list_(dtype, 3)))[0],
        "struct": batch_of(pa.array([None if p is None else {"x": p[0], "y": p[1], "z": p[2]} for p in tuples],
                                    struct))[0],
    }


@pytest.mark.parametrize("dtype", NUMBERS, ids=str)
@pytest.mark.parametrize("layout", ["scalars", "list", "large_list", "fixed", "struct"])
def test_coordinates_of_every_layout_and_type(dtype: pa.DataType, layout: str) -> None:
    """Integers come as int64 and the rest as float64; a null anywhere in a point makes it invalid; slices work."""
    batch = layouts(dtype)[layout]
    columns = parse_point_columns("pt", batch.schema, "p")[0]
    for start, stop in itertools.combinations(range(len(POINTS) + 1), 2):
        found = read_coordinates(batch.slice(start, stop - start), columns)
        assert found.values.dtype == (np.int64 if pa.types.is_integer(dtype) else np.float64)
        assert found.values.tolist() == VALUES[start:stop]
        assert found.valid.tolist() == VALID[start:stop]
        assert found.valid.dtype == np.bool_
    empty = read_coordinates(batch.slice(0, 0), columns)
    assert (empty.values.shape, empty.valid.shape) == ((0, 3), (0,))


@settings(max_examples=60, deadline=None)
@given(points=st.lists(st.none() | st.lists(st.integers(0, 2**64 - 1), min_size=3, max_size=3), max_size=8),
       nested=st.booleans())
def test_integers_stay_exact(points: list[list[int] | None], nested: bool) -> None:
    """Integers come out exactly, and unsigned ones beyond int64 as the largest int64."""
    if nested:
        batch = pa.record_batch([pa.array(points, pa.list_(pa.uint64()))], names=["pt"])
    else:
        batch = pa.record_batch([pa.array([None if p is None else p[i] for p in points], pa.uint64())
                                 for i in range(3)], names=["pt_x", "pt_y", "pt_z"])
    found = read_coordinates(batch, parse_point_columns("pt", batch.schema, "p")[0])
    assert found.valid.tolist() == [p is not None for p in points]
    assert found.values.tolist() == [[0] * 3 if p is None else [min(v, 2**63 - 1) for v in p] for p in points]


def test_floats_that_are_no_place() -> None:
    """NaN and infinities are invalid; 1e300 is a place, if a far one."""
    lists = [[1.5, float("nan"), 2.0], [float("inf"), 0.0, 0.0], [0.0, 0.0, -float("inf")], [1e300, -0.5, 3.0]]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for dtype in (pa.list_(pa.float64()), pa.list_(pa.float64(), 3)):
            found = read_coordinates(*batch_of(pa.array(lists, dtype)))
            assert found.valid.tolist() == [False, False, False, True]
            assert found.values.tolist() == [[0, 0, 0]] * 3 + [[1e300, -0.5, 3.0]]


def test_mixed_and_wrapped_types() -> None:
    """Each axis keeps its kind of number; dictionaries, tensors and all-null columns are read too."""
    columns = PointColumns(None, ("x", "y", "z"))
    mixed = pa.record_batch([pa.array([1]), pa.array([2.5]), pa.array([3], pa.uint8())], names=["x", "y", "z"])
    assert read_coordinates(mixed, columns).values.tolist() == [[1.0, 2.5, 3.0]]
    assert [axis.dtype for axis in read_coordinates(mixed, columns).axes] == [np.int64, np.float64, np.int64]
    encoded = pa.record_batch([pa.array([7, None, 7]).dictionary_encode()] * 3, names=["x", "y", "z"])
    found = read_coordinates(encoded, columns)
    assert (found.values.tolist(), found.valid.tolist()) == ([[7] * 3, [0] * 3, [7] * 3], [True, False, True])
    nothing = pa.record_batch([pa.nulls(2)] * 3, names=["x", "y", "z"])
    assert read_coordinates(nothing, columns).valid.tolist() == [False, False]
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(6).reshape(2, 3))
    assert read_coordinates(*batch_of(tensor)).values.tolist() == [[0, 1, 2], [3, 4, 5]]


@pytest.mark.parametrize("dtype", [pa.list_(pa.int64()), pa.large_list(pa.int64())])
def test_a_list_of_another_length(dtype: pa.DataType) -> None:
    """A list that isn't three numbers is an error that names the column, the row in the table and the length."""
    batch, columns = batch_of(pa.array([[1, 2, 3], None, [1, 2, 3, 4], [1]], dtype))
    with pytest.raises(InputError, match=r"column pt, row 102: expected a list of 3 numbers, found 4"):
        read_coordinates(batch, columns, first_row=100)
    with pytest.raises(InputError, match=r"column pt, row 1: expected a list of 3 numbers, found 1"):
        read_coordinates(batch.slice(2).slice(0).slice(1).slice(0), columns, first_row=1)


def test_complete_integer_lists_are_not_copied() -> None:
    """Without nulls, lists of int64 are a view of the batch."""
    lists = pa.array([[1, 2, 3], [4, 5, 6]], pa.list_(pa.int64(), 3))
    found = read_coordinates(*batch_of(lists))
    assert found.axes[0].ctypes.data == lists.values.buffers()[1].address
