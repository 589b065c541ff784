"""Rows of keys and values: written one by one, read while the ring turns, evicted, counted."""

import dataclasses
import itertools

import pytest
import torch

from attention import AnalogMemory, Dense, LocalWindow, Memory, PerHead, Sinks, TopK, count, gated_attention
from crossbar import CellNoise, Ledger, Tile, presets, using_backend
from crossbar.errors import InputError
from crossbar.native import gpu
from tests.attention.memory.cases import IDEAL, KV, STEPS, WINDOW, B, D, H, N, draw, run


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
@pytest.mark.parametrize("order", ["sequential", "striped"])
def test_ideal_rows_give_digital_attention_while_the_ring_turns(steps, order):
    q, k, v = draw()
    memory = AnalogMemory(Memory(IDEAL, capacity=15, sinks=3, placement=order))
    with Ledger() as ledger:
        found = run(memory, q, k, v, WINDOW, steps)
    torch.testing.assert_close(found, gated_attention(q, k, v, WINDOW), rtol=0, atol=2e-6)
    totals, pairs = ledger.totals(), B * H * int(WINDOW.rows(N).indptr[-1])
    assert totals["row_writes"] == 2 * B * KV * N
    assert totals["write_pulses"] == 2 * B * KV * N * D * 2
    assert totals["row_activations"] == totals["column_activations"] == pairs
    tiles = sum(len(set(memory.addresses.tile(keys).tolist())) for keys in keys_of(WINDOW))
    assert totals["adc_conversions"] == pairs + B * H * D * tiles
    report = memory.report()
    assert (report.held, report.evicted, report.lost_pairs, report.tiles) == (15, 25, 0, 3)
    assert int(memory.writes.sum()) == N
    assert report.most_writes == 4  # 37 tokens through 12 rows


@pytest.mark.skipif(gpu.why_not() is not None, reason=f"no kernels here: {gpu.why_not()}")
def test_the_kernels_of_gpus_read_rows_of_any_age_in_their_places():
    hardware = dataclasses.replace(presets.pcm(), tile=Tile(9, 8), read_noise=CellNoise(0.3, 0.02))
    description = Memory(hardware, capacity=15, sinks=3, placement="striped", token_seconds=30.0, key_scale="channel")
    device = torch.device("cpu" if gpu.interpreted() else "cuda")
    found = []
    for backend in ("triton", "eager"):
        memory, (q, k, v) = AnalogMemory(description), [x[:1, :2].to(device) for x in draw(n=23)]
        with using_backend(backend):
            found.append(run(memory, q, k, v, PerHead([WINDOW, LocalWindow(5).causal()]), [21, 1, 1]))
    assert found[1].abs().mean() > 0.1
    off = (found[0] - found[1]).abs()
    assert off.max() < 0.1  # a conversion at a tie
    assert (off > 2e-6).float().mean() < 0.02


def keys_of(pattern):
    indptr, indices = pattern.rows(N)
    return [indices[a:b] for a, b in itertools.pairwise(indptr.tolist())]


@pytest.mark.parametrize("steps", STEPS.values(), ids=STEPS)
def test_what_is_evicted_is_passed_over_and_counted(steps):
    q, k, v = draw()
    dense = Dense().causal()
    memory = AnalogMemory(Memory(IDEAL, capacity=10, sinks=2))
    with Ledger() as ledger:
        found = run(memory, q, k, v, dense, steps)
    kept = (LocalWindow(8) | Sinks(2)).causal()
    torch.testing.assert_close(found, gated_attention(q, k, v, kept), rtol=0, atol=2e-6)
    lost = int(dense.rows(N).indptr[-1] - kept.rows(N).indptr[-1])
    assert memory.report().lost_pairs == ledger.totals()["lost_pairs"] == lost


def test_a_full_memory_refuses_until_tokens_are_evicted():
    q, k, v = draw()
    memory = AnalogMemory(Memory(IDEAL, capacity=10, sinks=2, eviction="refuse"))
    memory.append(k[:, :, :10], v[:, :, :10])
    before = memory.read(q[:, :, 9:10], Dense().causal())[0]
    with pytest.raises(InputError, match="10 token rows, which 1 more tokens behind 10 do not fit"):
        memory.append(k[:, :, 10:11], v[:, :, 10:11])
    assert torch.equal(memory.read(q[:, :, 9:10], Dense().causal())[0], before)
    memory.evict(6)
    memory.append(k[:, :, 10:14], v[:, :, 10:14])
    with pytest.raises(InputError, match="do not fit"):
        memory.append(k[:, :, 14:15], v[:, :, 14:15])
    found = memory.read(q[:, :, 13:14], Dense().causal())[0]
    kept = torch.tensor([0, 1, *range(6, 14)])
    expected = gated_attention(q[:, :, 13:14], k[:, :, kept], v[:, :, kept], Dense())
    torch.testing.assert_close(found, expected, rtol=0, atol=2e-6)


def test_heads_may_have_patterns_of_their_own():
    q, k, v = draw()
    pattern = PerHead([WINDOW, LocalWindow(5).causal(), WINDOW, Dense().causal()])
    memory = AnalogMemory(Memory(IDEAL, capacity=N))
    with Ledger() as ledger:
        found = run(memory, q, k, v, pattern, [N])
    torch.testing.assert_close(found, gated_attention(q, k, v, pattern), rtol=0, atol=2e-6)
    pairs = sum(int(pattern.head(h).rows(N).indptr[-1]) for h in range(H))
    assert ledger.totals()["row_activations"] == B * pairs


def test_padding_has_no_rows_and_is_not_read():
    q, k, v = draw()
    real = torch.ones(B, N, dtype=torch.bool)
    real[1, :9] = False
    memory = AnalogMemory(Memory(IDEAL, capacity=N))
    with Ledger() as ledger:
        memory.append(k, v, padding=real)
        found = memory.read(q, Dense().causal(), mask=real)[0]
    torch.testing.assert_close(found, gated_attention(q, k, v, Dense().causal(), mask=real), rtol=0, atol=2e-6)
    assert ledger.totals()["row_writes"] == 2 * KV * int(real.sum())


def test_sequences_can_be_chosen_and_repeated():
    q, k, v = draw()
    memory = AnalogMemory(Memory(IDEAL, capacity=N))
    memory.append(k, v)
    order = torch.tensor([1, 0, 1])
    with Ledger() as ledger:
        memory.select(order)
    assert not ledger.totals()
    expected = gated_attention(q[order], k[order], v[order], WINDOW)
    torch.testing.assert_close(memory.read(q[order], WINDOW)[0], expected, rtol=0, atol=2e-6)
    memory.append(k[order][:, :, :1], v[order][:, :, :1])
    assert memory.batch == 3


def test_memory_taken_follows_the_capacity():
    _, k, v = draw()
    memory = AnalogMemory(Memory(IDEAL, capacity=12))
    sizes = []
    for n in range(N):
        memory.append(k[:, :, n : n + 1], v[:, :, n : n + 1])
        sizes.append(len(memory.keys.rows.at))
    assert sizes[0] == 5  # a tile
    assert sizes[10] == sizes[-1] == 12


def test_counts_are_those_of_the_events_that_the_layout_makes():
    q, k, v = draw()
    memory = AnalogMemory(Memory(IDEAL, capacity=N))
    with Ledger() as ledger:
        run(memory, q, k, v, WINDOW, [N])
    expected = B * count(WINDOW, N, head_dim=D, heads=H, rows=5, columns=8)
    totals = ledger.totals()
    assert totals["adc_conversions"] == expected.score_conversions + expected.value_conversions
    assert totals["dac_conversions"] == expected.query_drives + expected.value_row_drives


def test_reads_that_do_not_fit_are_refused():
    q, k, v = draw()
    memory = AnalogMemory(Memory(IDEAL, capacity=N))
    with pytest.raises(InputError, match="holds no tokens"):
        memory.read(q, WINDOW)
    memory.append(k, v)
    for pattern in (LocalWindow(3), TopK(4).causal()):
        with pytest.raises(InputError, match="cannot read a memory: give a causal one"):
            memory.read(q, pattern)
    with pytest.raises(InputError, match="cannot be read by q"):
        memory.read(q[:, :3], WINDOW)
    with pytest.raises(InputError, match="cannot take"):
        memory.append(k[:1], v[:1])
    with pytest.raises(InputError, match="capacity"):
        AnalogMemory(Memory(IDEAL))
    with pytest.raises(InputError, match="cannot evict before position 99"):
        memory.evict(99)
