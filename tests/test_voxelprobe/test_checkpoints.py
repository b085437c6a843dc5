"""Kept batches of roots: what was written comes back, and what a power cut left of it does not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from voxelprobe.run.checkpoints import Checkpoints

NOTHING = (np.zeros(0, np.uint64), np.zeros(0, np.uint64))
IDS, ROOTS = np.arange(1, 1001, dtype=np.uint64), np.arange(5001, 6001, dtype=np.uint64)


def test_batches_come_back(tmp_path: Path) -> None:
    """Two batches, in another process as it were, are read with each id once."""
    writer = Checkpoints(tmp_path / "parts")
    writer.write(IDS[:600], ROOTS[:600])
    writer.write(IDS[500:], ROOTS[500:])
    ids, roots = Checkpoints(tmp_path / "parts").read(NOTHING)
    assert ids.tolist() == IDS.tolist()
    assert roots.tolist() == ROOTS.tolist()


@pytest.mark.parametrize("at", [0, 4096, 8192, 12288, 16000])
def test_a_batch_with_lost_blocks(at: int, tmp_path: Path) -> None:
    """A batch of which blocks came to the disk as zeros is asked for again: zeros are no answers."""
    writer = Checkpoints(tmp_path / "parts")
    writer.write(IDS, ROOTS)
    (path,) = (tmp_path / "parts").glob("*.npy")
    content = path.read_bytes()
    path.write_bytes(content[:at] + b"\0" * len(content[at : at + 4096]) + content[at + 4096 :])
    assert path.read_bytes() != content
    assert [len(part) for part in Checkpoints(tmp_path / "parts").read(NOTHING)] == [0, 0]


def test_a_batch_cut_anywhere(tmp_path: Path) -> None:
    """A batch that lacks bytes at its end, any number of them, does not count."""
    writer = Checkpoints(tmp_path / "parts")
    writer.write(IDS[:20], ROOTS[:20])
    (path,) = (tmp_path / "parts").glob("*.npy")
    content = path.read_bytes()
    for size in range(len(content)):
        path.write_bytes(content[:size])
        assert len(Checkpoints(tmp_path / "parts").read(NOTHING)[0]) == 0
