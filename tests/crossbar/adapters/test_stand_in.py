"""Stand-ins for weights that are in cells."""

import pytest
import torch
import torch.nn.functional as F

from crossbar import InputError
from crossbar.adapters.stand_in import stand_in
from tests.crossbar.conftest import inputs64


def of(weight, transposed=False):
    """A stand-in whose products are those of the weight, in digital."""
    matrices = [weight] if weight.dim() == 2 else [*weight]
    products = [lambda x, m=m: x @ (m if transposed else m.t()) for m in matrices]
    return stand_in(weight, "some.weight", products, transposed)


def test_it_answers_what_a_weight_is():
    w = stand_in(torch.empty(3, 4, dtype=torch.bfloat16), "w")
    assert (w.shape, w.dtype, w.device, w.ndim, w.dim(), w.size(1), len(w)) == (
        (3, 4), torch.bfloat16, torch.device("cpu"), 2, 2, 4, 3,
    )  # fmt: skip
    assert (w.numel(), w.element_size(), w.is_floating_point(), w.is_cuda, w.requires_grad) == (
        12,
        2,
        True,
        False,
        False,
    )
    assert isinstance(w, torch.Tensor)
    assert (w.float().dtype, w.to(torch.float64).dtype, w.t().shape) == (torch.float32, torch.float64, (4, 3))


def test_products_are_computed():
    weight, x, b = inputs64(3, 4), inputs64(2, 5, 4, seed=2), inputs64(3, seed=3)
    w, turned = of(weight), of(weight.t().contiguous(), transposed=True)
    expected = F.linear(x, weight, b)
    for found in (
        F.linear(x, w, b), x @ w.t() + b, x @ w.mT + b, torch.matmul(x, w.transpose(0, 1)) + b, x @ turned + b,
        (w @ x.mT).mT + b, x @ w.detach().T + b,
    ):  # fmt: skip
        torch.testing.assert_close(found, expected)
    torch.testing.assert_close(torch.addmm(b, x[0], turned), expected[0])


@pytest.mark.filterwarnings("ignore:Support for mismatched key_padding_mask")
def test_torchs_function_of_attention_with_separate_weights_is_computed():
    """As WavLM calls it: a bias of positions for each head, and padding."""
    x, weights = inputs64(5, 2, 8), [inputs64(8, 8, seed=seed) for seed in range(2, 6)]
    bias, out_bias, places = inputs64(24, seed=6), inputs64(8, seed=7), inputs64(2 * 2, 5, 5, seed=8)
    padding = torch.tensor([[False] * 5, [False] * 3 + [True] * 2])

    def computed(q, k, v, out, **options):
        return F.multi_head_attention_forward(
            x, x, x, 8, 2, torch.empty(0), bias, None, None, False, 0.0, out, out_bias, False, padding,
            attn_mask=places, q_proj_weight=q, k_proj_weight=k, v_proj_weight=v, **options,
        )  # fmt: skip

    for needed in (True, False):
        expected = computed(*weights, use_separate_proj_weight=True, need_weights=needed)
        found = computed(*map(of, weights), use_separate_proj_weight=True, need_weights=needed)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    with pytest.raises(InputError, match="'multi_head_attention_forward' would compute past them"):
        F.multi_head_attention_forward(
            x, x, x, 8, 2, torch.cat(weights[:3]), bias, None, None, False, 0.0, of(weights[3]), out_bias
        )


def test_experts_are_taken_by_index_or_all_at_once():
    weight, x = inputs64(3, 5, 4), inputs64(3, 2, 4, seed=2)
    w = of(weight)
    for index in (1, torch.tensor(1), torch.tensor([1])[0]):
        torch.testing.assert_close(F.linear(x[0], w[index]), F.linear(x[0], weight[1]))
    torch.testing.assert_close(torch.bmm(x, w.transpose(1, 2)), torch.bmm(x, weight.transpose(1, 2)))
    turned = of(weight.transpose(1, 2).contiguous(), transposed=True)
    torch.testing.assert_close(torch.bmm(x, turned), torch.bmm(x, weight.transpose(1, 2)))


@pytest.mark.parametrize(
    ("use", "name"),
    [
        (lambda w: w + 1, "add"),
        (lambda w: w.sum(), "sum"),
        (lambda w: w[torch.tensor([0, 1])], "__getitem__"),
        (lambda w: w[0:1], "__getitem__"),
        (lambda w: F.linear(torch.ones(2, 3), w.t()), "linear"),
        (lambda w: torch.ones(2, 3) @ w, "matmul"),
        (lambda w: torch.stack([w, w]), "stack"),
        (lambda w: w.norm(), "norm"),
        (lambda w: w.numpy(), "numpy"),
        (lambda w: w.copy_(torch.ones(3, 4)), "copy_"),
    ],
)
def test_everything_else_is_refused_in_one_sentence(use, name):
    with pytest.raises(InputError) as caught:
        use(of(torch.ones(3, 4)))
    assert str(caught.value) == (
        f"'some.weight' is in cells, and {name!r} would compute past them with its numbers: exclude the layer from "
        "conversion, or register an adapter for what reads it"
    )


def test_without_products_it_multiplies_with_nothing():
    w = stand_in(torch.ones(3, 4), "w")
    for use in (lambda: F.linear(torch.ones(2, 4), w), lambda: torch.ones(2, 4) @ w.t(), lambda: w @ torch.ones(4, 2)):
        with pytest.raises(InputError, match="would compute past them"):
            use()
