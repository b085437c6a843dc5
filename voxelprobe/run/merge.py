"""The merge stage: labels and roots back beside the user's rows, in the user's order."""

from __future__ import annotations

import logging
import time

from voxelprobe.run.audit import audit_name
from voxelprobe.run.audit_check import MISMATCHES, check_table, read_mismatches
from voxelprobe.run.audit_sample import AuditExtent, parse_audit
from voxelprobe.run.failed import write_failed
from voxelprobe.run.groups import sweep_fetches
from voxelprobe.run.manifests import Manifest, read_manifest, settle_names, write_manifest
from voxelprobe.run.plan import PLAN_MANIFEST, expect_plan
from voxelprobe.run.progress import ProgressBoard
from voxelprobe.run.report import REPORT, write_report
from voxelprobe.run.result import Result
from voxelprobe.run.values import gather_values

logger = logging.getLogger(__name__)


def read_merged(result: Result) -> Manifest | None:
    """Return the marker of a result table, or None unless the table is there as it was written."""
    manifest = read_manifest(result.run.folder, result.marker, result.run.key)
    if manifest is None or result.folder.version(result.name) != manifest.facts.get("output_version"):
        return None
    return manifest


def is_audited(manifest: Manifest, result: Result, extent: AuditExtent) -> bool:
    """Return whether a table was held against an audit of this extent or a larger one, and nothing was wrong since."""
    done = manifest.facts.get("audit", {}).get("asked", "0")
    return parse_audit(done).covers(extent.text) and (extent.points == 0 or not read_mismatches(result.run))


def merge_run(
    result: Result, *, board: ProgressBoard, execution: str, audit: AuditExtent, threads: int
) -> None:
    """Write the result table of a run whose groups are all done, its report, and then the marker.

    The table gets its name once it agrees with the audit.

    Raises
    ------
    AuditError
        If it doesn't.
    """
    run = result.run
    stem = result.marker.rsplit("/", 1)[-1].removesuffix(".json")
    with run.lock(f"merge-{stem}"):
        started = time.monotonic()
        plan = expect_plan(run)
        for leftover in (result.marker, REPORT, MISMATCHES):
            run.folder.sweep(leftover)
        sweep_fetches(run)
        values = gather_values(run, plan, result.roots)
        facts = values.facts()
        result.folder.sweep(result.name)
        with result.folder.new_file(result.name, keep=False) as path:
            result.write(path, values.blocks(), board)
            run.check_points()
            facts["audit"] = check_table(result, path, audit, threads=threads)
        facts |= {
            "output": result.url,
            "output_version": result.folder.written_version(result.name),
            "roots_at": None if result.roots is None else result.roots.provenance,
            "rows": plan.facts["rows"],
            "points": values.points,
            "execution": execution,
            "seconds": round(time.monotonic() - started, 3),
        }
        facts["failed"] = write_failed(run, execution)
        write_report(result, plan, facts)
        # From here on nobody looks at the other stages again.
        settle_names(result.folder, [result.name])
        settle_names(run.folder, [REPORT, PLAN_MANIFEST, "fetch/group-000.json", "labels/group-000.json",
                                  audit_name(audit, 0, "json")])
        write_manifest(run.folder, result.marker, run.key, [], facts)
        logger.info("merged %s rows into %s, %.1f s", f"{facts['rows']:,}", result.url, time.monotonic() - started)
