import pytest
import torch
from transformers import masking_utils

from attention import conventions
from crossbar.errors import InputError

N = 40


def dense(attends):
    return torch.tensor([[bool(attends(i, j)) for j in range(N)] for i in range(N)])


@pytest.mark.parametrize("window", [1, 2, 7, 8, 100])
def test_transformers(window):
    zero = torch.tensor(0)
    position = torch.arange(N)
    for ours, theirs in (
        (conventions.transformers_causal, masking_utils.sliding_window_causal_mask_function),
        (conventions.transformers_bidirectional, masking_utils.sliding_window_bidirectional_mask_function),
    ):
        mask = theirs(window)(zero, zero, position[:, None], position)
        assert torch.equal(ours(window).to_dense(N), mask)


@pytest.mark.parametrize("window", [0, 1, 8])
def test_attention_gym(window):
    # attn_gym.masks.sliding_window: causal_mask & (q_idx - kv_idx <= window_size)
    expected = dense(lambda i, j: i >= j and i - j <= window)
    assert torch.equal(conventions.attention_gym_causal(window).to_dense(N), expected)


def test_longformer():
    # modeling_longformer: one_sided_attn_window_size = attention_window // 2, its own token and that many on each side
    expected = dense(lambda i, j: -4 <= i - j <= 4)
    assert torch.equal(conventions.longformer(8).to_dense(N), expected)
    with pytest.raises(InputError, match="attention_window = 7 is not allowed: give an even number"):
        conventions.longformer(7)


@pytest.mark.parametrize("blocks", [1, 2, 3, 4])
def test_deepspeed(blocks):
    # sparsity_config.set_sliding_window_layout: layout[row, row - blocks // 2 : row + 1] = 1
    layout = torch.zeros(6, 6, dtype=torch.bool)
    for row in range(6):
        layout[row, max(0, row - blocks // 2) : row + 1] = True
    expected = dense(lambda i, j: layout[i // 7, j // 7] and j <= i)
    pattern = conventions.deepspeed_unidirectional(blocks, 7, N)
    assert torch.equal(pattern.to_dense(N), expected)
    assert int(pattern.layout[5].sum()) == blocks // 2 + 1


@pytest.mark.parametrize(("kernel", "dilation"), [(3, 1), (7, 1), (5, 3), (3, 10)])
def test_natten(kernel, dilation):
    def starts(i):
        """natten's get_window_start for a non-causal dimension."""
        half = kernel // 2
        if dilation <= 1:
            return max(i - half, 0) + (N - i - half - 1 if i + half >= N else 0)
        if i - half * dilation < 0:
            return i % dilation
        if i + half * dilation >= N:
            residue, whole = i % dilation, (N // dilation) * dilation
            rest = N - whole
            if residue < rest:
                return N - rest + residue - 2 * half * dilation
            return whole + residue - kernel * dilation
        return i - half * dilation

    expected = dense(lambda i, j: j in range(starts(i), starts(i) + kernel * dilation, dilation))
    assert torch.equal(conventions.natten(kernel, dilation).to_dense(N), expected)
    # natten's get_window_start and get_window_end for a causal dimension
    causal = dense(
        lambda i, j: j in range(max(i - (kernel - 1) * dilation, i % dilation), min(i + dilation, N), dilation)
    )
    pattern = conventions.natten_causal(kernel, dilation)
    assert torch.equal(pattern.to_dense(N), causal)
    assert pattern.length_invariant
