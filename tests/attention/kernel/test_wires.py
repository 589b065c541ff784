"""Keys and values behind wires: each query opens rows of its own, and so has a circuit of its own."""

import dataclasses

import pytest
import torch

import attention.kernel.analog
import attention.kernel.chunks
import attention.kernel.wires
from attention import AnalogMemory, GlobalTokens, LocalWindow, Memory, PerHead, Protected, Sinks, TopK, gated_attention
from attention.kernel.analog import ReadNoise, attend_analog
from attention.kernel.analog_reference import analog_reference
from attention.kernel.blocks import Options
from attention.kernel.schedule import make
from attention.kernel.token_rows import write
from crossbar import CellNoise, Converter, InputError, Ledger, Tile, Wire, presets, transfer_matrix, using_backend
from tests.attention.kernel.test_analog import Constant, draw

N = 24
IDEAL = dataclasses.replace(presets.ideal(), tile=Tile(rows=12, cols=4))
PCM = dataclasses.replace(presets.pcm(), tile=Tile(rows=12, cols=4))
PATTERN = (LocalWindow(9) | Sinks(2)).causal()
WIRE = Wire(200.0, 120.0)
HARDWARE = {
    "separate": dataclasses.replace(IDEAL, wire=WIRE),
    "both ends, top": dataclasses.replace(
        IDEAL, tile=Tile(12, 4, encoding="balanced"), wire=Wire(200.0, 120.0, drive="both", sense="top")
    ),
    "interleaved": dataclasses.replace(
        IDEAL, tile=Tile(12, 4, pairs=2), wire=dataclasses.replace(WIRE, layout="interleaved")
    ),
    "pcm": dataclasses.replace(PCM, wire=WIRE, read_noise=CellNoise(0.2, 0.02)),
}


def exact(hardware):
    return dataclasses.replace(hardware, wire=dataclasses.replace(hardware.wire, solution="exact"))


def written(hardware, heads=4):
    q, k, v = draw(N, 6, heads=heads, kv_heads=heads // 2)
    return q, *(write(x, hardware, (0, role)) for x, role in ((k, "k"), (v, "v")))


def read(q, keys, values, hardware, pattern=PATTERN):
    work = make(pattern, q.shape[2], q.shape[2], tile=hardware.tile.rows)
    return attend_analog(q, keys, values, work, Options(0.3, None, 0.0, 0, True), hardware, ReadNoise((0,)))


def error(found, expected):
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", HARDWARE)
def test_the_exact_solve_equals_the_slow_transcription(name, monkeypatch):
    monkeypatch.setattr(attention.kernel.analog, "Stream", Constant)
    hardware = dataclasses.replace(HARDWARE[name], adc=None)
    pattern = LocalWindow(5) | GlobalTokens((0, 17)) if name == "separate" else PATTERN
    q, keys, values = written(hardware, heads=2)
    output, lse = read(q, keys, values, exact(hardware), pattern)
    variances = [None if rows.variance is None else rows.variance[0].numpy() for rows in (keys, values)]
    expected, expected_lse, _ = analog_reference(
        q[0].numpy(), keys.digits[0].numpy(), keys.scale[0, :, :, 0].numpy(), values.digits[0].numpy(),
        values.scale[0, :, :, 0].numpy(), pattern.to_dense(N).numpy(), 0.3, hardware, Constant.value, *variances,
        keys.cells[:, 0].numpy(), values.cells[:, 0].numpy(),
    )  # fmt: skip
    torch.testing.assert_close(output[0], torch.from_numpy(expected), rtol=0, atol=1e-8)
    torch.testing.assert_close(lse[0], torch.from_numpy(expected_lse), rtol=0, atol=1e-8)
    # The first order is 10 times nearer than ideal wires and more.
    first = read(q, keys, values, hardware, pattern)
    ideal = read(
        q, *(dataclasses.replace(rows, cells=None) for rows in (keys, values)),
        dataclasses.replace(hardware, wire=None), pattern,
    )  # fmt: skip
    for one, whole, none in zip(first, (output, lse), ideal, strict=True):
        assert 0 < 10 * error(one, whole) < error(none, whole)


@pytest.mark.parametrize("solution", ["first_order", "exact"])
def test_wires_of_almost_no_resistance_are_ideal_wires(solution):
    """Outputs, and gradients, which are those of ideal wires always."""
    hardware = dataclasses.replace(IDEAL, wire=Wire(1e-7, 1e-7, solution=solution))
    found = []
    for own in (hardware, dataclasses.replace(hardware, wire=None)):
        inputs = [x.requires_grad_() for x in draw(N, 6)]
        output, lse = gated_attention(*inputs, PATTERN, hardware=own, return_lse=True)
        found.append([output, lse, *torch.autograd.grad(output.square().sum() + lse.sum(), inputs)])
    for wired, ideal in zip(*found, strict=True):
        torch.testing.assert_close(wired, ideal, rtol=0, atol=1e-8)


def test_gradients_go_past_the_wires():
    """The values' gradient is that of the weights that came of the scores through wires, which sum to 1."""
    q, k, v = draw(N, 6)
    v.requires_grad_()
    grads = []
    for hardware in (IDEAL, HARDWARE["separate"]):
        output = gated_attention(q, k, v, PATTERN, hardware=hardware)
        grads += torch.autograd.grad(output.sum(), v)
        assert float(grads[-1].sum()) == pytest.approx(4 * N * 6, rel=1e-9)
    assert error(grads[1], grads[0]) > 0.01


def test_the_parts_of_the_work_do_not_matter(monkeypatch):
    hardware = HARDWARE["separate"]
    q, keys, values = written(hardware, heads=2)
    whole = read(q, keys, values, hardware)
    solved = read(q, keys, values, exact(hardware))
    monkeypatch.setattr(attention.kernel.chunks, "SCORES", 2**8)
    monkeypatch.setattr(attention.kernel.wires, "_SIZE", 40)
    monkeypatch.setattr(attention.kernel.wires, "_SOLVED", 500)
    for one, other in ((whole, read(q, keys, values, hardware)), (solved, read(q, keys, values, exact(hardware)))):
        for a, b in zip(one, other, strict=True):
            torch.testing.assert_close(a, b, rtol=0, atol=1e-12)


def test_padding_and_selections_close_rows():
    """What a mask or a selection leaves out loads no line."""
    hardware = HARDWARE["separate"]
    q, k, v = draw(N, 6)
    mask = torch.ones(1, N, dtype=torch.bool)
    mask[0, 20:] = False
    masked = gated_attention(q, k, v, PATTERN, mask=mask, hardware=hardware)[:, :, :20]
    shorter = gated_attention(q[:, :, :20], k[:, :, :20], v[:, :, :20], PATTERN, hardware=hardware)
    torch.testing.assert_close(masked, shorter, rtol=0, atol=1e-12)
    for pattern in (TopK(3), PerHead([PATTERN, LocalWindow(4), PATTERN, LocalWindow(4)])):
        found = gated_attention(q, k, v, pattern, hardware=hardware)
        whole = gated_attention(q, k, v, pattern, hardware=exact(hardware))
        assert 0 < error(found, whole) < 0.02


def test_any_backend_senses_what_comes_through_wires():
    q, keys, values = written(HARDWARE["pcm"], heads=2)
    with using_backend("eager"):
        eager = read(q, keys, values, HARDWARE["pcm"])
    with using_backend("naive"):
        naive = read(q, keys, values, HARDWARE["pcm"])
    for one, other in zip(eager, naive, strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-9)


def test_rows_that_do_not_know_their_cells_are_refused():
    q, keys, values = written(IDEAL)
    with pytest.raises(InputError, match=r"^rows without conductances have no circuit: give TokenRows\(cells=\.\.\.\)"):
        read(q, keys, values, HARDWARE["separate"])


def test_fewer_open_rows_lose_less():
    q, k, v = draw(48, 4)
    hardware = dataclasses.replace(IDEAL, tile=Tile(48, 4), wire=Wire(0.0, 100.0))
    lost = []
    for window in (4, 12, 48):
        pattern = LocalWindow(window).causal()
        ideal = gated_attention(q, k, v, pattern, hardware=dataclasses.replace(hardware, wire=None))
        lost.append(error(gated_attention(q, k, v, pattern, hardware=hardware)[:, :, 40:], ideal[:, :, 40:]))
    assert lost[0] < lost[1] < lost[2]


def test_a_ledger_counts_the_same():
    q, k, v = draw(N, 6)
    counts = []
    for wire in (None, WIRE):
        with Ledger() as ledger:
            gated_attention(q, k, v, PATTERN, hardware=dataclasses.replace(PCM, wire=wire))
        counts.append(ledger.to_dict())
    assert counts[0] == counts[1]


def by_hand(memory, q, opened, wire):
    """One query's output on the rows of tokens ``opened``, tile by tile."""
    tile, at = memory.hardware.tile, torch.tensor(opened)
    lines, numbers = memory.addresses.line(at), memory.addresses.tile(at)

    def seen(rows):
        cells = rows.rows.state["target"] if "target" in rows.rows.state else next(iter(rows.rows.state.values()))
        cells, scale = cells[:, 0, 0].double(), rows.rows.scale[0, 0, :, 0].double()
        slots = memory.addresses.slot(at)
        matrix = torch.empty(len(at), cells.shape[2], dtype=torch.float64)
        for number in numbers.unique():
            here = numbers == number
            planes = torch.zeros(2, tile.rows, cells.shape[2], dtype=torch.float64)
            planes[:, lines[here]] = cells[:, slots[here]]
            found = transfer_matrix(planes, wire.r_row, wire.r_col, sense=wire.sense, solver="reference")
            matrix[here] = ((found[0] - found[1]) / memory.hardware.device.g_max)[lines[here]]
        return matrix * scale[slots, None]

    weights = (seen(memory.keys) @ q[0, 0, 0] * 0.3).softmax(0)
    return weights @ seen(memory.values)


@pytest.mark.parametrize("placement", ["sequential", "striped"])
@pytest.mark.parametrize("wire", [WIRE, Wire(200.0, 120.0, sense="top")], ids=["bottom", "top"])
def test_a_memory_that_decodes_has_the_wires_of_its_rows(placement, wire):
    """A ring of 20 rows, in which tokens stand in another order than they came."""
    hardware = dataclasses.replace(IDEAL, tile=Tile(8, 8), wire=dataclasses.replace(wire, solution="exact"))
    q, k, v = draw(31, 6, heads=1, kv_heads=1)
    found = {}
    for name, own in (("exact", hardware), ("first", dataclasses.replace(hardware, wire=wire))):
        memory = AnalogMemory(Memory(own, capacity=20, sinks=2, placement=placement))
        for token in range(31):
            memory.append(k[:, :, token : token + 1], v[:, :, token : token + 1])
        found[name] = memory.read(q[:, :, -1:], (LocalWindow(12) | Sinks(2)).causal(), scale=0.3)[0][0, 0, 0]
    expected = by_hand(memory, q[:, :, -1:], [0, 1, *range(19, 31)], wire)
    torch.testing.assert_close(found["exact"], expected, rtol=0, atol=1e-8)
    assert 0 < error(found["first"], expected) < 0.02
    # All tokens at once, of which late ones take the rows of early ones: the same last row.
    memory = AnalogMemory(Memory(hardware, capacity=20, sinks=2, placement=placement))
    memory.append(k, v)
    whole = memory.read(q, (LocalWindow(12) | Sinks(2)).causal(), scale=0.3)[0]
    torch.testing.assert_close(whole[0, 0, -1], expected, rtol=0, atol=1e-8)


def test_a_memory_with_wires_has_heads_and_a_guard():
    hardware = dataclasses.replace(PCM, wire=WIRE, adc=Converter(bits=12))
    q, k, v = (x.float() for x in draw(24, 6))
    for own in (hardware, dataclasses.replace(hardware, wire=None)):
        memory = AnalogMemory(Memory(own, capacity=24, protected=Protected(sinks=1, recent=4, by="pairs")))
        memory.append(k, v)
        alike = memory.read(q, PATTERN)[0]
        memory.reset()
        memory.append(k, v)
        apart = memory.read(q, PerHead([PATTERN] * 4))[0]
        assert error(apart, alike) < 0.02
        assert alike.isfinite().all()
