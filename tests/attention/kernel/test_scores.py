"""Soft caps, biases and sinks of scores, and values of another width than keys, against the reference."""

import dataclasses

import pytest
import torch

from attention import AnalogMemory, Dense, Memory, PerHead, gated_attention, parse
from attention.activation import Saturating
from attention.kernel.reference import attention_reference
from attention.patterns.given import behind, given
from crossbar import InputError, Ledger, Tile, presets

N, HEADS, KV_HEADS, SIZE, VALUE_SIZE = 150, 4, 2, 8, 5
PATTERNS = [
    "dense",
    "causal(window(9) | sinks(2))",
    "strided(12)",
    "topk(7)",
    "heads(dense, window(9), dense, sinks(2))",
]


def draw(*shape, seed=0, dtype=torch.float64):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def inputs(dtype=torch.float64, n=N):
    sizes = ((HEADS, SIZE), (KV_HEADS, SIZE), (KV_HEADS, VALUE_SIZE))
    return [draw(2, heads, n, size, seed=seed, dtype=dtype) for seed, (heads, size) in enumerate(sizes)]


def options(dtype=torch.float64, heads=HEADS, batch=2, n=N):
    return {
        "bias": draw(batch, heads, n, n, seed=5, dtype=dtype),
        "softcap": 1.5,
        "sinks": draw(HEADS, seed=6, dtype=dtype),
        "scale": 0.7,
    }


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize(("batch", "heads"), [(2, HEADS), (1, HEADS), (2, 1), (1, 1)])
def test_outputs_and_gradients_are_the_references(pattern, batch, heads):
    pattern, tensors, given_options = parse(pattern), inputs(), options(batch=batch, heads=heads)
    mask = draw(2, N, seed=9) > -1.2
    chosen = pattern.select(tensors[0], tensors[1], mask=mask)

    def of(sequence, head):
        return chosen.sequence(sequence).head(head).to_dense(N)

    allowed = torch.stack([torch.stack([of(b, h) for h in range(HEADS)]) for b in range(2)]) & mask[:, None, None]
    found = []
    for attend in (
        lambda *x, **o: attention_reference(*x, allowed, **o)[0],
        lambda *x, **o: gated_attention(*x, pattern, mask=mask, **o),
    ):
        leaves = [x.clone().requires_grad_() for x in (*tensors, given_options["bias"], given_options["sinks"])]
        output = attend(*leaves[:3], **{**given_options, "bias": leaves[3], "sinks": leaves[4]})
        grads = torch.autograd.grad((output * draw(*output.shape, seed=7)).sum(), leaves)
        found.append((output.detach(), *grads))
    assert found[0][0].shape == (2, HEADS, N, VALUE_SIZE)
    for expected, computed in zip(*found, strict=True):
        torch.testing.assert_close(computed, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize("option", ["bias", "softcap", "sinks"])
def test_each_does_something(option):
    tensors, given_options = inputs(), options()
    with_all = gated_attention(*tensors, Dense(), **given_options)
    without = gated_attention(*tensors, Dense(), **{**given_options, option: None})
    assert (with_all - without).abs().max() > 1e-3


@pytest.mark.parametrize("pattern", ["dense", "causal(window(9) | sinks(2))", "topk(7)"])
def test_ideal_rows_are_the_digital_result(pattern):
    """Soft cap and bias come after the ADC, the sinks after the softmax; gradients of the bias too."""
    ideal = dataclasses.replace(presets.ideal(), tile=Tile(rows=16, cols=4))
    tensors, given_options, found = inputs(torch.float32, 60), options(torch.float32, n=60), []
    for hardware in (None, ideal):
        bias = given_options["bias"].clone().requires_grad_()
        output = gated_attention(*tensors, parse(pattern), hardware=hardware, **{**given_options, "bias": bias})
        found.append((output.detach(), torch.autograd.grad(output.square().sum(), bias)[0]))
    for expected, computed in zip(*found, strict=True):
        torch.testing.assert_close(computed, expected, rtol=0, atol=1e-4)


def test_a_memory_reads_them_token_by_token():
    q, k, v = inputs(torch.float32, 30)
    given_options = options(torch.float32, n=30)
    pattern, bias, cap = parse("causal(window(9) | sinks(2))"), given_options["bias"], given_options["softcap"]
    expected = gated_attention(q, k, v, pattern, bias=bias, softcap=cap)
    for memory in (
        Memory(presets.ideal(), capacity=12, sinks=2),
        Memory(presets.ideal(), capacity=30, key_scale="channel"),
    ):
        rows, steps = AnalogMemory(memory), []
        for i in range(30):
            here = slice(i, i + 1)
            rows.append(k[:, :, here], v[:, :, here])
            steps.append(rows.read(q[:, :, here], pattern, bias=bias[:, :, here, : i + 1], softcap=cap)[0])
        if memory.key_scale == "row":
            torch.testing.assert_close(torch.cat(steps, 2), expected, rtol=0, atol=1e-4)
        assert steps[0].shape == (2, HEADS, 1, VALUE_SIZE)


def test_counts_follow_both_widths_and_what_is_done_to_scores():
    q, k, v = inputs(torch.float32, 40)
    hardware = dataclasses.replace(presets.ideal(), tile=Tile(rows=64, cols=4))
    totals = []
    for given_options in ({}, options(torch.float32, n=40)):
        with Ledger() as ledger:
            gated_attention(q, k, v, Dense(), hardware=hardware, **given_options)
        totals.append(ledger.totals())
    pairs, queries = 2 * HEADS * 40 * 40, 2 * HEADS * 40
    for counts in totals:
        assert counts["attended_pairs"] == pairs
        assert counts["query_drives"] == queries * SIZE
        assert counts["row_activations"] == 2 * pairs  # 5 dimensions of a value lie across two tiles of 4 columns
        assert counts["adc_conversions"] == 2 * pairs + queries * VALUE_SIZE
        assert counts["row_writes"] == 2 * KV_HEADS * 40 * (2 + 2)
        assert counts["cell_macs"] == pairs * (SIZE + VALUE_SIZE) * hardware.tile.pairs
    assert totals[1]["special_functions"] - totals[0]["special_functions"] == pairs + queries  # a tanh, and a sink's
    assert totals[1]["digital_macs"] - totals[0]["digital_macs"] == pairs


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ({"bias": torch.zeros(2, 3, N, N)}, r"bias torch.float32 \[2, 3, 150, 150\] does not fit"),
        ({"softcap": 0.0}, "softcap 0.0 is not usable: give a positive number"),
        ({"sinks": torch.zeros(3)}, r"sinks \[3\] do not fit: give a score for each of 4 heads"),
        ({"softcap": 1.0, "impl": "flex"}, "impl 'flex' cannot have soft caps"),
    ],
)
def test_what_does_not_fit_is_refused(option, message):
    with pytest.raises(InputError, match=message):
        gated_attention(*inputs(torch.float32), Dense(), **option)


def test_a_pattern_of_averages_and_an_analog_line_are_refused():
    q, k, _ = inputs(torch.float32, 8)
    rows = AnalogMemory(Memory(presets.ideal(), capacity=8, activation=Saturating()))
    rows.append(k, k)
    with pytest.raises(InputError, match="drives values with its scores as they are, never in digital"):
        rows.read(q, Dense().causal(), softcap=1.0)
    with pytest.raises(InputError, match="cannot have soft caps or biases of scores"):
        gated_attention(q, k, k, parse("hierarchical(16, 2)"), softcap=1.0)


def test_given_pairs_are_the_masks():
    pairs = torch.rand(2, HEADS, 6, 9, generator=torch.Generator().manual_seed(1)) < 0.5
    pattern = given(pairs, first=3)
    position = torch.meshgrid(torch.arange(3, 9), torch.arange(9), indexing="ij")
    for b in range(2):
        for h in range(HEADS):
            own = pattern.sequence(b).head(h)
            assert torch.equal(own.allowed(*position), pairs[b, h])
            indptr, indices = own.rows(6, 9, 3)
            assert indptr[-1] == pairs[b, h].sum()
            assert torch.equal(indices, pairs[b, h].nonzero()[:, 1])
    assert given(pairs[:1, :1]) == given(pairs[:1, :1].expand(3, HEADS, -1, -1))  # what is alike is shared
    assert isinstance(given(pairs[:1]), PerHead)


def test_keys_behind_others_are_attended_as_where_they_stand():
    pattern = parse("causal(window(5) | sinks(4))")
    moved, whole = behind(pattern, 2), pattern.to_dense(20)
    assert torch.equal(moved.to_dense(18), whole[2:, 2:])
    position = torch.meshgrid(torch.arange(18), torch.arange(18), indexing="ij")
    assert torch.equal(moved.allowed(*position), whole[2:, 2:])
    assert behind(pattern, 0) is pattern
    assert moved.is_causal
