import json
import logging
import multiprocessing
import os
import time

import pytest

from voxelprobe.run.progress import STAGES, ProgressBoard, format_bytes, format_seconds

FORK = multiprocessing.get_context("fork")


@pytest.mark.parametrize(("count", "text"), [
    (0, "0 B"), (7, "7 B"), (999, "999 B"), (1000, "1.0 kB"), (9_400, "9.4 kB"), (10_000, "10 kB"),
    (310_000_000, "310 MB"), (1_500_000, "1.5 MB"), (2.5e9, "2.5 GB"), (41e9, "41 GB"), (1e12, "1.0 TB"),
    (12.34e15, "12340.0 TB"), (0.4, "0 B"),
])
def test_bytes_are_written_as_people_do(count, text):
    """Two or three digits and a decimal unit."""
    assert format_bytes(count) == text


@pytest.mark.parametrize(("seconds", "text"), [
    (0, "0 s"), (0.4, "0 s"), (12.3, "12 s"), (59.4, "59 s"), (59.6, "1 min 00 s"), (200, "3 min 20 s"),
    (3599.7, "1 h 00 min"), (7500, "2 h 05 min"), (100 * 3600, "100 h 00 min"),
])
def test_seconds_are_written_as_people_do(seconds, text):
    """Two units at most, and none of them overflows."""
    assert format_seconds(seconds) == text


def count(board, stage):
    facts = board.summary()[stage]
    return facts["done"], facts["total"], facts["bytes"]


def test_a_board_sums_over_processes(tmp_path):
    """Each process counts for itself; whoever looks sees the sum of all."""
    def child(group):
        board = ProgressBoard(tmp_path, "x")
        board.expect("fetch", group, 100)
        for _ in range(40):
            board.add("fetch", group, 2, 1000)

    here = ProgressBoard(tmp_path, "x")
    here.expect("decode", 3, 10)
    here.add("decode", 3, 4, 0)
    processes = [FORK.Process(target=child, args=(group,)) for group in (0, 7, 255)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(30)
    assert count(here, "fetch") == (240, 300, 120_000)
    assert count(here, "decode") == (4, 10, 0)
    assert list(here.summary()) == ["fetch", "decode"]


def test_executions_count_apart(tmp_path):
    """A resumed run counts only what it does itself."""
    first, second = ProgressBoard(tmp_path, "one"), ProgressBoard(tmp_path, "two")
    first.expect("plan", 0, 10)
    first.add("plan", 0, 10, 0)
    assert second.summary() == {}
    assert count(ProgressBoard(tmp_path, "one"), "plan") == (10, 10, 0)


def test_a_stage_has_rates_and_an_estimate(tmp_path):
    """Done over time since the stage began is the rate; what is left at that rate is the time left."""
    board = ProgressBoard(tmp_path, "x")
    board.expect("merge", 0, 1000)
    board.add("merge", 0, 0, 0)
    assert board.summary()["merge"]["seconds_left"] == -1
    board.add("merge", 0, 250, 5000)
    facts = board.summary()["merge"]
    assert facts["seconds_left"] * facts["per_second"] == pytest.approx(750)
    assert facts["bytes_per_second"] / facts["per_second"] == pytest.approx(20)


def test_the_task_is_told_of_its_own_group(tmp_path):
    """Luigi hears message and percentage of this process's group, at once and then only now and then."""
    told = []
    board = ProgressBoard(tmp_path, "x", lambda message, percent: told.append((message, percent)))
    board.expect("fetch", 1, 4000)
    board.expect("fetch", 2, 9000)
    board.add("fetch", 1, 1000, 10)
    for _ in range(100):
        board.add("fetch", 1, 1, 10)
    assert told[0] == ("1,000 of 4,000 chunks", 25)
    assert len(told) < 50


def test_what_is_shown_is_kept_as_json(tmp_path, caplog, monkeypatch):
    """Without a terminal a line is logged every few seconds, and progress.json holds the same numbers."""
    board = ProgressBoard(tmp_path, "x")
    board.expect("fetch", 0, 4)
    with caplog.at_level(logging.INFO):
        board.add("fetch", 0, 1, 2_000_000)
        assert caplog.messages == []  # nothing for a run of a moment
        later = time.time_ns() + 10 * 10**9
        monkeypatch.setattr(time, "time_ns", lambda: later)
        board.add("fetch", 0, 1, 2_000_000)
    assert len(caplog.messages) == 1
    assert caplog.messages[0].startswith("fetch 2/4 chunks 50%, 4.0 MB, ")
    assert caplog.messages[0].endswith(" left")
    assert json.loads((tmp_path / "progress.json").read_text())["fetch"]["done"] == 2


def test_clearing_takes_the_counters_off_the_disk(tmp_path):
    """After a run no counter file of any execution stays; a board may still count into nothing."""
    boards = [ProgressBoard(tmp_path, name) for name in "ab"]
    boards[0].clear()
    assert [name for name in os.listdir(tmp_path) if name.endswith(".bin")] == []
    boards[1].add("plan", 0, 1, 0)
    assert set(boards[1].summary()) <= set(STAGES)
