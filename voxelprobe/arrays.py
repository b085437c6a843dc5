"""Array types that cross module borders, and the few operations on them that several stages share."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

# Shape (n, 3), int64, x y z.
Voxels = npt.NDArray[np.int64]
# Shape (n, channels), the volume's own dtype.
Labels = npt.NDArray[Any]
Int64 = npt.NDArray[np.int64]
UInt64 = npt.NDArray[np.uint64]
Bool = npt.NDArray[np.bool_]

_RUN = 256
_FLOATS = {"halffloat": "f2", "float": "f4", "double": "f8"}


def sort_unique(values: npt.NDArray[Any]) -> npt.NDArray[Any]:
    """Return each different value once, ascending. `np.unique` hashes first, and is up to seven times slower."""
    values = values.reshape(-1)
    # Labels repeat among neighbours, and short runs are sorted at a fifth of the cost of long ones.
    whole = len(values) - len(values) % _RUN
    runs = _keep_first(np.sort(values[:whole].reshape(-1, _RUN), axis=1))
    return _keep_first(np.sort(np.concatenate([runs, values[whole:]])))


def _keep_first(ordered: npt.NDArray[Any]) -> npt.NDArray[Any]:
    first = np.ones(ordered.shape, np.bool_)
    np.not_equal(ordered[..., 1:], ordered[..., :-1], out=first[..., 1:])
    return ordered[first]


def to_arrow(values: npt.NDArray[Any], absent: Bool | None = None) -> Any:
    """Return numbers, shape (n,), as an Arrow array that shares their memory, with nulls where `absent`.

    Booleans are packed. `pyarrow.array` would load pandas where that is installed, which takes longer than a small
    table.
    """
    import pyarrow as pa

    values = np.ascontiguousarray(values)
    valid = None
    if absent is not None and absent.any():
        valid = pa.py_buffer(np.packbits(~absent, bitorder="little").data)
    if values.dtype == np.bool_:
        bits = pa.py_buffer(np.packbits(values, bitorder="little").data)
        return pa.Array.from_buffers(pa.bool_(), len(values), [valid, bits])
    return pa.Array.from_buffers(pa.from_numpy_dtype(values.dtype), len(values), [valid, pa.py_buffer(values.data)])


def from_arrow(array: Any) -> npt.NDArray[Any]:
    """Return an Arrow array of numbers as a view of its memory, anything where null; `to_numpy` would load pandas.

    Booleans are unpacked.
    """
    if str(array.type) == "bool":
        bits = np.frombuffer(array.buffers()[1] or b"", np.uint8)
        return np.unpackbits(bits, bitorder="little")[array.offset : array.offset + len(array)].astype(np.bool_)
    # `to_pandas_dtype` needs pandas in pyarrow 17.
    name = str(array.type)
    dtype = np.dtype(_FLOATS.get(name, name))
    buffer = array.buffers()[1]
    if not len(array) or buffer is None:
        return np.zeros(0, dtype)
    return np.frombuffer(buffer, dtype, len(array), array.offset * dtype.itemsize)


def pick(column: Any, rows: Int64) -> list[Any]:
    """Return an Arrow column's values in rows, shape (n,), ascending and each once, as Python's own.

    A few one by one: Arrow's `take` would have all its functions loaded, which takes longer than a thousand values.
    """
    if len(rows) == len(column):
        return list(column.to_pylist())
    return [column[row].as_py() for row in rows.tolist()]
