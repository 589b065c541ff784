import pytest
import torch

from attention import BigBird, LocalWindow, PerHead, Sinks, gated_attention
from crossbar.errors import InputError

X = torch.randn(1, 2, 20, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("x", "options", "named"),
    [
        (X.clone().requires_grad_(), {}, "cannot train on a CPU"),
        (X.double(), {}, "cannot have float64"),
        (X, {"return_lse": True}, "no log-sum-exp on a CPU"),
        (X, {"dropout": 0.1}, "cannot have dropout"),
    ],
)
def test_what_torch_does_not_have_is_refused(x, options, named):
    with pytest.raises(InputError, match=named):
        gated_attention(x, x, x, LocalWindow(4), impl="flex", **options)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # torch's compiler warns of its own imports
@pytest.mark.parametrize("case", ["window", "heads", "padding"])
def test_flex_equals_blocks(case):
    generator = torch.Generator().manual_seed(0)
    q = torch.randn(2, 4, 150, 16, generator=generator)
    k, v = torch.randn(2, 2, 2, 200, 16, generator=generator)
    window = (LocalWindow(30) | Sinks(2)).causal()
    pattern = PerHead([window, BigBird(16, 1).causal().at(200)] * 2) if case == "heads" else window
    mask = None
    if case == "padding":
        mask = torch.rand(2, 200, generator=generator) < 0.5
        mask[0, :100] = False  # rows without any key
    q.requires_grad_()  # of no use without a gradient, and no reason to refuse
    with torch.no_grad():
        flex, blocks = (gated_attention(q, k, v, pattern, mask=mask, offset=50, impl=i) for i in ("flex", "blocks"))
    torch.testing.assert_close(flex, blocks, rtol=0, atol=1e-5)
