"""Which keys are beyond the near and the first tokens, and which are resident."""

import pytest
import torch

from attention.patterns.resident import Beyond, Resident


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("family", [Beyond(3, 5), Beyond(0, 0), Beyond(9, 1), Resident(2, 7), Resident(0, 3)], ids=repr)
def test_spans_and_pairs_of_held_keys_agree(family, causal):
    pattern, n = family.causal() if causal else family, 20
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    assert torch.equal(pattern.to_dense(n), pattern.allowed(i, j))
    if isinstance(family, Beyond):
        near = (i - j).abs() < family.recent
        expected = (j >= family.sinks) & ~near
        assert torch.equal(pattern.to_dense(n), expected & (j <= i) if causal else expected)
