"""Ways for a server's answer to go wrong, and a plan of when they do."""

from __future__ import annotations

import re
import threading
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Fault:
    """One way for an answer to go wrong.

    Attributes
    ----------
    kind
        `status`: an answer of `status`, with `Retry-After: retry_after` where given.
        `reset`: the connection is reset before an answer.
        `short_body`: `Content-Length` is right, half of the body comes, the connection ends.
        `truncated`: half of the body, with a `Content-Length` that fits it.
        `wrong_length`: all of the body, with the `Content-Length` of half of it.
        `flipped`: the byte in the middle has its bits inverted, the length is right.
        `stall`: nothing for `seconds`, then the right answer.
        `stall_body`: half of the body, nothing for `seconds`, then the rest.
    """

    kind: Literal["status", "reset", "short_body", "truncated", "wrong_length", "flipped", "stall", "stall_body"]
    status: int = 503
    retry_after: float | str | None = None
    seconds: float = 0.0


@dataclass(slots=True)
class _Planned:
    pattern: re.Pattern[str]
    fault: Fault
    times: int | None
    skip: int


class FaultPlan:
    """Faults by path, each for a number of requests; the earliest planned that fits is the one that happens."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._planned: list[_Planned] = []

    def add(self, path: str, fault: Fault, *, times: int | None = 1, skip: int = 0) -> None:
        """Plan a fault for the next requests of `path`.

        Parameters
        ----------
        path
            As `Request.path` has it; `*` stands for any text.
        times
            How often before it heals; None for ever.
        skip
            How many requests are answered well first.
        """
        pattern = re.compile(".*".join(re.escape(part) for part in path.split("*")))
        with self._lock:
            self._planned.append(_Planned(pattern, fault, times, skip))

    def clear(self) -> None:
        """Forget every fault."""
        with self._lock:
            self._planned.clear()

    def take(self, path: str) -> Fault | None:
        """Return the fault that a request of `path` meets, and count it as done."""
        with self._lock:
            for planned in self._planned:
                if planned.times == 0 or not planned.pattern.fullmatch(path):
                    continue
                if planned.skip > 0:
                    planned.skip -= 1
                    continue
                if planned.times is not None:
                    planned.times -= 1
                return planned.fault
        return None
