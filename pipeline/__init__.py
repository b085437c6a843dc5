"""The pipeline, for `luigi --module pipeline SamplePoints`.

    SamplePoints ── MergeTable ── DecodePoints(0) ── FetchChunks(0) ── PlanChunkGroups
                        │                                                 │
                        ├──────── DecodePoints(1) ── FetchChunks(1) ──────┤
                        ├──────── …                                       │
                        └──────── AuditPoints ────────────────────────────┤
                                       points table, volume's info ───────┘

`PlanChunkGroups` decides how many groups there are, so they appear once there is a plan. For graphene volumes
`ResolveRoots` stands between `MergeTable` and `DecodePoints`. `SampleChunkGroup` is one group's part of it, for job
arrays.
"""

from luigi.tools.range import RangeDaily  # for `--module pipeline RangeDaily --of RefreshRootsOfDay`

from pipeline.console import set_up_logging
from pipeline.outcome import count_the_work_of_others
from pipeline.sample_points import SamplePoints
from pipeline.settings import apply_defaults
from tasks.audit import AuditPoints
from tasks.decode import DecodePoints
from tasks.fetch import FetchChunks
from tasks.merge import MergeTable, SampleChunkGroup
from tasks.plan import PlanChunkGroups
from tasks.refresh import RefreshRoots, RefreshRootsOfDay
from tasks.resolve import ResolveRoots

STAGES = [PlanChunkGroups, FetchChunks, DecodePoints, ResolveRoots, SampleChunkGroup, AuditPoints, MergeTable]

apply_defaults(SamplePoints.__name__, [stage.__name__ for stage in STAGES])
set_up_logging()
count_the_work_of_others()

__all__ = [
    "AuditPoints",
    "DecodePoints",
    "FetchChunks",
    "MergeTable",
    "PlanChunkGroups",
    "RangeDaily",
    "RefreshRoots",
    "RefreshRootsOfDay",
    "ResolveRoots",
    "SampleChunkGroup",
    "SamplePoints",
]
