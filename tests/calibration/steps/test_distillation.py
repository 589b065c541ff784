"""The distance to the digital model's outputs that finetuning minimises, by hand."""

import pytest
import torch

from calibration.steps.distillation import distance
from crossbar import InputError


class Output:
    def __init__(self, logits):
        self.logits = logits


def test_the_distance_is_the_divergence_and_the_relative_error():
    draw = torch.Generator().manual_seed(0)
    a, b = (torch.randn(2, 3, 5, generator=draw, dtype=torch.float64) for _ in range(2))
    mask = torch.tensor([[1, 1, 0], [1, 0, 0]])
    p = b.softmax(-1)
    wanted = (p * (p.log() - a.softmax(-1).log())).sum(-1)
    torch.testing.assert_close(distance(Output(a), Output(b)), wanted.mean())
    torch.testing.assert_close(distance(Output(a), Output(b), mask), wanted[mask.bool()].mean())
    torch.testing.assert_close(distance(a, b), (a - b).square().mean() / b.square().mean())
    with pytest.raises(InputError, match="outputs of type tuple cannot be compared"):
        distance((a,), (b,))
