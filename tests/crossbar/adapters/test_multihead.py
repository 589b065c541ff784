"""nn.MultiheadAttention on tiles: equal to torch's for all of its options."""

import copy

import pytest
import torch
from torch import nn

from crossbar import convert
from tests.crossbar.conftest import QUIET, inputs64, seeded


class Model(nn.Module):
    def __init__(self, **options):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, dtype=torch.float64, **options)

    def forward(self, *inputs, **options):
        return self.attention(*inputs, **options)


def both(**options):
    digital = seeded(lambda: Model(**options))
    with torch.no_grad():
        for parameter in digital.parameters():
            parameter.add_(inputs64(*parameter.shape, seed=7), alpha=0.1)
    analog = copy.deepcopy(digital)
    convert(analog, QUIET)
    return digital, analog


def same(found, expected):
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12)
    assert (found[1] is None) == (expected[1] is None)
    if expected[1] is not None:
        torch.testing.assert_close(found[1], expected[1], rtol=0, atol=1e-12)


@pytest.mark.parametrize("batch_first", [False, True])
@pytest.mark.parametrize(
    "options", [{}, {"bias": False}, {"add_bias_kv": True}, {"add_zero_attn": True}, {"kdim": 3, "vdim": 5}]
)
def test_it_is_torchs(batch_first, options):
    digital, analog = both(batch_first=batch_first, **options)
    q, k, v = inputs64(4, 4, 8), inputs64(4, 4, options.get("kdim", 8)), inputs64(4, 4, options.get("vdim", 8))
    same(analog(q, k, v), digital(q, k, v))
    same(analog(q, k, v, average_attn_weights=False), digital(q, k, v, average_attn_weights=False))
    same(analog(q, k, v, need_weights=False), digital(q, k, v, need_weights=False))
    same(analog(q[0], k[0], v[0]), digital(q[0], k[0], v[0]))


@pytest.mark.parametrize("need_weights", [False, True])
@pytest.mark.parametrize("kind", ["bool", "float", "of heads", "padding", "both", "causal"])
def test_masks_are_torchs(kind, need_weights):
    digital, analog = both(batch_first=True, add_zero_attn=kind == "padding")
    x = inputs64(3, 5, 8)
    causal = torch.ones(5, 5, dtype=torch.bool).triu(1)
    padding = torch.zeros(3, 5, dtype=torch.bool)
    padding[1, 3:] = True
    options = {
        "bool": {"attn_mask": causal},
        "float": {"attn_mask": inputs64(5, 5, seed=3)},
        "of heads": {"attn_mask": inputs64(6, 5, 5, seed=3)},
        "padding": {"key_padding_mask": padding},
        "both": {"key_padding_mask": padding, "attn_mask": causal},
        "causal": {"attn_mask": causal, "is_causal": True},
    }[kind]
    same(analog(x, x, x, need_weights=need_weights, **options), digital(x, x, x, need_weights=need_weights, **options))
