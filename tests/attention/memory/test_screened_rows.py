"""Rows of an analog memory that choose which of them open."""

import dataclasses

import pytest
import torch

from attention import AnalogMemory, Memory, Protected, gated_attention, parse
from crossbar import Ledger, Tile, presets
from crossbar.errors import InputError

IDEAL = dataclasses.replace(presets.ideal(), tile=Tile(16, 16))
PCM = dataclasses.replace(presets.pcm(), tile=Tile(16, 16))
N = 24
TEXTS = [
    "screened(7) | window(3)",
    "screened(2, bits=4, per=tile) | sinks(2)",
    "spiking(1, bits=5) | window(3)",
    "heads(screened(3), window(4), dense, spiking(1))",
]


def draw(n=N):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, n, 8), (2, 2, n, 8), (2, 2, n, 8))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


def token_by_token(memory, q, k, v, pattern):
    outputs = []
    for i in range(q.shape[2]):
        memory.append(k[:, :, i : i + 1], v[:, :, i : i + 1])
        outputs.append(memory.read(q[:, :, i : i + 1], pattern)[0])
    return torch.cat(outputs, 2)


@pytest.mark.parametrize("options", [{}, {"protected": Protected(2, 5)}, {"placement": "striped"}], ids=str)
@pytest.mark.parametrize("text", TEXTS)
def test_a_memory_chooses_as_attention_does_at_once_and_token_by_token(text, options):
    pattern, (q, k, v) = parse(text).causal(), draw()
    memory = AnalogMemory(Memory(IDEAL, capacity=32, **options))
    memory.append(k, v)
    whole = memory.read(q, pattern)[0]
    if not (options.get("placement") and "tile" in text):  # whose tiles hold other rows
        torch.testing.assert_close(whole, gated_attention(q, k, v, pattern, hardware=IDEAL), rtol=0, atol=1e-12)
    steps = token_by_token(AnalogMemory(Memory(IDEAL, capacity=32, **options)), q, k, v, pattern)
    torch.testing.assert_close(whole, steps, rtol=0, atol=1e-12)


def test_rows_that_were_given_up_do_not_compete():
    pattern, (q, k, v) = parse("causal(screened(5))"), draw()  # ties would go by row, which is not the order of tokens
    memory = Memory(IDEAL, capacity=12, sinks=3)
    at_once = AnalogMemory(memory)
    at_once.append(k, v)
    found = at_once.read(q, pattern)[0]
    steps = token_by_token(AnalogMemory(memory), q, k, v, pattern)
    torch.testing.assert_close(found, steps, rtol=0, atol=1e-12)
    assert at_once.report().lost_pairs == 0
    left = [*range(3), *range(15, 24)]
    last = gated_attention(q[:, :, -1:], k[:, :, left], v[:, :, left], pattern, offset=11, hardware=IDEAL)
    torch.testing.assert_close(found[:, :, -1:], last, rtol=0, atol=1e-12)


def test_a_digital_second_stage_is_exact_and_priced_as_one():
    """Rows choose; a buffer of all tokens has what is read."""
    pattern, (q, k, v) = parse("causal(screened(5, bits=4))"), draw()
    memory = AnalogMemory(Memory(PCM, capacity=N, protected=Protected(sinks=1, recent=N)))
    memory.append(k, v)
    with Ledger() as ledger:
        found = memory.read(q, pattern)[0]
    totals = ledger.totals()
    assert totals["row_spikes"] == totals["digital_pairs"] == 2 * 4 * (15 + 19 * 5)
    assert totals.get("attended_pairs", 0) == totals.get("adc_conversions", 0) == 0
    assert totals["screened_pairs"] == 2 * 4 * N * (N + 1) // 2
    assert totals["sram_bytes"] > 0
    on_rows = AnalogMemory(Memory(PCM, capacity=N))
    on_rows.append(k, v)
    with Ledger() as ledger:
        noisy = on_rows.read(q, pattern)[0]
    counts = ledger.totals()
    assert counts["attended_pairs"] == counts["row_spikes"] == totals["row_spikes"]
    assert counts["comparisons"] == totals["comparisons"]
    assert not torch.allclose(found, noisy, atol=1e-3)


def test_padding_has_no_row():
    pattern, (q, k, v) = parse("causal(screened(5, bits=4))"), draw()
    mask = torch.ones(2, N, dtype=torch.bool)
    mask[1, 20:] = False
    memory = AnalogMemory(Memory(IDEAL, capacity=N))
    memory.append(k, v, padding=mask)
    with Ledger() as ledger:
        found = memory.read(q, pattern, mask=mask)[0]
    expected = gated_attention(q, k, v, pattern, mask=mask, hardware=IDEAL)
    torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-12)
    torch.testing.assert_close(found[1, :, :20], expected[1, :, :20], rtol=0, atol=1e-12)
    assert ledger.totals()["screened_pairs"] == 4 * (N * (N + 1) // 2 + 20 * 21 // 2)


def test_choices_by_numbers_of_keys_are_refused():
    q, k, v = draw()
    memory = AnalogMemory(Memory(IDEAL, capacity=N))
    memory.append(k, v)
    with pytest.raises(InputError, match="give a causal one that does not choose by digital keys"):
        memory.read(q, parse("causal(screened(3) | topk(2))"))
