"""What a command that shared its run through one luigid ends with: what became of the run, whoever did it.

Luigi's worker takes what another one did for not run, and ends with 25 though it wrote the table itself. It has no
setting for that, so its summary, which the exit code is made from, is corrected here.
"""

from __future__ import annotations

from typing import Any

from luigi import execution_summary

from tasks.base import RunTask

_DONE = "already_done"
# Where a task of this worker's own failed, Luigi's account of it stands.
_FAILURES = ("failed", "scheduling_error")


def count_the_work_of_others() -> None:
    """Have Luigi's summary, and with it the exit code, know what other workers have done."""
    # Not meant for others: a release of Luigi's that has them no more keeps its own account.
    summarise = getattr(execution_summary, "_summary_dict", None)
    root_of = getattr(execution_summary, "_root_task", None)
    if summarise is None or root_of is None:
        return
    execution_summary._summary_dict = lambda worker: _correct(summarise(worker), root_of(worker))


def _correct(tasks: dict[str, set[Any]], root: Any) -> dict[str, set[Any]]:
    """Return the tasks of each status, those of a complete run all done.

    Until Luigi has seen a task finished in its own worker it calls it pending, for want of permission, of the
    dependencies or of the data: all of these are wrong where the task at the root is complete.
    """
    left = set().union(*(tasks[status] for status in tasks if status not in (_DONE, "completed", "ever_failed")))
    if not left or any(tasks[status] for status in _FAILURES) or not isinstance(root, RunTask) or not root.complete():
        return tasks
    return {status: set() for status in tasks} | {
        "completed": tasks["completed"], "ever_failed": tasks["ever_failed"], _DONE: tasks[_DONE] | left,
    }
