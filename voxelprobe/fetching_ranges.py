"""Byte ranges of shards: what shards of every format have in common."""

from __future__ import annotations

from collections.abc import Generator, Sequence

from voxelprobe.errors import CorruptDataError
from voxelprobe.transport.jobs import Answer
from voxelprobe.transport.protocol import Request, StoredObject

# Bytes that are cheaper to transfer for nothing than another request.
MAX_GAP_BYTES = 32 << 10
# Of chunks, no more than this share of what is wanted is transferred for nothing: bytes are paid for.
MAX_WASTE = 0.25
MAX_SPAN_BYTES = 8 << 20

ChunkResult = tuple[int, StoredObject | CorruptDataError]
"""A chunk's number with the chunk as stored, `ABSENT`, or what is wrong with it."""


def fetch_ranges(url: str, requests: Sequence[Request]) -> Generator[list[Request], list[Answer], list[bytes]]:
    """Fetch ranges of shards, each with its end; a shorter answer is asked for once more, then it is damage.

    Parameters
    ----------
    url
        The volume's, for messages.

    Raises
    ------
    CorruptDataError
        If a shard doesn't have those bytes.
    """
    contents = [b""] * len(requests)
    sizes = [(request.end or 0) - (request.start or 0) for request in requests]
    lacking = [row for row, size in enumerate(sizes) if size]
    for _ in range(2):
        answers = (yield [requests[row] for row in lacking]) if lacking else []
        asked, lacking = lacking, []
        for row, answer in zip(asked, answers, strict=True):
            if answer is not None:
                check_plain(url, requests[row].path, answer)
                contents[row] = answer.content
            if len(contents[row]) != sizes[row]:
                lacking.append(row)
    if lacking:
        row = lacking[0]
        raise CorruptDataError(
            f"shard {url}/{requests[row].path}: expected {sizes[row]} bytes from {requests[row].start}, "
            f"found {len(contents[row])}"
        )
    return contents


def check_plain(url: str, name: str, answer: StoredObject) -> None:
    """Raise if a shard is stored compressed as a whole: ranges of that are ranges of something else."""
    if answer.encoding is not None:
        raise CorruptDataError(
            f"shard {url}/{name}: expected bytes as they are, found them sent as {answer.encoding}"
        )
