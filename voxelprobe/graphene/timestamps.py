"""Points in time at which a graph is asked, pinned and written one way.

The server keeps milliseconds and cuts off the rest (PyChunkedGraph, `get_valid_timestamp`), so the
same is done here. CloudVolume reads zoneless text as local time and CAVEclient as UTC: it is refused.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from voxelprobe.errors import InputError

# An edit carries the time of its lock, is written later, and a lock lasts up to three minutes.
RECENT_SECONDS = 300.0
# Clocks of two computers differ: a time that was `now` elsewhere isn't the future.
CLOCK_SKEW_SECONDS = 5.0
EXAMPLES = "2024-01-31T10:00:00Z, 2024-01-31T12:00:00+02:00, 1706695200.5 or now"
_EPOCH = datetime(1970, 1, 1)
_MILLISECOND = timedelta(milliseconds=1)
_DATE = re.compile(
    r"(?P<day>\d{4}-\d\d-\d\d)"
    r"(?:[T ](?P<minute>\d\d:\d\d)(?::(?P<second>\d\d)(?:[.,](?P<fraction>\d+))?)?)?"
    r"(?: ?(?P<zone>Z|UTC|(?P<sign>[+-])(?P<hours>\d\d)(?::?(?P<minutes>\d\d))?))?",
    re.ASCII | re.IGNORECASE,
)


@dataclass(frozen=True, slots=True, order=True)
class Timestamp:
    """A time in milliseconds since 1970-01-01T00:00:00Z."""

    milliseconds: int

    @property
    def seconds(self) -> float:
        """Return unix seconds."""
        return self.milliseconds / 1000

    @property
    def unix(self) -> str:
        """Return unix seconds as text, as the server is asked: 1706695200.500."""
        return f"{self.milliseconds // 1000}.{self.milliseconds % 1000:03}"

    @property
    def text(self) -> str:
        """Return the one way to write it: 2024-01-31T10:00:00.500Z."""
        return (_EPOCH + self.milliseconds * _MILLISECOND).isoformat(timespec="milliseconds") + "Z"

    def __str__(self) -> str:
        return self.text

    def is_recent(self, now: float) -> bool:
        """Return whether edits of that time may still be on their way into the graph."""
        return self.seconds > now - RECENT_SECONDS

    def recent_warning(self, now: float) -> str | None:
        """Return what to tell someone whose timestamp is recent, or None."""
        if not self.is_recent(now):
            return None
        return (
            f"timestamp {self.text} is less than {RECENT_SECONDS / 60:.0f} minutes ago: edits of that time may still "
            "be written, so that the same timestamp gives other roots later; an older one is reproducible"
        )


def parse_timestamp(text: str, *, now: float) -> Timestamp:
    """Return the time that a text names.

    Parameters
    ----------
    text
        ISO 8601 with a zone, unix seconds with or without fractions, or `now`.
    now
        Unix seconds: what `now` is, and what is the future.

    Raises
    ------
    InputError
        If it names no time, a time without a zone, one before 1970, or one in the future.
    """
    written = text.strip()
    if written.lower() == "now":
        return Timestamp(_milliseconds(now))
    if re.fullmatch(r"[0-9]+(\.[0-9]*)?", written):
        found = _from_unix(written, now)
    elif match := _DATE.fullmatch(written):
        found = _from_date(match, written)
    else:
        raise InputError(f"timestamp {written!r}: expected a time as in {EXAMPLES}")
    if found.seconds > now + CLOCK_SKEW_SECONDS:
        raise InputError(
            f"timestamp {written!r} is in the future ({found.unix}; now is {_milliseconds(now) / 1000:.3f}): "
            "the server would answer with its present state"
        )
    return found


def _from_unix(written: str, now: float) -> Timestamp:
    whole, _, fraction = written.partition(".")
    if len(whole) in (4, 8) and not fraction:
        # A year or a date, which as seconds is a time in 1970: roots of a graph that wasn't there yet.
        raise InputError(f"timestamp {written!r}: expected unix seconds or a date with a zone, as in {EXAMPLES}")
    if len(whole) > 11:
        hint = " (these look like milliseconds)" if 0.5 < int(whole[:15]) / 1000 / now < 2 else ""
        raise InputError(f"timestamp {written!r}: expected unix seconds{hint}, as in {EXAMPLES}")
    return Timestamp(int(whole) * 1000 + int(fraction[:3].ljust(3, "0")))


def _from_date(match: re.Match[str], written: str) -> Timestamp:
    year, month, day = map(int, match["day"].split("-"))
    hour, minute = map(int, (match["minute"] or "0:0").split(":"))
    try:
        naive = datetime(year, month, day, hour, minute, int(match["second"] or 0))
    except ValueError as error:
        raise InputError(f"timestamp {written!r}: {error}; expected a time as in {EXAMPLES}") from None
    fraction = int((match["fraction"] or "")[:3].ljust(3, "0"))
    zone = match["zone"]
    if zone is None:
        raise InputError(_two_readings(written, naive, fraction))
    offset = timedelta()
    if match["sign"]:
        hours, minutes = int(match["hours"]), int(match["minutes"] or 0)
        if hours > 23 or minutes > 59:
            raise InputError(f"timestamp {written!r}: expected a zone as in +02:00, found {zone}")
        offset = timedelta(hours=hours, minutes=minutes) * (-1 if match["sign"] == "-" else 1)
    milliseconds = (naive - _EPOCH - offset) // _MILLISECOND + fraction
    if milliseconds < 0:
        raise InputError(f"timestamp {written!r}: expected a time since 1970, as in {EXAMPLES}")
    return Timestamp(milliseconds)


def _two_readings(written: str, naive: datetime, fraction: int) -> str:
    try:
        local_naive = naive.astimezone(UTC).replace(tzinfo=None)  # a time without a zone is taken as local
        utc, local = (Timestamp((moment - _EPOCH) // _MILLISECOND + fraction) for moment in (naive, local_naive))
    except (OverflowError, OSError, ValueError):
        return f"timestamp {written!r} names no zone; expected a time as in {EXAMPLES}"
    return (
        f"timestamp {written!r} names no zone: read as UTC it is {utc.unix} ({utc.text}), "
        f"read in this computer's zone {local.unix} ({local.text}); write one of these"
    )


def _milliseconds(seconds: float) -> int:
    # By way of microseconds, which a float of today holds: 0.123 stays 123.
    return round(seconds * 1_000_000) // 1000
