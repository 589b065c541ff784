"""The draws of random blocks; which pairs a draw gives is tested with every other family."""

import math

import numpy as np
import pytest
import torch
from transformers import BigBirdConfig
from transformers.models.big_bird.modeling_big_bird import BigBirdBlockSparseAttention

from attention import BigBird, RandomBlocks


def drawn(pattern, blocks):
    """The random blocks of each row as sets."""
    return [set(row) - {-1} for row in pattern._drawn(blocks * pattern.block).tolist()]


@pytest.mark.parametrize("seed", range(3))
def test_random_blocks_are_distinct_and_as_many_as_there_can_be(seed):
    assert [len(row) for row in drawn(RandomBlocks(3, 4, seed), 10)] == [3] * 10
    assert [len(row) for row in drawn(RandomBlocks(3, 4, seed), 2)] == [2] * 2
    causal = drawn(RandomBlocks(3, 4, seed).causal(), 10)
    assert [len(row) for row in causal] == [1, 2, *[3] * 8]
    assert all(max(row) <= b for b, row in enumerate(causal))


def test_random_blocks_are_drawn_evenly():
    pairs = torch.zeros(6, 6)
    rows = 3000
    for first, second in (RandomBlocks(2, 1)._drawn(rows) % 6).tolist():
        pairs[first, second] += 1
    # Each of the 36 ordered pairs has probability close to 1/36 (equal blocks modulo 6 are distinct blocks).
    deviation = math.sqrt(rows / 36)
    assert (pairs - rows / 36).abs().max() < 4.5 * deviation
    short = torch.zeros(5)
    for seed in range(400):
        for row in drawn(RandomBlocks(2, 1, seed), 5):
            short[list(row)] += 1
    expected = 400 * 5 * 2 / 5
    assert (short - expected).abs().max() < 4 * math.sqrt(expected * 3 / 5)


def test_a_draw_depends_on_the_seed_and_nothing_else():
    state = torch.random.get_rng_state()
    first, again, other = (BigBird(4, 3, seed).to_dense(200) for seed in (1, 1, 2))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert drawn(BigBird(4, 3), 20) != drawn(RandomBlocks(3, 4), 20)


def test_bigbird_draws_from_the_blocks_that_transformers_draws_from():
    blocks, size, r = 10, 4, 2
    config = BigBirdConfig(hidden_size=8, num_attention_heads=1, block_size=size, num_random_blocks=r)
    theirs = BigBirdBlockSparseAttention(config).train()  # in eval mode its random blocks are all block 0
    state = np.random.get_state()  # noqa: NPY002  # transformers draws from numpy's global state
    seen_ours, seen_theirs = [set() for _ in range(blocks)], [set() for _ in range(blocks)]
    try:
        np.random.seed(0)  # noqa: NPY002  # as above
        for seed in range(60):
            rows = theirs._bigbird_block_rand_mask(blocks * size, blocks * size, size, size, r)
            for row, chosen in enumerate(rows.tolist(), 1):
                seen_theirs[row].update(chosen)
                assert len(set(chosen)) == r
            for row, chosen in enumerate(drawn(BigBird(size, r, seed), blocks)):
                seen_ours[row].update(chosen)
                assert len(chosen) == r or row in (0, blocks - 1)
    finally:
        np.random.set_state(state)  # noqa: NPY002  # as above
    # In the two rows before the last, transformers may draw a block that the row attends anyway; its comments say so.
    assert seen_ours[1:-3] == seen_theirs[1:-3]
    assert all(a < b for a, b in zip(seen_ours[-3:-1], seen_theirs[-3:-1], strict=True))
