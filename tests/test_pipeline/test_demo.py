"""The demo: what the command does in a fresh checkout with nothing on the command line."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

CHECKOUT = Path(__file__).parents[2]
TASKS = ("SamplePoints", "MergeTable", "DecodePoints", "FetchChunks", "PlanChunkGroups")
EXPECTED = {"ok": 1960, "missing_chunk": 34, "out_of_bounds": 3, "invalid_coordinate": 3}  # demo/README.md


def test_the_demo_runs(cli: Any, read_table: Any) -> None:
    """Nothing but a workspace on the command line samples the embedded volume, and a second time has nothing to do."""
    outcome = cli.run(cwd=CHECKOUT)
    assert outcome.code == 0, outcome.err
    points, result = pq.read_table(CHECKOUT / "demo/synapses.parquet"), read_table(cli.result)
    assert str(result.select(points.column_names).to_pydict()) == str(points.to_pydict())
    assert Counter(result["status"].to_pylist()) == EXPECTED
    assert result.schema.field("label").type == pa.uint64()
    labels = result["label"].drop_null().to_pylist()
    assert len(labels) == EXPECTED["ok"]
    assert labels.count(0) == 98
    assert min(label for label in labels if label) >= 2**63
    again = cli.run(cwd=CHECKOUT)
    assert (again.code, "nothing to do" in again.err) == (0, True)


def test_the_closing_summary(cli: Any) -> None:
    """The command ends with the result's place and counts: points by status, labels, chunks, traffic, seconds."""
    outcome = cli.run(cwd=CHECKOUT)
    lines = dict(line.split(maxsplit=1) for line in outcome.out.splitlines() if line.strip())
    assert lines["result"] == str(cli.result)
    assert lines["points"].startswith("2,000: 1,960 ok, ")
    assert re.match(r"\d+ different \(5\.0% background\)", lines["labels"])
    assert re.match(r"\d+ in \d+ groups: 0 from the cache, \d+ fetched, 1 missing", lines["chunks"])
    assert re.match(r"[\d,]+ requests, \d+ kB, 0 repeated", lines["traffic"])
    assert all(stage in lines["seconds"] for stage in ("plan", "fetch", "decode", "merge"))


def test_the_graph_shows_every_task(cli: Any) -> None:
    """luigi-deps-tree draws the whole graph of a run: from just the plan before it to all complete tasks after it."""
    before = cli.run(program="luigi-deps-tree", cwd=CHECKOUT)
    assert before.code == 0, before.err
    assert "PlanChunkGroups" in before.out
    assert "COMPLETE" not in before.out
    assert cli.run(cwd=CHECKOUT).code == 0
    after = cli.run(program="luigi-deps-tree", cwd=CHECKOUT)
    assert after.code == 0, after.err
    for task in TASKS:
        assert f"[{task}-" in after.out
    assert "PENDING" not in after.out
