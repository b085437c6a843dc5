"""Points in a `.npy` array of shape (n, 3): columns x, y and z.

Format: https://numpy.org/doc/stable/reference/generated/numpy.lib.format.html
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from voxelprobe.arrays import to_arrow
from voxelprobe.errors import InputError

_PIECE_ROWS = 1 << 18


class NpySource:
    """The rows of a memory-mapped array of any integer or float type."""

    def __init__(self, path: Path) -> None:
        try:
            # Never a pickle: opening one runs whatever its author liked.
            array = np.load(path, mmap_mode="r", allow_pickle=False)
        except (OSError, MemoryError):
            raise
        except Exception as error:  # besides ValueError what Python's parser says of a header: TokenError, SyntaxError
            raise InputError(f"points table {path}: expected a NumPy array of shape (n, 3), found a file that is "
                             f"something else or was cut short: {error}") from error
        if not isinstance(array, np.ndarray) or array.ndim != 2 or array.shape[1] != 3 or array.dtype.kind not in "iuf":
            found = f"{array.dtype} of shape {array.shape}" if isinstance(array, np.ndarray) else type(array).__name__
            raise InputError(f"points table {path}: expected a NumPy array of integers or floats of shape (n, 3), "
                             f"found {found}")
        self._array = array
        # Arrow knows native byte order, and floats of 64 bits at most.
        dtype = array.dtype.newbyteorder("=")
        self._dtype = np.dtype(np.float64) if dtype.kind == "f" and dtype.itemsize > 8 else dtype
        self.schema = pa.schema([(name, pa.from_numpy_dtype(self._dtype)) for name in "xyz"])
        self.num_rows = len(array)
        self.type_notes: Mapping[str, str] = {}

    def read(self, columns: Sequence[str]) -> Iterator[pa.RecordBatch]:
        """Yield the rows, copied out of the map column by column."""
        for start in range(0, self.num_rows, _PIECE_ROWS):
            rows = self._array[start : start + _PIECE_ROWS]
            arrays = [to_arrow(rows[:, "xyz".index(name)].astype(self._dtype)) for name in columns]
            yield pa.RecordBatch.from_arrays(arrays, names=list(columns))
