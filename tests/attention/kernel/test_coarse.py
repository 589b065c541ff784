"""What comparators see of analog rows, and what choosing takes."""

import dataclasses
import math

import pytest
import torch

from attention import Controller, Dense, Placement, Screened, gated_attention, parse, platforms, recall
from attention.kernel.coarse import lines_of_rows
from attention.kernel.token_rows import TokenRows, write
from attention.patterns.screening import screen
from crossbar import Ledger, Tile, Wire, presets, price
from crossbar.circuit import reference
from crossbar.devices import span
from crossbar.hardware import CellNoise, Converter

IDEAL = dataclasses.replace(presets.ideal(), tile=Tile(16, 16))
PCM = dataclasses.replace(presets.pcm(), tile=Tile(16, 4))
N = 60


def draw(n=N, size=8, heads=4, kv_heads=2, batch=2):
    generator = torch.Generator().manual_seed(0)
    shapes = ((batch, heads, n, size), (batch, kv_heads, n, size), (batch, kv_heads, n, size))
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in shapes]


@pytest.mark.parametrize("rest", ["", " | window(3)", " & window(20)"])
def test_ideal_cells_and_full_bits_are_topk(rest):
    q, k, v = draw()
    screened, topk = (parse(f"causal({name}(7){rest})") for name in ("screened", "topk"))
    found = gated_attention(q, k, v, screened, hardware=IDEAL)
    torch.testing.assert_close(found, gated_attention(q, k, v, topk), rtol=0, atol=1e-12)
    every = gated_attention(q, k, v, parse(f"causal(screened({N}, bits=2))"), hardware=IDEAL)
    torch.testing.assert_close(every, gated_attention(q, k, v, Dense().causal()), rtol=0, atol=1e-12)


def test_a_line_is_its_cells_under_the_dac():
    q, k, _ = draw()
    for dac in (None, Converter(bits=4, range="per_token"), Converter(bits=5, full_scale=2.0)):
        quiet = dataclasses.replace(PCM, dac=dac, output_noise=0.0)
        rows = write(k, quiet, (0, "keys"))
        lines = lines_of_rows(q, rows, quiet, (0,), (0, "read"))
        assert lines.noise is None
        torch.testing.assert_close(lines.k, rows.digits * rows.scale)
        if dac is None:
            assert torch.equal(lines.q, q)
            continue
        full = q.abs().amax(-1, keepdim=True) if dac.range == "per_token" else torch.tensor(2.0)
        codes = (q / full * dac.levels).round().clamp(-dac.levels, dac.levels)
        torch.testing.assert_close(lines.q, codes * full / dac.levels, rtol=0, atol=1e-6)


def test_noise_of_lines_has_the_deviation_of_amplifiers_and_cells():
    q, k, _ = draw(200)
    noise = CellNoise(constant=0.3, relative=0.02)
    noisy = dataclasses.replace(PCM, output_noise=0.05, read_noise=noise, tile=Tile(16, 4))
    rows = write(k, noisy, (0, "keys"))
    lines = lines_of_rows(q, rows, noisy, (0,), (0, "read"))
    volts = lines.q / q.abs().amax(-1, keepdim=True)
    wide = [x.repeat_interleave(2, 1) for x in (rows.variance, rows.scale)]
    deviation = (2 * 0.05**2 + volts.square() @ wide[0].transpose(2, 3)).sqrt()  # 8 dimensions lie in two tiles
    deviation = deviation * wide[1].transpose(2, 3) * q.abs().amax(-1, keepdim=True)
    found = lines.noise(1, (0, 1, 2, 3), 20, 150, 0) / deviation[1, :, 20:150]
    count = found.numel()
    assert abs(float(found.mean())) < 4 / math.sqrt(count)
    assert abs(float(found.std()) - 1) < 4 / math.sqrt(2 * count)
    alone, among = lines.noise(1, (2,), 30, 40, 0), lines.noise(1, (0, 1, 2, 3), 20, 150, 0)[2:3, 10:20]
    torch.testing.assert_close(alone, among, rtol=1e-9, atol=1e-12)
    assert not torch.equal(lines.noise(1, (2,), 30, 40, 1), lines.noise(1, (2,), 30, 40, 0))


@pytest.mark.parametrize("solution", ["first_order", "exact"])
def test_wires_are_those_of_all_rows_open(solution):
    """Against the solved circuit of a tile whose rows are all open."""
    hardware = dataclasses.replace(IDEAL, tile=Tile(8, 4), wire=Wire(5.0, 5.0, solution=solution))
    q, k, _ = draw(14, 6, 1, 1, 1)
    rows = write(k, hardware, (0, "keys"))
    assert rows.cells is not None
    lines = lines_of_rows(q, rows, hardware, (0,), (0, "read"))
    wire = hardware.wire
    for first, last in ((0, 8), (8, 14)):
        for low, high in ((0, 4), (4, 6)):
            signed = torch.zeros(last - first, high - low, dtype=torch.float64)
            for plane, sign in zip(rows.cells, (1.0, -1.0), strict=True):
                cells = torch.zeros(8, high - low, dtype=torch.float64)
                cells[: last - first] = plane[0, 0, first:last, low:high]
                options = wire.r_row, wire.r_col, wire.drive, wire.sense
                matrix = torch.from_numpy(reference.solve(cells.numpy(), *_eye(8), *options)[0])
                signed += sign * matrix[: last - first]
            expected = signed / span(hardware.device)[1] * rows.scale[0, 0, first:last]
            ideal = k[0, 0, first:last, low:high]
            found = lines.k[0, 0, first:last, low:high]
            lost = (expected - ideal).abs().max()
            assert lost > 1e-5
            assert (found - expected).abs().max() < (1e-6 if solution == "exact" else 0.1) * lost


def _eye(rows):
    return (torch.eye(rows, dtype=torch.float64).numpy(),)


def test_age_and_errors_change_which_rows_open():
    q, k, _ = draw(200)
    pattern = Screened(20, bits=6).causal()
    shares = []
    for hardware, seconds in ((IDEAL, 0.0), (PCM, 0.0), (PCM, 3e7)):
        rows = write(k, hardware, (0, "keys"), seconds)
        chosen, _ = screen(pattern, lines_of_rows(q, rows, hardware, (0,), (0, "read")))
        shares.append(float(recall(chosen, q, k).mean()))
    assert shares[0] > 0.97
    assert shares[0] > shares[1] > shares[2] > 0.3
    rows = TokenRows(k, torch.ones(2, 2, 200, 1, dtype=torch.float64))
    exact, _ = screen(Screened(20).causal(), lines_of_rows(q, rows, IDEAL, (0,), (0, "read")))
    assert float(recall(exact, q, k).min()) == 1


def test_counts_by_hand():
    """5 causal tokens in tiles of 2 rows and 4 columns, D = 6: two tiles across."""
    hardware = dataclasses.replace(IDEAL, tile=Tile(2, 4), dac=Converter(bits=7, range="per_token"))
    key = torch.tensor([4.0, 3.0, 2.0, 1.0, 0.0])
    k = torch.nn.functional.pad(key[None, None, :, None], (0, 5))
    k[..., 5] = 1e-3
    q = torch.zeros(1, 1, 5, 6)
    q[..., 0] = 1.0
    with Ledger() as ledger:
        gated_attention(q, k, k, Screened(2, bits=2).causal(), hardware=hardware, layer="a")
    counts = ledger.to_dict()["a"]
    # Query i sees rows 0 to i, largest first, in ⌈(i + 1) / 2⌉ tiles. A ramp of 4 steps over i equal gaps passes the
    # second row at step 0 (one row alone), 3, 2 (1.5), 1, 1 (0.75).
    steps = [1, 4, 3, 2, 2]
    tiles = [1, 1, 2, 2, 3]
    opened = [1, 2, 2, 2, 2]
    touched = [1, 1, 1, 1, 1]  # V and exact K: rows 0 and 1 are in one tile
    compared = 1 + (1 + 4) + (1 + 3 + 3) + (1 + 2 + 2 + 2) + (1 + 2 + 2 + 2 + 2)
    assert counts["screened_pairs"] == 15
    assert counts["row_spikes"] == counts["attended_pairs"] == sum(opened) == 9
    assert counts["comparisons"] == compared
    assert counts["ramp_steps"] == sum(s * t for s, t in zip(steps, tiles, strict=True))
    assert counts["waited_comparisons"] == sum(steps)
    assert counts["screening_queries_7bit"] == counts["screening_drives_7bit"] == 5
    assert counts["screening_reads"] == 2 * sum(tiles)
    assert counts["query_drives"] == 6 * (sum(tiles) + sum(touched))
    assert counts["dac_conversions_7bit"] == counts["query_drives"] + 2 * sum(opened)
    assert counts["column_activations"] == 2 * (15 + 9)
    assert counts["cell_macs"] == 6 * 15 + 12 * 9
    assert counts["tile_reads"] == 2 * sum(tiles) + (2 + 2) * sum(touched)
    report = price(ledger, "isaac")
    assert report.by_component()["comparators"].pj == pytest.approx(0.092 * compared + 0.39 * counts["ramp_steps"])
    assert not {"screened_pairs", "row_spikes", "comparisons", "screening_reads"} & report.unpriced.keys()


def test_bits_in_turn_drive_as_often():
    q, k, v = draw(20)
    with Ledger() as ledger:
        gated_attention(q, k, v, parse("causal(spiking(-1000, bits=5))"), hardware=IDEAL, layer="a")
    counts = ledger.to_dict()["a"]
    drives = 8 * 2 * 4 * (16 + 4 * 2)  # tiles of 16 rows that 20 queries drive
    assert counts["row_spikes"] == counts["screened_pairs"] == 2 * 4 * 210
    assert counts["comparisons"] == 2 * 4 * 210  # each fires at its first bit
    assert counts["dac_conversions_1bit"] == 4 * drives
    assert counts["query_drives"] == 5 * drives
    assert counts["screening_queries_5bit"] == 2 * 4 * 20
    assert counts["screening_drives_5bit"] == counts["waited_comparisons"] == 4 * 2 * 4 * 20


@pytest.mark.parametrize("text", ["screened(5, bits=4) | sinks(1)", "spiking(0.5) | window(2)"])
def test_events_are_those_of_the_pairs_that_opened_and_none_is_lost_unseen(text):
    q, k, v = draw(batch=1)
    pattern = parse(text).causal()
    lossless = Controller(dataclasses.replace(platforms.ideal(), rows=16))
    with Ledger() as ledger:
        sent = gated_attention(q, k, v, pattern, hardware=IDEAL, controller=lossless)
    totals = ledger.totals()
    assert totals["events"] == 2 * totals["attended_pairs"]
    assert totals["attended_pairs"] >= totals["row_spikes"] > 0
    torch.testing.assert_close(sent, gated_attention(q, k, v, pattern, hardware=IDEAL), rtol=0, atol=1e-12)
    chosen = pattern.select(q, k)
    for h in range(4):
        csr = chosen.head(h).rows(N)
        events = lossless.events(csr, Placement.sequential(N, 16))
        timing = lossless.simulate(events)
        assert timing.injected == len(events.time) == 2 * len(csr.indices)
        assert timing.delivered + timing.dropped + timing.in_flight == timing.injected


def test_gradients_go_through_chosen_rows_or_straight():
    inputs = [x.requires_grad_() for x in draw(20, batch=1)]
    hard, straight = (
        gated_attention(*inputs, parse(f"causal(screened(3, bits=4{more}))"), hardware=PCM)
        for more in ("", ", gradient=straight")
    )
    assert torch.equal(hard, straight)
    soft = gated_attention(*inputs, Dense().causal())
    found, wanted = (torch.autograd.grad(x.sum(), inputs, retain_graph=True) for x in (straight, soft))
    for a, b in zip(found, wanted, strict=True):
        torch.testing.assert_close(a, b)
    assert all(x.abs().sum() > 0 for x in torch.autograd.grad(hard.sum(), inputs[2:]))
