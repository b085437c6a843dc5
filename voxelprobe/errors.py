"""What can go wrong, grouped by what the caller does next; and how a message is shown that may quote hostile data."""

from __future__ import annotations

# Longer than any message of ours: what is beyond it was quoted.
MOST_SHOWN = 10_000


def printable(text: str) -> str:
    """Return a text that does nothing to a terminal but appear on it: control characters escaped, at most 10,000 long.

    What names, metadata and servers say gets into messages. Line ends stay. Of its own result it changes nothing.
    """
    cut = f" … ({len(text):,} characters)" if len(text) > MOST_SHOWN else ""
    shown = text[: MOST_SHOWN - 100] if cut else text
    if not shown.isprintable():
        shown = "".join(letter if letter.isprintable() or letter == "\n" else _escape(letter) for letter in shown)
        if len(shown) > MOST_SHOWN:
            # By now of escapes only; cutting one in half does no harm.
            shown, cut = shown[: MOST_SHOWN - 100], cut or f" … ({len(text):,} characters)"
    return shown + cut


def _escape(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")


class VoxelProbeError(Exception):
    """Base of every error that voxelprobe raises on purpose. As text it is `printable`."""

    def __str__(self) -> str:
        return printable(super().__str__())


class InputError(VoxelProbeError, ValueError):
    """Points, parameters or configuration are wrong: fix them and run again."""


class UnsupportedError(VoxelProbeError):
    """A legal volume or table that can't be read here; the message says what would be needed."""


class CorruptDataError(VoxelProbeError, ValueError):
    """Bytes contradict their format: fetched once more, then reported."""


class TransportError(VoxelProbeError, OSError):
    """A store gave no answer: retried, then safe to run again."""


class AuthorizationError(TransportError):
    """A store refused us: not retried; the message says which credentials are missing."""


class AuditError(VoxelProbeError):
    """A label is not what an independent reading finds: nothing is published; the message says what to look at."""


class StaleRunError(VoxelProbeError):
    """The run's folder was made with other parameters or from another input."""
