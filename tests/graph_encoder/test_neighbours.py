"""Edges in the forms of the backends: tables by class of degrees, order by target."""

from itertools import pairwise

import pytest
import torch

from trimtab.graph_encoder.neighbours import Neighbours


def make_neighbours() -> Neighbours:
    """Target 0 has neighbours 5, 1 and 3, target 1 none, target 2 has 4, target 3 has 0 to 3."""
    sources = torch.tensor([5, 0, 4, 1, 1, 2, 3, 3])
    targets = torch.tensor([0, 3, 2, 0, 3, 3, 0, 3])
    return Neighbours(sources, targets, num_sources=6, num_targets=4)


def test_tables_hold_targets_of_like_degrees():
    single, several = make_neighbours().tables
    assert (single.targets.tolist(), single.sources.tolist()) == ([2], [[4]])
    assert single.is_padding is None
    assert several.targets.tolist() == [0, 3]
    assert several.sources[0, :3].tolist() == [5, 1, 3]
    assert several.sources[1].tolist() == [0, 1, 2, 3]
    assert several.edges[1].tolist() == [1, 4, 5, 7]
    assert several.is_padding.tolist() == [[False, False, False, True], [False] * 4]


def test_table_of_all_targets_names_none():
    (table,) = Neighbours(
        torch.tensor([0, 1, 0]), torch.tensor([2, 0, 1]), num_sources=2, num_targets=3
    ).tables
    assert table.targets is None
    assert table.sources.tolist() == [[1], [0], [0]]


def test_order_and_starts_list_the_edges_of_each_target():
    neighbours = make_neighbours()
    starts = neighbours.starts.tolist()
    assert starts == [0, 3, 3, 4, 8]
    found = [neighbours.order[a:b].tolist() for a, b in pairwise(starts)]
    assert found == [[0, 3, 6], [], [2], [1, 4, 5, 7]]


def test_reverse_swaps_the_ends():
    reverse = make_neighbours().reverse
    assert (reverse.num_sources, reverse.num_targets) == (4, 6)
    assert reverse.degrees.tolist() == [1, 2, 1, 2, 1, 1]
    assert not reverse.is_single


def test_sources_without_edges_are_left_out_where_they_are_many():
    few = Neighbours(torch.tensor([7, 2, 7]), torch.tensor([0, 1, 2]), num_sources=9, num_targets=3)
    assert few.used_sources.tolist() == [2, 7]
    assert few.arrays[1].tolist() == [1, 0, 1]
    assert make_neighbours().used_sources is None


@pytest.mark.parametrize("wrong", [-1, 6])
def test_indices_must_be_those_of_nodes(wrong: int):
    with pytest.raises(ValueError, match=r"source indices of edges must be in \[0, 5\]"):
        Neighbours(torch.tensor([wrong]), torch.tensor([0]), num_sources=6, num_targets=1)


def test_edges_between_no_nodes_are_none():
    none = torch.zeros(0, dtype=torch.long)
    neighbours = Neighbours(none, none, num_sources=0, num_targets=0)
    assert neighbours.tables == ()
    assert neighbours.is_single
