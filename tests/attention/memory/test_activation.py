"""What becomes of scores: softmax of few bits, and a line that saturates."""

import pytest
import torch

from attention import AnalogMemory, LocalWindow, Memory, Protected, Saturating, Softmax, gated_attention
from tests.attention.memory.cases import IDEAL, WINDOW, N, draw, run


def test_softmax_of_few_bits_rounds_the_exponentials():
    q, k, v = draw()
    exact = gated_attention(q, k, v, WINDOW)
    errors = []
    for bits in (3, 8, 16, None):
        memory = AnalogMemory(Memory(IDEAL, capacity=N, activation=Softmax(bits)))
        errors.append(float((run(memory, q, k, v, WINDOW, [N]) - exact).abs().max()))
    assert errors[0] > 0.05 > errors[1] > 1e-3 > errors[2] > errors[3]
    scores = (q[:, :, -1] * 8**-0.5)[:, :, None] @ k.repeat_interleave(2, 1)[:, :, -4:].transpose(-1, -2)
    weights = (scores - scores.amax(-1, keepdim=True)).exp().mul(7).round().div(7)
    expected = weights / weights.sum(-1, keepdim=True) @ v.repeat_interleave(2, 1)[:, :, -4:]
    memory = AnalogMemory(Memory(IDEAL, capacity=N, activation=Softmax(3)))
    memory.append(k, v)
    torch.testing.assert_close(memory.read(q[:, :, -1:], LocalWindow(4).causal())[0], expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("protected", [None, Protected(1, 2)])
def test_a_saturating_line_takes_the_place_of_softmax(protected):
    q, k, v = draw()
    line = Saturating(low=-1.0, high=1.5, levels=16, gain=0.25)
    memory = AnalogMemory(Memory(IDEAL, capacity=N, activation=line, protected=protected))
    found = run(memory, q, k, v, WINDOW, [N])
    scores = 8**-0.5 * q @ k.repeat_interleave(2, 1).transpose(-1, -2)
    pulses = ((scores + 1.0) / 2.5).clamp(0, 1).mul(15).round().div(15) * WINDOW.to_dense(N)
    torch.testing.assert_close(found, 0.25 * pulses @ v.repeat_interleave(2, 1), rtol=0, atol=1e-5)
