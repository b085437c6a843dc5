"""Numbers of measured cases, and the tables that show them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from benchmarks.answers import Least
from benchmarks.cases import CLOUDVOLUME, COLD, OURS, Case, Goal
from benchmarks.measure import STAGES, Cost


@dataclass(slots=True)
class Measured:
    """All runs of one participant in one case.

    Attributes
    ----------
    sampling
        Seconds that a peer says it took without start-up, reading and writing; one a run.
    compared
        Labels that were compared with the source's in each run.
    failure
        What ended a run, or "".
    """

    points: int
    costs: list[Cost] = field(default_factory=list)
    sampling: list[float] = field(default_factory=list)
    compared: int = 0
    failure: str = ""

    @property
    def typical(self) -> Cost:
        """The run whose wall time is the median."""
        return sorted(self.costs, key=lambda cost: cost.wall)[(len(self.costs) - 1) // 2]


@dataclass(slots=True)
class CaseResult:
    """A case with its participants' runs, ours among them, and what was the least possible."""

    case: Case
    least: Least
    least_bytes: int
    participants: dict[str, Measured]

    def ratio(self, name: str) -> float | None:
        """Return how many times faster we are than a participant, by medians; None if it has no run."""
        theirs, ours = self.participants.get(name), self.participants.get(OURS)
        if theirs is None or ours is None or not theirs.costs or not ours.costs or theirs.failure or ours.failure:
            return None
        if name == CLOUDVOLUME:
            # Of a subsample: its rate without start-up, against ours with it.
            seconds = sorted(theirs.sampling)[(len(theirs.sampling) - 1) // 2]
            return (ours.points / ours.typical.wall) / (theirs.points / seconds)
        return theirs.typical.wall / ours.typical.wall

    def number(self, goal: Goal) -> float | None:
        """Return what was measured of what a goal is about, or None."""
        ours = self.participants[OURS]
        if goal.number == "cold":
            return self.ratio(COLD)
        if goal.number in ("tensorstore", "cloudvolume"):
            return self.ratio(goal.number)
        if not ours.costs or ours.failure:
            return None
        if goal.number == "wall":
            return ours.typical.wall
        if goal.number == "peak":
            return float(max(cost.peak for cost in ours.costs))
        if goal.number == "requests":
            return float(max(cost.server.get("requests", 0) for cost in ours.costs))
        # Of time as it passed: decode runs in several processes.
        return ours.points / sum(ours.typical.elapsed[stage] for stage in ("plan", "decode", "merge"))


def format_costs(results: Sequence[CaseResult]) -> str:
    """Return a Markdown table with a row a participant."""
    rows = []
    for result in results:
        for name, measured in result.participants.items():
            if measured.failure or not measured.costs:
                rows.append([result.case.name, name, f"{measured.points:,}", measured.failure or "not run"])
                continue
            cost, same = measured.typical, name != CLOUDVOLUME
            least, server = result.least, cost.server
            ratio = result.ratio(name) if name != OURS else None
            rows.append([
                result.case.name, name, f"{measured.points:,}", f"{cost.wall:.2f}",
                f"{measured.points / cost.wall:,.0f}",
                f"{least.chunks / cost.wall:,.0f}" if same else "",
                f"{cost.cpu / least.chunks * 1e6:,.0f}" if same else "",
                f"{cost.cpu / measured.points * 1e6:,.2f}", f"{cost.peak / 1e6:,.0f}",
                f"{server['requests']:,} ({least.requests:,})" if server and same else
                f"{server['requests']:,}" if server else "",
                f"{server['bytes'] / 1e6:,.2f} ({result.least_bytes / 1e6:,.2f})" if server and same else
                f"{server['bytes'] / 1e6:,.2f}" if server else "",
                f"{server['cpu_seconds']:.2f}" if server else "",
                f"{ratio:.2f}x" if ratio else "",
            ])
    return _table(["case", "who", "points", "wall s", "points/s", "chunks/s", "CPU us/chunk", "CPU us/point",
                   "peak MB", "requests (least)", "MB (least)", "store CPU s", "we are faster"], rows)


def format_stages(results: Sequence[CaseResult]) -> str:
    """Return a Markdown table of where our time and bytes went."""
    rows = []
    for result in results:
        for name in (OURS, COLD):
            measured = result.participants.get(name)
            if measured is None or measured.failure or not measured.costs:
                continue
            cost = measured.typical
            rows.append([
                result.case.name + (" (cold)" if name == COLD else ""),
                *(f"{cost.elapsed.get(stage, 0):.2f} ({cost.stages.get(stage, 0):.2f})" for stage in STAGES),
                f"{cost.wall - cost.elapsed.get('all', 0):.2f}",
                *(f"{cost.workspace.get(kind, 0) / 1e6:,.1f}" for kind in ("plan", "labels", "cache")),
                f"{cost.written / 1e6:,.0f}", f"{cost.anonymous / 1e6:,.0f}",
                ", ".join(f"{peak / 1e6:,.0f}" for peak in cost.peaks[:6]) + (" …" if len(cost.peaks) > 6 else ""),
            ])
    return _table(["our seconds", *STAGES, "rest", "plan MB", "labels MB", "cache MB", "written MB", "anonymous MB",
                   "peak MB of each process"], rows)


def format_goals(results: Sequence[CaseResult], *, quick: bool) -> str:
    """Return a Markdown table of goals, measured numbers and whether they are met; of quick runs nothing is said."""
    rows = []
    for result in results:
        for goal in result.case.goals:
            found = result.number(goal)
            if found is None:
                verdict = "not measured"
            else:
                verdict = "too small to say" if quick else "met" if goal.is_met(found) else "not met"
            rows.append([result.case.name, f"{_describe(goal)} {_amount(goal, goal.bound)}",
                         "" if found is None else _amount(goal, found), verdict])
    return _table(["case", "goal", "measured", ""], rows)


def format_exactness(results: Sequence[CaseResult]) -> str:
    """Return a line a case on what was compared."""
    return "\n".join(
        f"- {result.case.name}: " + "; ".join(
            f"{name}: {measured.compared:,} labels" for name, measured in result.participants.items()
            if measured.compared) for result in results)


def to_json(result: CaseResult) -> dict[str, Any]:
    """Return everything that is known of a case."""
    return {
        "name": result.case.name,
        "least": {**result.least._asdict(), "requests": result.least.requests, "bytes": result.least_bytes},
        "participants": {name: asdict(measured) for name, measured in result.participants.items()},
        "ratios": {name: result.ratio(name) for name in result.participants if name != OURS},
        "goals": [{"number": goal.number, "bound": goal.bound, "measured": found,
                   "met": None if found is None else goal.is_met(found)}
                  for goal in result.case.goals for found in [result.number(goal)]],
    }


def _describe(goal: Goal) -> str:
    what = {"tensorstore": "times TensorStore", "cloudvolume": "times CloudVolume's rate", "cold": "times the cold run",
            "wall": "wall time", "peak": "largest process", "rate": "points/s of plan, decode, merge",
            "requests": "requests"}[goal.number]
    return f"{what} {'≥' if goal.at_least else '≤'}"


def _amount(goal: Goal, value: float) -> str:
    if goal.number in ("tensorstore", "cloudvolume", "cold"):
        return f"{value:,.2f}"
    units = {"wall": f"{value:.2f} s", "peak": f"{value / 2**30:.2f} GiB"}
    return units.get(goal.number, f"{value:,.0f}")


def _table(head: list[str], rows: list[list[str]]) -> str:
    lines = [head, ["---"] * len(head), *([*row, *[""] * (len(head) - len(row))] for row in rows)]
    return "\n".join("| " + " | ".join(cell.replace("|", "/") for cell in line) + " |" for line in lines)
