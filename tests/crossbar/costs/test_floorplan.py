"""Floor plans: where tiles stand, what moves between cores, and what placers may not do."""

import pytest

from crossbar import InputError
from crossbar.costs.chips import Chip
from crossbar.costs.floorplan import Block, Edge, floor_plan

CHIP = Chip("mine", tiles=4, width=2, height=2)
BLOCKS = [Block("a", 4, across=2, out_bytes=64), Block("act", 0, out_bytes=64), Block("b", 2, across=2, out_bytes=32)]
EDGES = [Edge("a", "act", 64), Edge("act", "b", 64)]


def test_row_major_fills_core_after_core():
    plan = floor_plan(BLOCKS, EDGES, CHIP)
    assert plan.cores == ((0, 0, 0, 0), (1,), (1, 1))
    assert (plan.tiles, plan.chips, plan.utilisation) == (6, 1, 6 / 16)
    assert plan.filled == {0: 4, 1: 2}
    made, read = plan.traffic
    assert (made.bytes, made.byte_hops, made.hops, made.chips) == (64, 64, 1, 0)
    assert (read.bytes, read.byte_hops, read.hops) == (0, 0, 0)  # within a core


def test_balanced_spreads_each_layer():
    plan = floor_plan(BLOCKS, EDGES, CHIP, "balanced")
    assert plan.cores == ((0, 1, 2, 3), (0,), (0, 1))
    assert max(plan.filled.values()) - min(plan.filled.values()) == 1
    made, read, sums = plan.traffic
    # a quarter from each core to core 0: from 1 and 2 one hop, from 3 two
    assert (made.bytes, made.byte_hops, made.hops) == (3 * 16, 16 * (1 + 1 + 2), 2)
    assert (read.bytes, read.byte_hops, read.hops) == (64, 64, 1)
    # the second row tile's two halves go from cores 2 and 3 to core 0, where the first one's are
    assert sums.edge == Edge("a", "a", 64)
    assert (sums.bytes, sums.byte_hops, sums.hops) == (2 * 32, 32 * (1 + 2), 2)


def test_chips_stand_side_by_side():
    plan = floor_plan([Block("a", 16, across=16), Block("b", 4, across=4)], [Edge("a", "b", 8)], CHIP)
    assert (plan.chips, plan.utilisation) == (2, 20 / 32)
    assert plan.at(3) == (1, 1)
    assert plan.at(4) == (2, 0)
    assert plan.hops(3, 4) == 2
    (moved,) = plan.traffic
    assert (moved.hops, moved.chips) == (3, 1)  # from core 2 at (0, 1)


def test_a_placer_of_ones_own():
    plan = floor_plan(
        BLOCKS, EDGES, CHIP, lambda blocks, chip: [[3] * block.tiles for block in blocks[:1]] + [[], [0, 2]]
    )
    assert plan.place == {"a": (3,), "act": (0,), "b": (0, 2)}
    values = plan.to_dict()
    assert values["layers"][0] == {"name": "a", "tiles": 4, "cores": [3]}
    assert values["traffic"][0] == {
        "source": "a", "target": "act", "bytes": 64.0, "byte_hops": 128.0, "hops": 2, "chips": 0, "bytes_made": 64
    }  # fmt: skip


@pytest.mark.parametrize(
    ("placer", "named"),
    [
        ("random", "'random' is unknown: choose one of row_major, balanced"),
        (lambda blocks, chip: [[0], [], [0, 1]], "another number of cores"),
        (lambda blocks, chip: [[0] * 4, [], [0, 1]], "puts 5 tiles into core 0, which has 4"),
        (lambda blocks, chip: [[-1] * 4, [], [0, 1]], "the core -1"),
    ],
)
def test_what_a_placer_may_not_do(placer, named):
    with pytest.raises(InputError, match=named):
        floor_plan(BLOCKS, EDGES, CHIP, placer)


def test_an_edge_of_an_unknown_layer_is_refused():
    with pytest.raises(InputError, match="'c', which is not placed"):
        floor_plan(BLOCKS, [Edge("a", "c", 1)], CHIP)
