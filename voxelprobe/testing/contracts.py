"""What every implementation of a protocol has to keep: test classes to subclass, one a protocol."""

from __future__ import annotations

import dataclasses
import faulthandler
import functools
import os
import pickle
import signal
from collections.abc import Callable, Iterable, Sequence
from math import prod
from typing import Any, TypeVar

import numpy as np

from voxelprobe.arrays import Labels, Voxels
from voxelprobe.codecs.protocol import ChunkLayout, PointReader
from voxelprobe.errors import CorruptDataError, VoxelProbeError

Item = TypeVar("Item")
_CHILD_SECONDS = 60


class Crashed:
    """What `call_in_children` returns for a call that ended its process."""


def call_in_children(
    function: Callable[[Item], Any], items: Sequence[Item], *, calls_a_child: int = 1_000_000
) -> list[Any]:
    """Return each call's value, the error it raised, or a `Crashed` if it ended its process.

    Errors that aren't ours come back as RuntimeError. A forked process makes `calls_a_child` calls, or until it dies:
    a package that wrote outside its arrays spoils the calls after it too.
    """
    outcomes: list[Any] = []
    while len(outcomes) < len(items):
        some = items[len(outcomes):len(outcomes) + calls_a_child]
        values = _call_in_child(function, some)
        outcomes += values
        if len(values) < len(some):
            outcomes.append(Crashed())
    return outcomes


def _call_in_child(function: Callable[[Item], Any], items: Sequence[Item]) -> list[Any]:
    receiver, sender = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receiver)
        signal.alarm(_CHILD_SECONDS)
        faulthandler.disable()  # where a crash is expected, nobody reads its traceback
        os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # the C library writes about its broken heap
        with os.fdopen(sender, "wb") as stream:
            for item in items:
                stream.write(pickle.dumps(_call(function, item)))
                stream.flush()
        os._exit(0)
    os.close(sender)
    outcomes = []
    with os.fdopen(receiver, "rb") as stream:
        while True:
            try:
                outcomes.append(pickle.load(stream))  # noqa: S301  # our own child wrote it
            except (EOFError, pickle.UnpicklingError):
                break
    os.waitpid(child, 0)
    return outcomes


def _call(function: Callable[[Item], Any], item: Item) -> Any:
    try:
        return function(item)
    except VoxelProbeError as error:
        return error
    except Exception as error:
        return RuntimeError(repr(error))


def make_segments(layout: ChunkLayout, seed: int = 0) -> Labels:
    """Return a chunk of small segments (of noise, if `seed` is odd) with labels up to the dtype's largest.

    Shape (x, y, z, channels).
    """
    rng = np.random.default_rng(seed)
    grain = 1 if seed % 2 else 3
    fine = rng.integers(0, 12, [-(-size // grain) for size in layout.shape] + [layout.num_channels])
    for axis in range(3):
        fine = fine.repeat(grain, axis)
    fine = fine[tuple(slice(size) for size in layout.shape)]
    if layout.dtype.kind == "f":
        return np.asfortranarray(fine.astype(layout.dtype) / 7)
    largest = np.iinfo(layout.dtype).max
    others = rng.integers(0, largest, 5, layout.dtype)
    palette = np.array([0, 1, 6, 7, largest, largest - 1, largest - 7, *others], layout.dtype)
    return np.asfortranarray(palette[fine])


def every_voxel(shape: Iterable[int]) -> Voxels:
    """Return all voxels of a chunk: shape (n, 3), z fastest."""
    return np.indices(tuple(shape)).reshape(3, -1).T.astype(np.int64)


def flip_bits(payload: bytes, number: int, seed: int = 0) -> list[bytes]:
    """Return `number` copies of a payload, each with one to three bits flipped anywhere."""
    rng = np.random.default_rng(seed)
    copies = []
    for _ in range(number):
        damaged = bytearray(payload)
        for _ in range(rng.integers(1, 4)):
            damaged[rng.integers(len(damaged))] ^= 1 << int(rng.integers(8))
        copies.append(bytes(damaged))
    return copies


def read_damaged(
    reader: PointReader,
    layout: ChunkLayout,
    payloads: Sequence[bytes],
    voxels: Voxels,
    *,
    calls_a_child: int = 1_000_000,
) -> list[Any]:
    """Return for each payload the labels, the error, or a `Crashed`."""
    return call_in_children(
        lambda payload: reader.read_points(payload, layout, voxels), payloads, calls_a_child=calls_a_child
    )


class PointReaderTests:
    """The laws of `PointReader`. A subclass has `reader`, `layouts` and `encode`.

    Attributes
    ----------
    layouts
        Every dtype the encoding holds, sizes that aren't multiples of a block, one voxel, several channels if it has
        them. Small ones: every truncation of the first is tried.
    truncation_may_crash
        Whether a truncated payload may end the process that reads it, which `run_isolated` reports as a damaged chunk.
    """

    reader: PointReader
    layouts: Sequence[ChunkLayout]
    truncation_may_crash = False

    def encode(self, array: Labels, layout: ChunkLayout) -> bytes:
        """Return a chunk as another program writes it; `array` has shape (x, y, z, channels)."""
        raise AssertionError(f"{type(self).__name__} has to bring its own encode()")

    def decoded(self, array: Labels, layout: ChunkLayout) -> Labels:
        """Return what `encode(array, layout)` holds, by another decoder: where encoding loses nothing, the array."""
        return array

    def test_every_voxel(self) -> None:
        """All voxels of all layouts have the labels that were encoded, with shape (n, channels) and the dtype."""
        for layout in self.layouts:
            array = make_segments(layout)
            voxels = every_voxel(layout.shape)
            labels = self.reader.read_points(self.encode(array, layout), layout, voxels)
            assert labels.shape == (prod(layout.shape), layout.num_channels), layout
            assert labels.dtype == layout.dtype, layout
            assert np.array_equal(labels, self.decoded(array, layout)[tuple(voxels.T)]), layout

    def test_few_voxels(self) -> None:
        """A few voxels in any order with repeats get the labels that all voxels together get."""
        rng = np.random.default_rng(1)
        for layout in self.layouts:
            array = make_segments(layout, seed=1)
            payload, stored = self.encode(array, layout), self.decoded(array, layout)
            for number in (1, 2, 7, 40, 200):
                voxels = rng.integers(0, layout.shape, (number, 3))
                voxels[number // 2] = voxels[0]
                labels = self.reader.read_points(payload, layout, voxels)
                assert np.array_equal(labels, stored[tuple(voxels.T)]), (layout, number)

    def test_what_gzip_leaves(self) -> None:
        """A bytearray, which gzip is stripped into, reads as the same bytes do, cut ones too, and stays as it is."""
        if self.reader.ISOLATED:
            return  # given `bytes` by whoever runs it
        for layout in self.layouts:
            payload = self.encode(make_segments(layout), layout)
            voxels = every_voxel(layout.shape)
            for end in (len(payload), len(payload) - 1, len(payload) // 2, 3, 0):
                for some in (voxels, voxels[:3]):
                    stripped = bytearray(payload[:end])
                    one = _call(functools.partial(self.reader.read_points, layout=layout, voxels=some), payload[:end])
                    other = _call(functools.partial(self.reader.read_points, layout=layout, voxels=some), stripped)
                    assert stripped == payload[:end], (layout, end)
                    assert type(one) is type(other), (layout, end, other)
                    same = np.array_equal(one, other) if isinstance(one, np.ndarray) else str(one) == str(other)
                    assert same, (layout, end, other)

    def test_no_voxels(self) -> None:
        """No voxels give no labels, still with shape (0, channels) and the dtype."""
        for layout in self.layouts:
            payload = self.encode(make_segments(layout), layout)
            labels = self.reader.read_points(payload, layout, np.empty((0, 3), np.int64))
            assert labels.shape == (0, layout.num_channels), layout
            assert labels.dtype == layout.dtype, layout

    def test_one_label(self) -> None:
        """A chunk of nothing but 0, or nothing but the largest label, reads as that."""
        for layout in self.layouts:
            largest = 1.5 if layout.dtype.kind == "f" else np.iinfo(layout.dtype).max
            for label in (0, largest):
                array = np.full((*layout.shape, layout.num_channels), label, layout.dtype, order="F")
                labels = self.reader.read_points(self.encode(array, layout), layout, every_voxel(layout.shape))
                assert (labels == label).all(), (layout, label)

    def test_every_truncation(self) -> None:
        """A payload cut at any byte raises CorruptDataError or gives the exact labels, and ends no process.

        Unless `truncation_may_crash`; but that is never the rule.
        """
        layout = self.layouts[0]
        array = make_segments(layout)
        payload = self.encode(array, layout)
        voxels = every_voxel(layout.shape)
        for some in (voxels, voxels[:3]):
            cut = [payload[:end] for end in range(len(payload))]
            # Where reading on may spoil memory, a process reads one payload, as `run_isolated` has it.
            outcomes = read_damaged(self.reader, layout, cut, some,
                                    calls_a_child=1 if self.truncation_may_crash else len(cut))
            if self.truncation_may_crash:
                crashes = sum(isinstance(outcome, Crashed) for outcome in outcomes)
                assert crashes < len(cut) / 2, (crashes, len(cut))
            for end, outcome in enumerate(outcomes):
                if self.truncation_may_crash and isinstance(outcome, Crashed):
                    continue
                if not isinstance(outcome, CorruptDataError):
                    assert isinstance(outcome, np.ndarray), (end, outcome)
                    assert np.array_equal(outcome, self.decoded(array, layout)[tuple(some.T)]), end

    def test_not_a_chunk(self) -> None:
        """No bytes, zeros, an error page and noise are CorruptDataErrors, never labels."""
        noise = np.random.default_rng(2).bytes(5000)
        page = b"<?xml version='1.0'?><Error><Code>NoSuchKey</Code></Error>" * 20
        for layout in self.layouts:
            voxels = every_voxel(layout.shape)
            payloads = [b"", bytes(1), bytes(1001), page + b"\n", noise[:-1]]
            for outcome in read_damaged(self.reader, layout, payloads, voxels):
                assert isinstance(outcome, CorruptDataError), (layout, outcome)

    def test_other_layout(self) -> None:
        """A chunk of another size than the layout's, as a slip of the grid would have it, isn't read past its end."""
        layout = self.layouts[0]
        payload = self.encode(make_segments(layout), layout)
        sx, sy, sz = layout.shape
        larger = dataclasses.replace(layout, shape=(sx + 64, sy + 64, sz + 64))
        outcome, = read_damaged(self.reader, larger, [payload], every_voxel(larger.shape))
        assert isinstance(outcome, CorruptDataError), outcome
