import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attention import (
    AnalogMemory,
    Dense,
    LocalWindow,
    Memory,
    PerHead,
    Protected,
    Saturating,
    Sinks,
    Softmax,
    TopK,
    count,
    gated_attention,
)
from attention.memory.layout import Layout, causal_reach
from attention.patterns.held import Beyond, Present
from attention.patterns.text import parse
from crossbar import Ledger, presets
from crossbar.devices import PCM, GainCell, Measured
from crossbar.errors import InputError
from crossbar.hardware import CellNoise, Tile, WriteVerify

B, H, KV, N, D = 2, 4, 2, 40, 8
WINDOW = (LocalWindow(12) | Sinks(3)).causal()
IDEAL = dataclasses.replace(presets.ideal(), tile=Tile(rows=5, cols=8))
STEPS = {"at once": [N], "one by one": [1] * N, "in pieces": [7, 1, 1, 20, 3, 8]}


def draw(seed=0, n=N):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(B, heads, n, D, generator=generator) for heads in (H, KV, KV)]


def run(memory, q, k, v, pattern, steps):
    outputs, first = [], 0
    for n in steps:
        here = slice(first, first + n)
        memory.append(k[:, :, here], v[:, :, here])
        outputs.append(memory.read(q[:, :, here], pattern)[0])
        first += n
    return torch.cat(outputs, 2)


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
    tiles = sum(len(set(memory.layout.tile(keys).tolist())) for keys in keys_of(WINDOW))
    assert totals["adc_conversions"] == pairs + B * H * D * tiles
    report = memory.report()
    assert (report.held, report.evicted, report.lost_pairs, report.tiles) == (15, 25, 0, 3)
    assert int(memory.writes.sum()) == N
    assert report.most_writes == 4  # 37 tokens through 12 rows


def keys_of(pattern):
    indptr, indices = pattern.rows(N)
    return [indices[a:b] for a, b in itertools.pairwise(indptr.tolist())]


@pytest.mark.parametrize("name", ["pcm", "hermes", "reram", "gain_cell"])
def test_appending_one_by_one_writes_the_rows_of_appending_at_once(name):
    _, k, v = draw(n=70)
    hardware = presets.get(name)
    memories = [AnalogMemory(Memory(hardware, capacity=70, seed=3)) for _ in range(2)]
    memories[0].append(k, v)
    for n in range(70):
        memories[1].append(k[:, :, n : n + 1], v[:, :, n : n + 1])
    for role in ("keys", "values"):
        whole, single = (getattr(memory, role).rows for memory in memories)
        assert whole.state.keys() == single.state.keys()
        for state in whole.state:
            assert torch.equal(whole.state[state][:, :, :, :70], single.state[state][:, :, :, :70])
    other = AnalogMemory(Memory(hardware, capacity=70, seed=4))
    other.append(k, v)
    if name != "gain_cell":  # its writes have no published deviation
        assert not torch.equal(other.keys.rows.state["programmed" if name != "reram" else "error"],
                               memories[0].keys.rows.state["programmed" if name != "reram" else "error"])  # fmt: skip


def test_each_row_leaks_from_its_own_write_on():
    _, k, v = draw()
    hardware = dataclasses.replace(IDEAL, device=GainCell(tau=1.0, levels=2**16))
    memory = AnalogMemory(Memory(hardware, capacity=N, token_seconds=0.1))
    memory.append(k, torch.ones_like(v))
    memory.age(0.5)
    q = torch.zeros(B, H, 1, D)
    for n in (1, 4):
        output = memory.read(q, LocalWindow(n).causal())[0]
        expected = torch.exp(-(0.5 + 0.1 * torch.arange(n))).mean()  # equal scores: the mean of what is left of 1
        torch.testing.assert_close(output, expected.expand_as(output), rtol=1e-4, atol=0)


def test_drift_of_rows_written_apart_is_that_of_the_device_at_each_age():
    device = PCM(prog_noise_scale=0.0, read_noise_scale=0.0)
    memory = AnalogMemory(Memory(dataclasses.replace(IDEAL, device=device), capacity=8, token_seconds=3600.0))
    _, k, v = draw(n=8)
    memory.append(k, v)
    rows = memory.keys.rows.take(torch.arange(8))
    found = memory.keys.read(rows, memory.now, lambda: torch.zeros(()))
    for n in range(8):
        age = 3600.0 * (7 - n)
        cells = device.drifted({name: state[:, :, :, n] for name, state in rows.state.items()}, age)
        torch.testing.assert_close(found.digits[:, :, n], (cells[0] - cells[1]) / 25.0, rtol=1e-4, atol=1e-6)


def test_a_device_that_knows_one_time_for_all_cells_is_asked_for_each_age():
    from crossbar import trajectory

    device = GainCell(tau=1.0)
    state = {"programmed": torch.rand(2, 5, 3)}
    ages = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0], dtype=torch.float64)[:, None]
    each = trajectory.aged(device, state, ages, None)
    torch.testing.assert_close(each, state["programmed"] * torch.exp(-ages).float())

    class Plain:
        kind, g_max = "plain", 25.0
        program = device.program

        def drifted(self, state, seconds):
            return device.drifted(state, float(seconds))

        def fluctuation(self, state, drifted, seconds):
            return torch.full_like(drifted, seconds)

    z = torch.randn(2, 5, 3).abs()
    found = trajectory.aged(Plain(), state, ages, lambda: z)
    torch.testing.assert_close(found, each + ages.float() * z)


def test_the_fluctuation_of_a_row_depends_on_the_time_alone():
    _, k, v = draw()
    hardware = dataclasses.replace(presets.pcm(), dac=None, adc=None, output_noise=0.0)

    def found(pattern, age=0.0):
        memory = AnalogMemory(Memory(hardware, capacity=N))
        memory.append(k, v)
        memory.age(age)
        positions = pattern.rows(1, N, N - 1).indices
        rows = memory._gathered(positions)[0]
        z = lambda: memory._fluctuations("keys", positions, rows.state["programmed"])  # noqa: E731
        return memory.keys.read(rows, memory.now, z).digits

    near, wide = found(LocalWindow(5).causal()), found(LocalWindow(20).causal())
    assert torch.equal(near, wide[:, :, -5:])
    assert not torch.equal(near, found(LocalWindow(5).causal(), 1e-6))


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


def test_expired_rows_are_counted():
    q, k, v = draw()
    device = GainCell(tau=1.0, levels=8)
    assert device.retention == pytest.approx(2.639, abs=1e-3)  # ln 14
    memory = AnalogMemory(Memory(dataclasses.replace(IDEAL, device=device), capacity=N, token_seconds=1.0))
    memory.append(k, v)
    with Ledger() as ledger:
        memory.read(q[:, :, -1:], LocalWindow(10).causal())
    assert memory.report().expired_reads == 7  # of ages 0 to 9 s, those above 2.6 s
    assert ledger.totals()["expired_row_reads"] == 7 * B * KV


@pytest.mark.parametrize("protected", [Protected(3, 4), Protected(0, 9), Protected(2, 5, by="pairs", copies=3)])
def test_protection_changes_nothing_where_rows_are_exact(protected):
    q, k, v = draw()
    for steps in STEPS.values():
        memory = AnalogMemory(Memory(IDEAL, capacity=15, sinks=3, protected=protected))
        found = run(memory, q, k, v, WINDOW, steps)
        torch.testing.assert_close(found, gated_attention(q, k, v, WINDOW), rtol=0, atol=2e-6)


def test_protected_tokens_are_read_from_the_better_memory():
    q, k, v = draw()
    exact = gated_attention(q, k, v, WINDOW)
    error = {}
    better = {"pairs": Protected(3, 6, by="pairs", copies=8), "digital": Protected(3, 6), "all": Protected(3, 12)}
    for name, protected in {"none": None, **better}.items():
        memory = AnalogMemory(Memory(presets.pcm(), capacity=N, protected=protected))
        with Ledger() as ledger:
            found = run(memory, q, k, v, WINDOW, [N])
        error[name] = float((found - exact).std())
        if name == "digital":
            near = (LocalWindow(6) | Sinks(3)).causal() & WINDOW
            pairs, whole = (B * H * int(p.rows(N).indptr[-1]) for p in (near, WINDOW))
            counts = {layer: {c.name: n for c, n in found.items()} for layer, found in ledger.by_layer.items()}
            assert counts["memory.protected"]["digital_macs"] == 2 * D * pairs
            assert counts["memory"]["row_activations"] == whole - pairs
    assert error["all"] < 1e-6
    assert error["digital"] < 0.8 * error["none"]
    assert error["pairs"] < 0.9 * error["none"]


@pytest.mark.parametrize(("keys", "values"), [("row", "row"), ("channel", "row"), ("head", "head")])
def test_exact_rows_are_exact_under_every_scale(keys, values):
    q, k, v = draw()
    memory = AnalogMemory(Memory(IDEAL, capacity=N, key_scale=keys, value_scale=values))
    found = run(memory, q, k, v, WINDOW, [N])
    torch.testing.assert_close(found, gated_attention(q, k, v, WINDOW), rtol=0, atol=2e-6)


def test_a_fixed_scale_clips_what_comes_later_and_says_so():
    _, k, v = draw()
    memory = AnalogMemory(Memory(IDEAL, capacity=N, key_scale="head", value_scale="head"))
    memory.append(k[:, :, :4], v[:, :, :4])
    largest = k[:, :, :4].abs().amax((0, 2, 3), keepdim=True)
    memory.append(3 * k[:, :, 4:], v[:, :, 4:])
    assert memory.keys.clipped == int((3 * k[:, :, 4:].abs() > largest).sum()) > 0
    assert memory.report().clipped == memory.keys.clipped + memory.values.clipped


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


def test_a_wall_clock_gives_the_ages():
    _, k, v = draw()
    clock = iter([1.0, 2.0, 5.0])
    device = GainCell(tau=1.0, levels=2**16)
    memory = AnalogMemory(Memory(dataclasses.replace(IDEAL, device=device), capacity=4, clock=lambda: next(clock)))
    for _ in range(2):
        memory.append(k[:, :, :1], torch.ones_like(v[:, :, :1]))
    output = memory.read(torch.zeros(B, H, 1, D), LocalWindow(2).causal())[0]
    expected = torch.exp(-torch.tensor([4.0, 3.0])).mean()
    torch.testing.assert_close(output, expected.expand_as(output), rtol=1e-4, atol=0)
    with pytest.raises(InputError, match="goes by its clock"):
        memory.age(1.0)


def test_the_same_seed_gives_the_same_reads_and_a_reset_repeats_them():
    q, k, v = draw()

    def found(memory):
        memory.append(k, v)
        return [memory.read(q, WINDOW)[0] for _ in range(2)]

    memory = AnalogMemory(Memory(presets.pcm(), capacity=N))
    first = found(memory)
    assert not torch.equal(*first)  # output noise
    memory.reset()
    again, other = found(memory), found(AnalogMemory(Memory(presets.pcm(), capacity=N), stream=(2,)))
    assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    assert not torch.equal(first[0], other[0])


def test_white_noise_of_rows_is_that_of_their_cells():
    _, k, v = draw()
    hardware = dataclasses.replace(IDEAL, read_noise=CellNoise(constant=0.5, relative=0.1))
    memory = AnalogMemory(Memory(hardware, capacity=N))
    memory.append(k, v)
    rows = memory.keys.rows.take(torch.arange(N))
    cells = rows.state["programmed"]
    expected = (0.5**2 + (0.1 * cells) ** 2).sum(0) / 25.0**2
    torch.testing.assert_close(memory.keys.read(rows, 0.0, lambda: cells).variance, expected)


# What becomes of scores


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


# Where tokens stand


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 9), st.integers(0, 12), st.sampled_from(["sequential", "striped"]))
def test_tokens_held_together_have_rows_of_their_own(capacity, rows, sinks, order):
    sinks = min(sinks, capacity - 1)
    layout = Layout(capacity, rows, sinks, order)
    for last in (0, capacity - 1, capacity, 3 * capacity):
        held = layout.held().rows(1, last + 1, last).indices
        assert len(held) == min(last + 1, capacity)
        assert len(set(layout.slot(held).tolist())) == len(held)
        placement = layout.placement(held)  # refuses two tokens on one line
        assert int(placement.tile.max()) < layout.tiles
        assert int(placement.line.max()) < rows


def test_counts_are_those_of_the_events_that_the_layout_makes():
    q, k, v = draw()
    memory = AnalogMemory(Memory(IDEAL, capacity=N))
    with Ledger() as ledger:
        run(memory, q, k, v, WINDOW, [N])
    expected = B * count(WINDOW, N, head_dim=D, heads=H, rows=5, columns=8)
    totals = ledger.totals()
    assert totals["adc_conversions"] == expected.score_conversions + expected.value_conversions
    assert totals["dac_conversions"] == expected.query_drives + expected.value_row_drives


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("family", [Beyond(3, 5), Beyond(0, 0), Beyond(9, 1), Present(2, 7), Present(0, 3)], ids=repr)
def test_spans_and_pairs_of_held_keys_agree(family, causal):
    pattern, n = family.causal() if causal else family, 20
    i, j = torch.meshgrid(torch.arange(n), torch.arange(n), indexing="ij")
    assert torch.equal(pattern.to_dense(n), pattern.allowed(i, j))
    if isinstance(family, Beyond):
        near = (i - j).abs() < family.recent
        expected = (j >= family.sinks) & ~near
        assert torch.equal(pattern.to_dense(n), expected & (j <= i) if causal else expected)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("window(256) | sinks(4)", (256, 4)),
        ("dilated(64, 4) | window(8)", (64, 0)),
        ("dense", None),
        ("strided(8) | sinks(1)", None),
    ],
)
def test_what_a_pattern_needs(text, expected):
    assert causal_reach(parse(text)) == expected


# Refusals


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 0}, "memory capacity = 0"),
        ({"sinks": -1}, "memory sinks = -1"),
        ({"eviction": "oldest"}, "memory eviction = 'oldest' is not allowed: choose refuse, ring"),
        ({"placement": "random"}, "memory placement = 'random'"),
        ({"key_scale": "tensor"}, "memory key_scale = 'tensor'"),
        ({"value_scale": "channel"}, "memory value_scale = 'channel' is not allowed: choose row, head"),
        ({"token_seconds": 1.0, "clock": lambda: 0.0}, "give one of them"),
        ({"hardware": "pcm"}, "is not a Hardware"),
    ],
)
def test_impossible_descriptions_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        Memory(**{"hardware": IDEAL, **change})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": PCM(correlated=True)}, "correlated is not supported"),
        ({"verify": WriteVerify()}, "field verify is not supported"),
        ({"tile": Tile(slices=2)}, "tile.slices is not supported"),
    ],
)
def test_hardware_that_a_memory_cannot_have_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        AnalogMemory(Memory(dataclasses.replace(presets.pcm(), **change), capacity=4))


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


def test_a_measured_device_holds_tokens():
    _, k, v = draw()
    table = {"target_us": (0.0, 25.0), "mean_us": (0.0, 25.0), "std_us": (0.0, 0.0)}
    device = Measured(**table, drift_mean=(0.1, 0.1), drift_std=(0.0, 0.0))
    memory = AnalogMemory(Memory(dataclasses.replace(IDEAL, device=device), capacity=N))
    memory.append(k, torch.ones_like(v))
    memory.age(180.0)
    output = memory.read(torch.zeros(B, H, 1, D), WINDOW)[0]
    torch.testing.assert_close(output, torch.full_like(output, 10.0**-0.1), rtol=1e-5, atol=0)
