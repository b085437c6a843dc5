"""JSON from outside, asked for by name and type."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote

from voxelprobe.errors import InputError
from voxelprobe.volume.boxes import Triple

# Names of objects have 1,024 bytes at most.
_MOST_OF_PATH = 1024


class Fields:
    """A JSON object whose members are asked for by name and type; complaints say where it stands."""

    def __init__(self, document: object, where: str) -> None:
        if not isinstance(document, Mapping):
            raise InputError(f"{where}: expected a JSON object, found {type(document).__name__}")
        self.fields: Mapping[str, Any] = document
        self.where = where

    def text(self, name: str, default: str | None = None) -> str:
        """Return a text."""
        value = self.fields.get(name, default)
        if not isinstance(value, str):
            raise InputError(f"{self.where}: expected a text for {name}, found {value!r}")
        return value

    def child(self, name: str) -> Fields:
        """Return an object inside of this one."""
        return Fields(self.fields.get(name), f"{self.where}: {name}")

    def items(self, name: str) -> list[Any]:
        """Return a list of anything."""
        return parse_list(self.fields.get(name), f"{self.where}: {name}")

    def sizes(self, name: str, count: int | None = None) -> tuple[int, ...]:
        """Return whole numbers of at least 1, `count` of them."""
        where = f"{self.where}: {name}"
        sizes = tuple(_integer(size, where, 1) for size in parse_list(self.fields.get(name), where))
        if count is not None and len(sizes) != count:
            raise InputError(f"{where}: expected {count} whole numbers, found {len(sizes)}")
        return sizes

    def integer(self, name: str, at_least: int) -> int:
        """Return a whole number."""
        return _integer(self.fields.get(name), f"{self.where}: {name}", at_least)

    def numbers(self, name: str) -> tuple[float, float, float]:
        """Return three positive numbers."""
        value = self.fields.get(name)
        if (not isinstance(value, Sequence) or len(value) != 3
                or not all(isinstance(v, int | float) and not isinstance(v, bool) and 0 < v < 1e15 for v in value)):
            raise InputError(f"{self.where}: expected three positive numbers for {name}, found {value!r}")
        return (float(value[0]), float(value[1]), float(value[2]))


def _integer(value: object, where: str, at_least: int | None = None) -> int:
    if isinstance(value, float) and value.is_integer():
        value = int(value)
    if not isinstance(value, int) or isinstance(value, bool) or abs(value) > 2**53:
        raise InputError(f"{where}: expected a whole number, found {value!r}")
    if at_least is not None and value < at_least:
        raise InputError(f"{where}: expected at least {at_least}, found {value}")
    return value


def parse_triple(value: object, where: str, at_least: int | None = None) -> Triple:
    """Return three whole numbers."""
    if not isinstance(value, Sequence) or isinstance(value, str) or len(value) != 3:
        raise InputError(f"{where}: expected three whole numbers, found {value!r}")
    return (_integer(value[0], where, at_least), _integer(value[1], where, at_least),
            _integer(value[2], where, at_least))


def parse_list(value: object, where: str, count: int | None = None) -> list[Any]:
    """Return a list of anything, of `count` members."""
    if not isinstance(value, list | tuple) or (count is not None and len(value) != count):
        raise InputError(f"{where}: expected a list{'' if count is None else f' of {count}'}, found {value!r}")
    return list(value)


def parse_numbers(value: object, where: str, count: int) -> tuple[float, ...]:
    """Return `count` finite numbers, as they are written."""
    numbers = parse_list(value, where, count)
    if not all(isinstance(v, int | float) and not isinstance(v, bool) and -1e15 < v < 1e15 for v in numbers):
        raise InputError(f"{where}: expected {count} numbers, found {value!r}")
    return tuple(numbers)


def parse_path(value: object, where: str, name: str = "path") -> str:
    """Return a path below the volume's folder, without slashes at its ends; empty for the folder itself.

    It is joined to the volume's path: it must not lead out of it, also not for a server that undoes quotes once more.
    """
    if not isinstance(value, str) or not value.isprintable() or len(value) > _MOST_OF_PATH:
        raise InputError(f"{where}: expected a path for {name}, found {value!r}")
    form, quoted = "", value
    while form != quoted:
        form, quoted = quoted, unquote(quoted)
        if form.startswith("/") or ":" in form or "\\" in form or "\0" in form or ".." in form.split("/"):
            raise InputError(f"{where}: {name} {value!r} leads out of the volume")
    return "" if value == "." else value.removeprefix("./").strip("/")
