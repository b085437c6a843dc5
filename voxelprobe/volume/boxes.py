"""Flat numbers of places in a box, x fastest, and the integer arithmetic behind them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from voxelprobe.arrays import Voxels

Integers = npt.NDArray[Any]
Unsigned = npt.NDArray[np.unsignedinteger[Any]]
UInt32 = npt.NDArray[np.uint32]
Triple = tuple[int, int, int]

# Arrays of so many numbers stay in the second-level cache through all the steps of a computation.
BLOCK = 1 << 15


def unravel(numbers: Integers, shape: Triple) -> Voxels:
    """Return (n, 3) places x y z for flat numbers (n,) in a box of `shape`, x fastest."""
    places = np.empty((len(numbers), 3), np.int64)
    for start in range(0, len(numbers), BLOCK):
        part = places[start : start + BLOCK]
        rest, part[:, 0] = divide(numbers[start : start + BLOCK], shape[0])
        part[:, 2], part[:, 1] = divide(rest, shape[1])
    return places


def divide(numbers: Integers, divisor: int) -> tuple[Integers, Integers]:
    """Return quotients and remainders of whole numbers >= 0, shape (n,): by shift and mask where that is the same."""
    if divisor & (divisor - 1) == 0:
        return numbers >> (divisor.bit_length() - 1), numbers & (divisor - 1)
    quotients = numbers // divisor
    return quotients, numbers - quotients * divisor


def flatten(places: Sequence[Integers], shape: Triple) -> Integers:
    """Return flat numbers (n,), x fastest, of three places (n,) in a box of `shape`; uint64 if uint32 is too small."""
    x, y, z = places
    if math.prod(shape) >= 2**32:
        x, y, z = (axis.astype(np.uint64) for axis in places)
    flat = z * shape[1]
    flat += y
    flat *= shape[0]
    flat += x
    return flat
