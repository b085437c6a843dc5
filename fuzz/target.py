"""What a fuzz target is, and what all of them need."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from voxelprobe.errors import VoxelProbeError


@dataclass(frozen=True, slots=True)
class Target:
    """A parser under test.

    Attributes
    ----------
    seeds
        Makes inputs that the parser reads.
    check
        Gives an input to the parser and holds what it says against the second reading: whether it was read (True) or
        refused. Anything that it raises is a finding.
    mutate
        Changes an input as only who knows the format can: checksums mended, numbers of a JSON document exchanged.
    """

    seeds: Callable[[], Sequence[bytes]]
    check: Callable[[bytes], bool]
    mutate: Callable[[bytes, random.Random], bytes] | None = None
    most_bytes: int = 4096


def attempt(function: Callable[..., Any], *arguments: Any, **named: Any) -> Any:
    """Return what a call gives, or the error of ours that it raises; that it ran out of memory is a finding."""
    try:
        return function(*arguments, **named)
    except VoxelProbeError as error:
        cause: BaseException | None = error
        while cause is not None:
            if isinstance(cause, MemoryError):
                raise AssertionError(f"a header made it ask for memory: {error}") from error
            cause = cause.__cause__
        return error


def is_refused(outcome: Any) -> bool:
    """Return whether `attempt` gave an error."""
    return isinstance(outcome, VoxelProbeError)


def nudge(data: bytes, rng: random.Random) -> bytes:
    """Return an input with one or two bytes changed and its length kept: what is damaged but little."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 2) if data else 0):
        at = rng.randrange(len(changed))
        changed[at] = changed[at] ^ 1 << rng.randrange(8) if rng.random() < 0.7 else rng.choice((0, 1, 127, 255))
    return bytes(changed)


def flip(data: bytes, rng: random.Random) -> bytes:
    """Return an input with a few bytes changed, cut, doubled or set to numbers at the edges of a range."""
    damaged = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        if not damaged:
            return b"\0"
        at = rng.randrange(len(damaged))
        kind = rng.randrange(6)
        if kind == 0:
            damaged[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            damaged[at] = rng.choice((0, 1, 0x7F, 0x80, 0xFF))
        elif kind == 2:
            del damaged[at:]
        elif kind == 3:
            damaged[at:at] = damaged[at : at + rng.randint(1, 16)]
        elif kind == 4:
            width = rng.choice((2, 4, 8))
            number = rng.choice((0, 1, 2 ** (8 * width) - 1, 2 ** (8 * width - 1), 2**31, 2**40))
            damaged[at : at + width] = (number % 2 ** (8 * width)).to_bytes(width, "little")
        else:
            damaged[at : at + rng.randint(1, 8)] = b""
    return bytes(damaged)


_ODD_VALUES: tuple[Any, ...] = (
    None, True, False, 0, 1, -1, 2, 64, 2**31, 2**32, 2**40, 2**53, 2**63, 2**64, 10**30, -(2**63), 0.5, 1e-300, 1e300,
    float("nan"), float("inf"), -float("inf"), "", ".", "..", "../..", "/etc", "a/../../b", "a\0b", "\ud800",
    "file:///x", "NaN", "Infinity", "0x7f", "raw", "gzip", "blosc", "zyx", "u1", "<f8", "|O", ">i4", [], {}, [[]], [0],
    [1, 1, 1], [2**40] * 3,
)


def mutate_json(data: bytes, rng: random.Random) -> bytes:
    """Return a JSON document with a few of its values exchanged, removed, doubled or made odd; others are left."""
    try:
        document = json.loads(data)
    except (ValueError, RecursionError):
        return data
    for _ in range(rng.randint(1, 3)):
        places: list[tuple[Any, Any]] = []
        _list_places(document, places, 0)
        if not places:
            break
        parent, key = rng.choice(places)
        kind = rng.randrange(6)
        value = parent[key]
        if kind <= 1:
            parent[key] = copy.deepcopy(rng.choice(_ODD_VALUES))
        elif kind == 2:
            other, name = rng.choice(places)
            parent[key] = copy.deepcopy(other[name])
        elif kind == 3:
            del parent[key]
        elif kind == 4 and isinstance(parent, list):
            parent.insert(rng.randrange(len(parent) + 1), copy.deepcopy(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            parent[key] = rng.choice(
                (value + 1, value - 1, -value, value * 2, value * 2**20, float(value), value + 0.5)
            )
        elif isinstance(parent, dict):
            parent[rng.choice((*parent, "path", "type", "filters", "transform"))] = copy.deepcopy(value)
    return json.dumps(document).encode()


def _list_places(value: Any, places: list[tuple[Any, Any]], depth: int) -> None:
    if depth > 20 or len(places) > 2000:
        return
    if isinstance(value, dict | list):
        for key in list(value) if isinstance(value, dict) else range(len(value)):
            places.append((value, key))
            _list_places(value[key], places, depth + 1)
