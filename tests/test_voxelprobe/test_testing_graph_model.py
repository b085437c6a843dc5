"""The graph behind the server double, held to a slow model, and the watersheds made for it."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from voxelprobe.testing.graph_model import ChunkedGraph, GraphLayout, graphene_watershed

LAYOUT = GraphLayout((64, 64, 16), 5, (7, 3, 100))


@given(st.data())
@settings(max_examples=40, deadline=None)
def test_history_equals_a_slow_model(data: st.DataObject) -> None:
    """After any edits, at any time: roots are the sets of the moment, and nodes of all layers are consistent."""
    places = data.draw(st.lists(st.tuples(*[st.integers(0, 7)] * 3), min_size=2, max_size=14))
    ids = [int(LAYOUT.encode(1, place, number + 1)[0]) for number, place in enumerate(places)]
    objects = data.draw(st.lists(st.integers(0, 3), min_size=len(ids), max_size=len(ids)))
    graph = ChunkedGraph.from_supervoxels(ids, objects, layout=LAYOUT, created=10)
    groups = {frozenset(i for i, o in zip(ids, objects, strict=True) if o == number) for number in set(objects)}
    states = [(10, groups)]
    for at in range(11, 11 + data.draw(st.integers(0, 6))):
        group = data.draw(st.sampled_from(sorted(groups, key=sorted)))
        root = int(graph.roots_at([min(group)], at)[0])
        rest = sorted(groups - {group}, key=sorted)
        if len(group) > 1 and data.draw(st.booleans()):
            off = frozenset(data.draw(st.lists(st.sampled_from(sorted(group)), min_size=1, max_size=len(group) - 1)))
            graph.split(root, sorted(off), at=at)
            groups = {*rest, off, group - off}
        elif rest:
            other = data.draw(st.sampled_from(rest))
            graph.merge([root, int(graph.roots_at([min(other)], at)[0])], at=at)
            groups = {*groups, group | other} - {group, other}
        states.append((at, groups))
    for at, groups in states:
        roots = dict(zip(ids, graph.roots_at(ids, at).tolist(), strict=True))
        assert {frozenset(i for i in ids if roots[i] == root) for root in roots.values()} == groups
        assert graph.latest(list(roots.values()), at + 0.001).all()
        for root in set(roots.values()):
            assert graph.members(root).tolist() == sorted(i for i in ids if roots[i] == root)
        for layer in range(2, LAYOUT.n_layers):
            nodes = graph.roots_at(ids, at, stop_layer=layer)
            np.testing.assert_array_equal(LAYOUT.chunks(nodes, layer), np.array(places) >> (layer - 2))
            assert graph.roots_at(nodes, at).tolist() == list(roots.values())


@pytest.mark.parametrize("starts_at_offset", [True, False])
@pytest.mark.parametrize("piece", [None, (8, 5, 4)])
def test_watershed(starts_at_offset: bool, piece: tuple[int, int, int] | None) -> None:
    """A supervoxel lies in the graph chunk that its id names and within one object; 0 stays 0; the rest is labelled."""
    rng = np.random.default_rng(1)
    segmentation = rng.integers(0, 4, (45, 40, 21)).astype(np.uint64) << np.uint64(60)
    offset = (13, 7, 101)
    watershed = graphene_watershed(segmentation, (16, 16, 8), voxel_offset=offset, piece_size=piece,
                                   chunks_start_at_voxel_offset=starts_at_offset)
    np.testing.assert_array_equal(watershed.labels == 0, segmentation == 0)
    voxels = np.argwhere(watershed.labels)
    labels = watershed.labels[tuple(voxels.T)]
    chunks = (voxels + (0 if starts_at_offset else np.array(offset))) // (16, 16, 8)
    np.testing.assert_array_equal(watershed.layout.chunks(labels, 1), chunks)
    np.testing.assert_array_equal(watershed.layout.chunks_of_voxels(voxels + offset), chunks)
    assert (watershed.layout.layers(labels) == 1).all()
    np.testing.assert_array_equal(np.unique(labels), watershed.ids)
    at = np.searchsorted(watershed.ids, labels)
    np.testing.assert_array_equal(watershed.objects[at], segmentation[tuple(voxels.T)])
    within = (voxels + (0 if starts_at_offset else np.array(offset))) % (16, 16, 8) // (piece or (16, 16, 8))
    keys = np.column_stack([chunks, within, segmentation[tuple(voxels.T)].astype(float)])
    assert len(np.unique(keys, axis=0)) == len(watershed.ids)
    assert (chunks.max(0) >> (watershed.layout.n_layers - 2) == 0).all()


def test_ids_that_dont_fit_are_refused() -> None:
    """A chunk or a segment with too many bits raises instead of running into its neighbour's field."""
    with pytest.raises(ValueError, match="10 bits a dimension"):
        LAYOUT.encode(1, (1024, 0, 0), 1)
    with pytest.raises(ValueError, match="26 bits a segment"):
        LAYOUT.encode(1, (0, 0, 0), 1 << 26)
