"""The targets of `fuzz`, the program, on seeded damage: its short form, without atheris."""

import functools
import random

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fuzz.target import flip, nudge
from fuzz.targets import NAMES, load_target

EXAMPLES = 150


@functools.cache
def seeds_of(name):
    return load_target(name).seeds()


@pytest.mark.parametrize("name", NAMES)
def test_seeds_are_read(name):
    """What writers wrote is read, most of it: damage to it reaches more than a parser's first lines."""
    outcomes = [load_target(name).check(content) for content in seeds_of(name)]
    assert sum(outcomes) > len(outcomes) // 4


@pytest.mark.parametrize("name", NAMES)
@settings(max_examples=EXAMPLES, deadline=None, derandomize=True)
@given(number=st.integers(0, 2**32))
def test_damage_is_refused_or_read_as_another_reading_has_it(name, number):
    """Whatever is changed in what a parser reads, the answer is an error of ours, or what a second reading is."""
    target, rng = load_target(name), random.Random(number)
    content = rng.choice(seeds_of(name))
    for change in rng.choices((nudge, flip, target.mutate or nudge), k=rng.randint(1, 2)):
        content = change(content, rng)
    if target.mutate is not None and rng.random() < 0.7:
        content = target.mutate(content, rng)
    target.check(content)


@pytest.mark.parametrize(("name", "place", "fault"), [
    ("compressed_segmentation", "voxelprobe.codecs.compressed_segmentation.read_points", np.zeros((48, 1), "<u8")),
    ("crackle", "voxelprobe.codecs.crackle._parse_labels", (np.zeros(4), np.ones(4), np.zeros(4), np.zeros(1))),
    ("compresso", "voxelprobe.codecs.compresso._expand_runs", np.zeros(3)),
    ("png", "voxelprobe.codecs.png.read_points", np.zeros((60, 1), "u1")),
    ("jpeg", "voxelprobe.codecs.jpeg.read_points", np.zeros((480, 1), "u1")),
    ("jxl", "voxelprobe.codecs.jxl._parse_header", (12, 16, 1)),
    ("zfpc", "voxelprobe.codecs.zfpc.read_points", np.zeros((120, 1), "<f4")),
    ("zarr", "voxelprobe.codecs.zarr.read_points", np.zeros((240, 1), "<u4")),
    ("n5", "voxelprobe.codecs.n5.read_points", np.zeros((240, 1), "<u4")),
    ("blosc_frame", "voxelprobe.codecs.blosc_frame.take_values", np.zeros(3, "<u4")),
    ("wrappers", "fuzz.targets.wrappers.strip_compression", b"x"),
    ("shard_index", "fuzz.targets.indices.parse_shard_index", np.zeros((1, 2), np.int64)),
    ("box_index", "fuzz.targets.indices.parse_box_index", (np.zeros(1), np.zeros(1))),
    ("cache_rows", "fuzz.targets.state.parse_row", None),
])
def test_a_wrong_answer_is_a_finding(name, place, fault, monkeypatch):
    """A parser that gives something else than what is stored is found out: the checks can fail."""
    monkeypatch.setattr(place, lambda *arguments, **named: fault)
    found = []
    for content in seeds_of(name):
        try:
            found.append(load_target(name).check(content))
        except (AssertionError, IndexError, ValueError, TypeError, AttributeError):
            found.append(None)
    assert None in found
