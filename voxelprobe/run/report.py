"""What a run came to, as a file and as the lines that close it."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from voxelprobe.run.groups import read_decoded, read_fetched
from voxelprobe.run.manifests import Manifest
from voxelprobe.run.progress import format_bytes, format_seconds
from voxelprobe.run.result import Result
from voxelprobe.run.root_files import read_resolved
from voxelprobe.run.spec import Run

REPORT = "report.json"


def write_report(result: Result, plan: Manifest, merged: Mapping[str, Any]) -> None:
    """Write `report.json`: provenance, counts, traffic and the seconds of each stage, summed over groups."""
    run, roots = result.run, result.roots
    groups = range(int(plan.facts["groups"]))
    fetched = [manifest.facts for group in groups if (manifest := read_fetched(run, group)) is not None]
    decoded = [manifest.facts for group in groups if (manifest := read_decoded(run, group)) is not None]
    resolved = [
        manifest.facts for group in groups if roots is not None and (manifest := read_resolved(run, group, roots))
    ]
    names = ("chunks", "cached", "fetched", "absent", "by_range", "requests", "bytes", "retries")
    report = {
        "provenance": result.provenance,
        "result": {name: merged[name] for name in ("output", "points", "rows", "labels", "roots", "background",
                                                   "status", "corrupt")},
        "audit": merged["audit"],
        "failed": merged["failed"],
        "groups": len(groups),
        "fetch": {name: sum(facts[name] for facts in fetched) for name in names},
        "resolve": {name: sum(facts[name] for facts in resolved)
                    for name in ("supervoxels", "asked", "requests", "unresolved")},
        "seconds": {
            "plan": plan.facts["seconds"],
            "fetch": round(sum(facts["seconds"] for facts in fetched), 3),
            "decode": round(sum(facts["seconds"] for facts in decoded), 3),
            "resolve": round(sum(facts["seconds"] for facts in resolved), 3),
            "merge": merged["seconds"],
        },
    }
    run.folder.write_bytes(REPORT, json.dumps(report, indent=1).encode() + b"\n")


def format_report(run: Run) -> str:
    """Return the closing summary of a finished run, or "" if it has no report."""
    content = run.folder.read_bytes(REPORT)
    if content is None:
        return ""
    report = json.loads(content)
    result, fetch, seconds = report["result"], report["fetch"], report["seconds"]
    status = ", ".join(f"{count:,} {name}" for name, count in result["status"].items()) or "none"
    read = result["status"].get("ok", 0)
    background = f" ({result['background'] / read:.1%} background)" if read else ""
    lines = [
        f"result   {result['output']}",
        f"points   {result['points']:,}: {status}",
        f"labels   {result['labels']:,} different{background}",
        f"chunks   {fetch['chunks']:,} in {report['groups']} groups: {fetch['cached']:,} from the cache, "
        f"{fetch['fetched']:,} fetched, {fetch['absent']:,} missing"
        + (f", {fetch['by_range']:,} read by voxel" if fetch["by_range"] else ""),
        f"traffic  {fetch['requests']:,} requests, {format_bytes(fetch['bytes'])}, {fetch['retries']:,} repeated",
        "seconds  "
        + ", ".join(f"{stage} {spent:.1f}" for stage, spent in seconds.items() if spent or stage != "resolve")
        + f" (all workers: {format_seconds(sum(seconds.values()))})",
    ]
    if result["roots"] is not None:
        resolve = report["resolve"]
        lines[2] = f"labels   {result['labels']:,} supervoxels{background}, {result['roots']:,} roots"
        lines.insert(-1, f"graph    {resolve['asked']:,} of {resolve['supervoxels']:,} supervoxels asked for in "
                         f"{resolve['requests']:,} requests, {resolve['unresolved']:,} without a root")
    lines.insert(-1, _format_audit(report["audit"]))
    lines += [f"corrupt  {chunk}: {message}" for chunk, message in sorted(result["corrupt"].items())]
    if report["failed"]["points"]:
        lines.append(f"failed   {report['failed']['points']:,} points, listed in {report['failed']['table']}")
    return "\n".join(lines)


def _format_audit(audit: Mapping[str, Any]) -> str:
    if audit["not_audited"]:
        return f"audit    none: {audit['not_audited']}"
    unread = f", {audit['unread']:,} chunks unreadable" if audit["unread"] else ""
    return (f"audit    {audit['compared']:,} points in {audit['chunks']:,} chunks read again by {audit['way']}, "
            f"{audit['mismatches']:,} differ{unread} ({audit['seconds']:.1f} s)")
