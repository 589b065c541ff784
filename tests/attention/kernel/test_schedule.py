import pytest
import torch

from attention import BigBird, Dilated, Fixed, GlobalTokens, LocalWindow, RandomBlocks, Sinks, Strided
from attention.kernel.schedule import make, schedule


def pairs_of(work, n_queries, n_keys):
    """How often each pair is attended."""
    times = torch.zeros(n_queries, n_keys, dtype=torch.int64)
    for group in work.groups:
        for g in range(len(group.queries)):
            mask = torch.ones(group.shape[1:], dtype=torch.bool) if group.masks is None else group.masks[group.which[g]]
            row, column = mask.nonzero(as_tuple=True)
            places = group.queries[g][row] * n_keys + group.keys[g][column]
            times.view(-1).index_add_(0, places, torch.ones_like(places))
    return times


@pytest.mark.parametrize("tile", [None, 32])
@pytest.mark.parametrize(
    "pattern",
    [
        Strided(17) | Sinks(3) | Dilated(64, 4),
        Strided(16) & (LocalWindow(90) | Sinks(2)),
        (Strided(16) & LocalWindow(90)) | Dilated(64, 4),
        Fixed(32, 4).causal() | GlobalTokens((5, 299)),
        BigBird(32, 2).at(300),
    ],
    ids=str,
)
def test_each_pair_is_in_one_block(pattern, tile):
    work = make(pattern, 300, 300, tile=tile)
    assert torch.equal(pairs_of(work, 300, 300), pattern.to_dense(300).long())
    if tile is not None:
        assert not work.merged
        for group in work.groups:
            tiles = group.keys // tile
            for low, high in zip(group.bounds[:-1], group.bounds[1:], strict=True):
                assert (tiles[:, low:high] == tiles[:, low : low + 1]).all()
            starts = torch.tensor(group.bounds[:-1])
            assert (tiles[:, starts].diff(dim=1) > 0).all()  # a tile is in one place


@pytest.mark.parametrize(
    ("pattern", "waste"),
    [
        ((LocalWindow(256) | Sinks(4)).causal(), 1.3),
        (LocalWindow(64) | GlobalTokens((0, 1000)), 2.1),
        (Dilated(256, 4).causal(), 2.1),
        (Strided(64).causal(), 2.1),
        (Fixed(64, 4).causal(), 1.7),
        (BigBird(64, 3).at(4096), 1.01),
        (RandomBlocks(3, 64, seed=0).at(4096), 1.01),
    ],
    ids=str,
)
def test_pairs_computed_follow_the_attended_pairs(pattern, waste):
    attended = len(pattern.rows(4096).indices)
    assert attended <= make(pattern, 4096, 4096).pairs <= waste * attended


def test_a_window_is_a_few_groups_that_share_masks_and_copy_little():
    work = schedule((LocalWindow(256) | Sinks(4)).causal(), 4096, 4096)
    assert work.covered
    assert not work.merged
    assert len(work.groups) <= 6
    inner = max(work.groups, key=lambda group: len(group.queries))
    assert inner.shape == (59, 64, 323)
    assert (inner.shared, inner.step, inner.ordered) == (4, 64, True)
    assert len(inner.masks) == 1
    assert schedule(Sinks(0), 100, 100).groups == ()
