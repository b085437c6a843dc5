"""The two indices of a shard file: where its minishard indices are, and where a minishard's chunks are.

Format: https://github.com/google/neuroglancer/blob/master/src/datasource/precomputed/sharded.md
Stored offsets count from the end of the shard index. All that leaves this module is an absolute byte range of the
file, as int64: mixed with uint64, numpy would turn them into floats.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from voxelprobe.arrays import Bool, Int64, UInt64
from voxelprobe.errors import CorruptDataError
from voxelprobe.sharding.spec import Sharding
from voxelprobe.transport.wrappers import strip_compression

# 44 million chunks. Published minishards hold at most some thousands; more is a damaged or hostile gzip stream.
MAX_MINISHARD_INDEX_BYTES = 2**30


@dataclass(frozen=True, slots=True, eq=False)
class MinishardIndex:
    """The chunks of one minishard; all of shape (n,), ordered by id.

    Attributes
    ----------
    chunk_ids
        uint64, ascending. An id stored twice keeps its first place first, which is the one that `find` gives.
    starts, ends
        int64, the chunks' absolute byte ranges in the shard file. An empty range is an empty chunk.
    """

    chunk_ids: UInt64
    starts: Int64
    ends: Int64

    def find(self, chunk_ids: UInt64) -> tuple[Int64, Int64, Bool]:
        """Return where some chunks begin and end in the shard file, and which of them are stored at all.

        Parameters
        ----------
        chunk_ids
            Shape (n,), in any order, repeats allowed.

        Returns
        -------
        Starts, ends and whether found, each of shape (n,), in the order of `chunk_ids`. Starts and ends are 0 where
        the chunk isn't stored.
        """
        if not len(self.chunk_ids):
            nothing = np.zeros(len(chunk_ids), np.int64)
            return nothing, nothing.copy(), nothing.astype(np.bool_)
        rows = np.minimum(np.searchsorted(self.chunk_ids, chunk_ids), len(self.chunk_ids) - 1)
        found = self.chunk_ids[rows] == chunk_ids
        return np.where(found, self.starts[rows], 0), np.where(found, self.ends[rows], 0), found


def shard_index_bytes(spec: Sharding) -> int:
    """Return the size of the index that a shard file begins with."""
    return 16 << spec.minishard_bits


def parse_shard_index(payload: bytes, spec: Sharding) -> Int64:
    """Return where in the shard file each minishard's index is.

    Parameters
    ----------
    payload
        The first `shard_index_bytes(spec)` bytes of the file.

    Returns
    -------
    Shape (2**minishard_bits, 2), absolute start and end. A minishard without chunks has start = end.

    Raises
    ------
    CorruptDataError
        If `payload` has another length, or an end comes before its start.
    """
    size = shard_index_bytes(spec)
    if len(payload) != size:
        raise CorruptDataError(f"the index of a shard with {spec.minishard_bits} minishard bits has {size} bytes, "
                               f"found {len(payload)}")
    stored = np.frombuffer(payload, "<u8").reshape(-1, 2)
    _check_ranges(stored[:, 0], stored[:, 1], size, "the index of minishard")
    return stored.astype(np.int64) + size


def parse_minishard_index(payload: bytes, spec: Sharding) -> MinishardIndex:
    """Return the chunks of a minishard.

    Parameters
    ----------
    payload
        The bytes at one of `parse_shard_index`'s ranges, as stored: gzip is stripped here if `spec` says so.

    Raises
    ------
    CorruptDataError
        If `payload` contradicts the format.
    """
    if spec.minishard_index_encoding == "gzip":
        payload = bytes(strip_compression(payload, "gzip", max_bytes=MAX_MINISHARD_INDEX_BYTES))
    if len(payload) % 24:
        raise CorruptDataError(f"a minishard index has 24 bytes a chunk, found {len(payload)} bytes")
    stored = np.frombuffer(payload, "<u8").reshape(3, -1).astype(np.uint64)
    # Deltas are meant modulo 2^64: that is how a file says that ids or places go down. numpy's sums wrap likewise.
    chunk_ids = np.cumsum(stored[0], dtype=np.uint64)
    sizes = stored[2]
    starts = np.cumsum(stored[1], dtype=np.uint64)
    starts[1:] += np.cumsum(sizes[:-1], dtype=np.uint64)
    ends = starts + sizes
    base = shard_index_bytes(spec)
    _check_ranges(starts, ends, base, "entry")
    if (chunk_ids[1:] < chunk_ids[:-1]).any():
        # Stable, so that of an id stored twice the first is found, as other readers do.
        order = np.argsort(chunk_ids, kind="stable")
        chunk_ids, starts, ends = chunk_ids[order], starts[order], ends[order]
    return MinishardIndex(chunk_ids, starts.astype(np.int64) + base, ends.astype(np.int64) + base)


def _check_ranges(starts: UInt64, ends: UInt64, base: int, what: str) -> None:
    """Raise if a range ends before it starts, or beyond what a file's size can be, once `base` is added."""
    wrong = (ends < starts) | (ends > np.uint64(2**63 - 1 - base))
    if wrong.any():
        row = int(np.argmax(wrong))
        raise CorruptDataError(f"{what} {row}: expected start <= end < 2^63, "
                               f"found {int(starts[row])} and {int(ends[row])}")
