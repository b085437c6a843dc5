"""How the columns of a result are encoded in Parquet: with what every reader knows, so by dictionary or plain."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa

from voxelprobe.arrays import from_arrow, sort_unique

_SAMPLE_ROWS = 1 << 16
# Fewer values tell nothing, and cost nothing however they are written.
_MIN_ROWS = 1 << 10
# At half of them different there are about 40,000 in all. Up to twice that a dictionary is as fast as zstd alone, and
# smaller; beyond 131,072, Arrow gives it up in the middle of a row group, at a third more time and no less space.
_MAX_DIFFERENT_SHARE = 1 / 2


def open_parquet(sink: Any, schema: pa.Schema, first: pa.RecordBatch | None) -> Any:
    """Return a writer of a Parquet file whose encodings suit its first batch, if there is one."""
    import pyarrow.parquet as pq

    dictionaries: Any = [] if first is None else choose_dictionaries(first)
    return pq.ParquetWriter(sink, schema, compression="zstd", use_dictionary=dictionaries or False)


def choose_dictionaries(batch: pa.RecordBatch) -> list[str]:
    """Return the columns to write through a dictionary, judged by a sample of the first batch of a table.

    Texts and dictionaries always, numbers where they repeat: labels and roots of few cells, coordinates of a
    small volume. The same rows always give the same answer.
    """
    return [field.name for field, column in zip(batch.schema, batch.columns, strict=True) if _pays(field.type, column)]


def _pays(dtype: pa.DataType, column: Any) -> bool:
    if not (pa.types.is_integer(dtype) or pa.types.is_floating(dtype)):
        return not pa.types.is_primitive(dtype)
    if len(column) < _MIN_ROWS:
        return False
    step = max(1, len(column) // _SAMPLE_ROWS)
    values = from_arrow(column)[::step]
    if column.null_count:
        # What stands in the place of a null is anything.
        bits = np.unpackbits(np.frombuffer(column.buffers()[0], np.uint8), bitorder="little").view(np.bool_)
        values = values[bits[column.offset : column.offset + len(column)][::step]]
    return len(sort_unique(values)) <= len(values) * _MAX_DIFFERENT_SHARE
