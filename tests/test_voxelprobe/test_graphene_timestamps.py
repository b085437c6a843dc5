"""Timestamps: what they may be written as, and what is refused."""

from __future__ import annotations

import time
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from voxelprobe.errors import InputError
from voxelprobe.graphene.timestamps import CLOCK_SKEW_SECONDS, RECENT_SECONDS, Timestamp, parse_timestamp

NOW = 1_750_000_000.25


@pytest.mark.parametrize(
    ("text", "milliseconds"),
    [
        ("2024-01-31T10:00:00Z", 1706695200000),
        ("2024-01-31T10:00:00z", 1706695200000),
        ("2024-01-31t10:00:00Z", 1706695200000),
        (" 2024-01-31 10:00:00 UTC ", 1706695200000),
        ("2024-01-31 10:00Z", 1706695200000),
        ("2024-01-31T12:00:00+02:00", 1706695200000),
        ("2024-01-31 12:00:00 +0200", 1706695200000),
        ("2024-01-31 12:00:00+02", 1706695200000),
        ("2024-01-31T04:30:00-05:30", 1706695200000),
        ("2024-01-31T00:00:00Z", 1706659200000),
        ("2024-01-31Z", 1706659200000),
        ("2024-01-31T10:00:00.123Z", 1706695200123),
        ("2024-01-31T10:00:00,123Z", 1706695200123),
        ("2024-01-31T10:00:00.123999Z", 1706695200123),
        ("2024-01-31T10:00:00.5Z", 1706695200500),
        ("1706695200", 1706695200000),
        ("1706695200.", 1706695200000),
        ("1706695200.5", 1706695200500),
        ("1706695200.007", 1706695200007),
        ("1706695200.1239", 1706695200123),
        ("0", 0),
        ("now", 1750000000250),
        (" NOW ", 1750000000250),
    ],
)
def test_readings(text: str, milliseconds: int) -> None:
    """Each form is read to the millisecond; what is finer is cut off, as the server does."""
    assert parse_timestamp(text, now=NOW).milliseconds == milliseconds


def test_forms_of_a_timestamp() -> None:
    """Text, unix text and seconds are the same time, with milliseconds even if they are 0."""
    stamp = Timestamp(1706695200070)
    assert (stamp.text, stamp.unix, stamp.seconds) == ("2024-01-31T10:00:00.070Z", "1706695200.070", 1706695200.07)
    assert str(stamp) == stamp.text
    assert Timestamp(5).unix == "0.005"


@given(st.integers(0, int(NOW * 1000)))
def test_written_and_read_again(milliseconds: int) -> None:
    """Both texts of a timestamp give it back, and Python's own reading of them agrees."""
    stamp = Timestamp(milliseconds)
    if milliseconds >= 10**11:
        assert parse_timestamp(stamp.unix, now=NOW) == stamp
    assert parse_timestamp(stamp.text, now=NOW) == stamp
    exact = datetime(1970, 1, 1, tzinfo=UTC) + timedelta(milliseconds=milliseconds)
    assert datetime.fromisoformat(stamp.text) == exact
    # What the server makes of the text: a float, to microseconds, cut to milliseconds.
    theirs = datetime.fromtimestamp(float(stamp.unix), UTC)
    assert theirs - timedelta(microseconds=theirs.microsecond % 1000) == exact


@given(
    st.datetimes(datetime(1970, 1, 3), datetime(2025, 6, 1)),
    st.integers(-23 * 60 - 59, 23 * 60 + 59),
    st.sampled_from(["T", " "]),
)
def test_any_zone(naive: datetime, minutes: int, separator: str) -> None:
    """A date with any offset is the time that Python's datetime says."""
    moment = naive.replace(tzinfo=timezone(timedelta(minutes=minutes)))
    expected = (moment - datetime(1970, 1, 1, tzinfo=UTC)) // timedelta(milliseconds=1)
    assert parse_timestamp(moment.isoformat(separator), now=NOW).milliseconds == expected


@given(st.floats(1e9, 3e9))
def test_now_is_pinned_to_milliseconds(now: float) -> None:
    """`now` is the clock to the millisecond, and never refused as the future when it is read again."""
    stamp = parse_timestamp("now", now=now)
    assert abs(stamp.seconds - now) <= 0.001
    assert parse_timestamp(stamp.text, now=now) == stamp


@pytest.fixture
def zone(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Put this computer into a zone two hours ahead, in summer."""
    monkeypatch.setenv("TZ", "EET-2EEST,M3.5.0/3,M10.5.0/4")
    time.tzset()
    yield
    monkeypatch.undo()
    time.tzset()


@pytest.mark.usefixtures("zone")
@pytest.mark.parametrize(
    ("text", "utc", "local"),
    [
        ("2024-01-31T10:00:00", "1706695200.000 (2024-01-31T10:00:00.000Z)",
         "1706688000.000 (2024-01-31T08:00:00.000Z)"),
        ("2024-07-01 10:00:00.5", "1719828000.500 (2024-07-01T10:00:00.500Z)",
         "1719817200.500 (2024-07-01T07:00:00.500Z)"),
        ("2024-01-31", "1706659200.000", "1706652000.000"),
    ],
)
def test_zoneless_is_refused_with_both_readings(text: str, utc: str, local: str) -> None:
    """A time without a zone is refused; the message has what it is in UTC and in the local zone, ready to copy."""
    with pytest.raises(InputError) as caught:
        parse_timestamp(text, now=NOW)
    message = str(caught.value)
    assert f"as UTC it is {utc}" in message
    assert f"zone {local}" in message
    for reading in (utc, local):
        assert parse_timestamp(reading.split(" ")[0], now=NOW).seconds > 0


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "now"), ("yesterday", "2024-01-31T10:00:00Z"), ("31.01.2024 10:00Z", "expected"), ("1e9", "expected"),
        ("-5", "expected"), ("nan", "expected"), ("1_706_695_200", "expected"), ("١٧٠٦٦٩٥٢٠٠", "expected"),
        ("2024-13-01T00:00:00Z", "month"), ("2024-02-30T00:00:00Z", "day"), ("2024-01-31T24:00:00Z", "expected"),
        ("2024-01-31T10:60:00Z", "expected"), ("2024-01-31T10:00:60Z", "expected"),
        ("2024-01-31T10:00:00+24:00", "zone"),
        ("2024-01-31T10:00:00+02:60", "zone"), ("2024-01-31T10:00:00 CET", "expected"),
        ("1969-12-31T23:59:59Z", "1970"),
        ("1970-01-01T01:00:00+02:00", "1970"), ("2024", "a date with a zone"), ("20240131", "a date with a zone"),
        ("1706695200000", "milliseconds"), ("1706695200000000", "unix seconds"), ("9" * 400, "unix seconds"),
        ("0000-01-01T00:00:00Z", "expected"), ("0001-01-01", "no zone"), ("9999-12-31T23:59:59", "no zone"),
        ("2024-01-31T10:00:00Z\n2024", "expected"),
    ],
)
def test_refused(text: str, word: str) -> None:
    """What isn't a time of the graph's is refused with an example or the reason."""
    with pytest.raises(InputError, match="timestamp") as caught:
        parse_timestamp(text, now=NOW)
    assert word in str(caught.value)


@pytest.mark.parametrize(
    "text", ["1750000100", "2999-01-01T00:00:00Z", "9999-12-31T23:59:59-23:00", "99999999999", "2025-06-15T15:08:00Z"]
)
def test_future_is_refused(text: str) -> None:
    """A future time is refused: the server would answer with the present state and say nothing."""
    with pytest.raises(InputError, match="future"):
        parse_timestamp(text, now=NOW)


def test_clock_skew_is_allowed() -> None:
    """Another computer's `now` isn't the future."""
    assert parse_timestamp(f"{NOW + CLOCK_SKEW_SECONDS - 0.1:.3f}", now=NOW).seconds > NOW


@pytest.mark.parametrize(
    ("age", "recent"), [(-3, True), (0, True), (RECENT_SECONDS - 1, True), (RECENT_SECONDS + 1, False)]
)
def test_recent(age: float, recent: bool) -> None:
    """Within five minutes of now there is a warning that names the time; before, there is none."""
    stamp = Timestamp(int((NOW - age) * 1000))
    assert stamp.is_recent(NOW) is recent
    warning = stamp.recent_warning(NOW)
    assert (warning is not None) is recent
    if warning is not None:
        assert stamp.text in warning


@given(st.text(max_size=40))
def test_any_text_is_a_time_or_an_error(text: str) -> None:
    """No text gives anything but a timestamp or an InputError."""
    try:
        stamp = parse_timestamp(text, now=NOW)
    except InputError:
        return
    assert 0 <= stamp.seconds <= NOW + CLOCK_SKEW_SECONDS
