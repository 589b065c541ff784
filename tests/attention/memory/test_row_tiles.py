"""Cells of keys and values: written errors, drift and leak at the age of each row, noise, scales."""

import dataclasses

import pytest
import torch

from attention import AnalogMemory, LocalWindow, Memory, gated_attention
from attention.memory.open_rows import open_rows
from crossbar import Ledger, presets
from crossbar.devices import PCM, GainCell, Measured
from crossbar.errors import InputError
from crossbar.hardware import CellNoise, Tile, WriteVerify
from tests.attention.memory.cases import IDEAL, KV, WINDOW, B, D, H, N, draw, run


def read(memory, pattern):
    """The rows of keys that the last token opens, as they read now."""
    opened = open_rows(pattern, 1, memory.tokens, torch.device("cpu"), memory.addresses)
    return memory.keys.read(memory.keys.rows, opened.slots, memory.now, opened.numbers(("keys", memory.now)))


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
    digits = read(memory, LocalWindow(8).causal()).digits
    for n in range(8):
        age = 3600.0 * (7 - n)
        cells = device.drifted({name: state[:, :, :, n] for name, state in memory.keys.rows.state.items()}, age)
        torch.testing.assert_close(digits[:, :, n], (cells[0] - cells[1]) / 25.0, rtol=1e-4, atol=1e-6)


def test_a_device_that_knows_one_time_for_all_cells_is_asked_for_each_age():
    from crossbar.tiles import ageing

    device = GainCell(tau=1.0)
    state = {"programmed": torch.rand(2, 5, 3)}
    ages = torch.tensor([0.0, 1.0, 0.5, 1.0, 0.0], dtype=torch.float64)[:, None]
    each = ageing.aged(device, state, ages, None)
    torch.testing.assert_close(each, state["programmed"] * torch.exp(-ages).float())

    class Plain:
        kind, g_max = "plain", 25.0
        program = device.program

        def drifted(self, state, seconds):
            return device.drifted(state, float(seconds))

        def fluctuation(self, state, drifted, seconds):
            return torch.full_like(drifted, seconds)

    z = torch.randn(2, 5, 3).abs()
    found = ageing.aged(Plain(), state, ages, lambda: z)
    torch.testing.assert_close(found, each + ages.float() * z)


def test_the_fluctuation_of_a_row_depends_on_the_time_alone():
    _, k, v = draw()
    hardware = dataclasses.replace(presets.pcm(), dac=None, adc=None, output_noise=0.0)

    def found(pattern, age=0.0):
        memory = AnalogMemory(Memory(hardware, capacity=N))
        memory.append(k, v)
        memory.age(age)
        return read(memory, pattern).digits

    near, wide = found(LocalWindow(5).causal()), found(LocalWindow(20).causal())
    assert torch.equal(near, wide[:, :, -5:])
    assert not torch.equal(near, found(LocalWindow(5).causal(), 1e-6))


@pytest.mark.parametrize("pairs", [1, 2])
@pytest.mark.parametrize("name", ["pcm", "hermes", "gain_cell"])
def test_float64_rows_which_have_no_kernel_read_the_same(name, pairs):
    _, k, v = draw()
    hardware = presets.get(name)
    hardware = dataclasses.replace(hardware, tile=Tile(rows=7, pairs=pairs), read_noise=CellNoise(relative=0.1))
    found = []
    for dtype in (torch.float32, torch.float64):
        memory = AnalogMemory(Memory(hardware, capacity=N, token_seconds=1e-4))
        memory.append(k.to(dtype), v.to(dtype))
        memory.age(1e-3)
        found.append(read(memory, WINDOW))
    torch.testing.assert_close(found[0].digits.double(), found[1].digits, rtol=0, atol=1e-5)
    torch.testing.assert_close(found[0].variance.double(), found[1].variance, rtol=1e-3, atol=1e-8)


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
    cells = memory.keys.rows.state["programmed"]
    expected = (0.5**2 + (0.1 * cells) ** 2).sum(0) / 25.0**2
    torch.testing.assert_close(read(memory, LocalWindow(N).causal()).variance, expected)


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


def test_a_measured_device_holds_tokens():
    _, k, v = draw()
    table = {"target_us": (0.0, 25.0), "mean_us": (0.0, 25.0), "std_us": (0.0, 0.0)}
    device = Measured(**table, drift_mean=(0.1, 0.1), drift_std=(0.0, 0.0))
    memory = AnalogMemory(Memory(dataclasses.replace(IDEAL, device=device), capacity=N))
    memory.append(k, torch.ones_like(v))
    memory.age(180.0)
    output = memory.read(torch.zeros(B, H, 1, D), WINDOW)[0]
    torch.testing.assert_close(output, torch.full_like(output, 10.0**-0.1), rtol=1e-5, atol=0)


@dataclasses.dataclass(frozen=True)
class Redrawn:
    """A device whose error is drawn anew at each time."""

    kind = "redrawn"
    g_max: float = 25.0

    def write(self, target, seed):
        return {"target": target}

    def read(self, state, seconds, seed, noise=True):
        return state["target"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"device": PCM(correlated=True)}, "correlated is not supported"),
        (
            {"verify": WriteVerify()},
            r"field verify = WriteVerify\(.+\) is not supported for keys and values that are appended: give None$",
        ),
        ({"tile": Tile(slices=2)}, "tile.slices = 2 is not supported"),
        (
            {"device": Redrawn()},
            r"field device = Redrawn\(.*\) is not supported for keys and values that are appended: give a device whose "
            "errors are not drawn anew at each time$",
        ),
    ],
)
def test_hardware_that_a_memory_cannot_have_is_refused(change, message):
    with pytest.raises(InputError, match=message):
        AnalogMemory(Memory(dataclasses.replace(presets.pcm(), **change), capacity=4))
