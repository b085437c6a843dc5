"""Our own parsers under coverage-guided fuzzing, each held against a second, plain reading of the same bytes.

    pip install atheris
    python -m fuzz.run --list
    python -m fuzz.run --parser compressed_segmentation --executions 1000000
    python -m fuzz.run --parser all --executions 1000000

A target is a module's `TARGETS` here: seeds by the writers of `voxelprobe.testing`, and a check that is more than "it
didn't crash". What comes back is one of the product's errors, or equals what the second reading gives. An execution has
a bound of memory and of time; a crash of native code ends the fuzzing process, which is a finding too. The short form
is `tests/test_fuzz.py`: the same checks on seeded mutations, without atheris.
"""
