"""Long programs that do to a run what nights do to it: kills, lost power, faulty servers, others at the same time.

`python -m reliability.kills`, `.faults` and `.pairs` start the real command on small volumes, print a table, and end
with 1 if anything promised in docs/reliability.md did not hold. Their short forms are in tests/test_pipeline/.
"""
