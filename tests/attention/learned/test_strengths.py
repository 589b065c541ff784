import dataclasses
import itertools

import pytest
import torch
from torch import nn

from attention import (
    Dense,
    Documents,
    GlobalTokens,
    LearnedStrengths,
    LocalWindow,
    PerHead,
    Strided,
    TopK,
    place_strengths,
)
from attention.patterns.resident import Beyond
from calibration import DriftCompensation
from crossbar import (
    Ledger,
    Wire,
    age,
    analog_layers,
    load_state,
    new_chip,
    presets,
    program,
    save_state,
    transfer_matrix,
)
from crossbar.errors import InputError
from crossbar.hardware import Converter, Faults, Tile
from crossbar.tiles.faults import Fault

N, H, D = 12, 2, 8
WINDOW = LocalWindow(5)
IDEAL = dataclasses.replace(presets.ideal(), tile=Tile(rows=5, cols=4))
PCM = presets.pcm()


def strengths(by="offset", content_free=False, pattern=WINDOW):
    made = LearnedStrengths(H, N, pattern, by=by, content_free=content_free)
    with torch.no_grad():
        made.strength.normal_(generator=torch.Generator().manual_seed(0))
    return made


def draw(n=N, batch=3):
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(batch, H, n, D, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("pattern", [WINDOW, WINDOW.causal(), Strided(3).causal(), Dense()], ids=str)
def test_strengths_of_offsets_and_of_pairs(pattern):
    allowed = pattern.to_dense(N)
    i, j = allowed.nonzero(as_tuple=True)
    by_offset, by_pair = strengths("offset", pattern=pattern), strengths("pair", pattern=pattern)
    assert by_offset.strength.shape == (H, len({int(d) for d in i - j}))
    assert by_pair.strength.shape == (H, len(i))
    for made in (by_offset, by_pair):
        matrix = made.matrix()
        assert (matrix[:, ~allowed] == 0).all()
        assert int((matrix != 0).sum()) == H * len(i)
    matrix = by_offset.matrix()
    for a, b in zip(i.tolist(), j.tolist(), strict=True):
        if a + 1 < N and b + 1 < N and allowed[a + 1, b + 1]:
            assert torch.equal(matrix[:, a, b], matrix[:, a + 1, b + 1])


def reference(made, v, q=None, k=None):
    """Attention with strengths, one head, query and pair at a time, in float64."""
    output = torch.zeros_like(v, dtype=torch.float64)
    allowed, matrix = made.pattern.to_dense(made.n), made.matrix().detach().double()
    for b, h, i in itertools.product(range(v.shape[0]), range(H), range(v.shape[2])):
        keys = [j for j in range(v.shape[2]) if allowed[i, j]]
        weights = torch.stack([matrix[h, i, j] for j in keys]) if keys else torch.zeros(0).double()
        if q is not None:
            scores = torch.tensor([float(q[b, h, i].double() @ k[b, h, j].double()) for j in keys])
            weights = (scores * D**-0.5 + weights).softmax(0) if keys else weights
        for weight, j in zip(weights, keys, strict=True):
            output[b, h, i] += weight * v[b, h, j].double()
    return output


PATTERNS = [WINDOW, WINDOW.causal(), Strided(3).causal(), (LocalWindow(3) | GlobalTokens((1,))).causal(), Dense()]


@pytest.mark.parametrize("pattern", PATTERNS, ids=str)
@pytest.mark.parametrize("count", [N, 7])
@pytest.mark.parametrize("by", ["offset", "pair"])
def test_both_uses_are_what_they_say_in_digital_and_on_exact_tiles(by, count, pattern):
    q, k, v = draw(count)
    for made in (strengths(by, content_free=True, pattern=pattern), strengths(by, pattern=pattern)):
        inputs = (v,) if made.content_free else (v, q, k)
        expected = reference(made, *inputs)
        torch.testing.assert_close(made(*inputs).double(), expected, rtol=0, atol=1e-5)
        made.place(IDEAL)
        torch.testing.assert_close(made(*inputs).double(), expected, rtol=0, atol=1e-5)
        made.lift()
        assert made.tiles is None


@pytest.mark.parametrize("range_", ["static", "active_rows"])
def test_tiles_convert_their_inputs_and_columns_as_a_slow_walk_over_them_does(range_):
    made, v = strengths("pair", content_free=True, pattern=WINDOW), draw()[2]
    adc = Converter(bits=6, range=range_, full_scale=2.0)
    made.place(dataclasses.replace(IDEAL, dac=Converter(bits=5, range="per_token"), adc=adc))
    matrix, allowed, rows, columns = made.matrix().detach().double(), WINDOW.to_dense(N), 5, 4
    expected = torch.zeros_like(v, dtype=torch.float64)
    for b, h, d in itertools.product(range(len(v)), range(H), range(D)):
        drives = v[b, h, :, d].double()
        largest = drives.abs().max()
        codes = (drives / largest * 15).round() / 15
        for i, first in itertools.product(range(N), range(0, N, rows)):
            tile = range(first, min(first + rows, N))
            whole = slice(i // columns * columns, i // columns * columns + columns)
            if not allowed[whole, first : first + rows].any():
                continue
            scale = matrix[h, i, first : first + rows].abs().max() or 1.0
            driven = max(sum(float(codes[j]) != 0 for j in tile), 1) / rows
            step = 2.0 / 31 * (driven**0.5 if range_ == "active_rows" else 1.0)
            total = sum(float(codes[j] * matrix[h, i, j] / scale) for j in tile)
            expected[b, h, i, d] += max(-31, min(31, round(total / step))) * step * scale * largest
    error = (made(v).double() - expected).abs()
    assert float((error > 1e-5).float().mean()) < 0.01  # a sum on the edge between two codes may round either way
    assert float(error.max()) < 2.0 / 31 * 2.01 * float(v.abs().max() * matrix.abs().max())


def test_long_windows_keep_no_square_of_the_tokens():
    n, window = 4096, LocalWindow(64).causal()
    made = LearnedStrengths(1, n, window, by="pair", content_free=True)
    made.place(dataclasses.replace(presets.ideal(), tile=Tile(rows=64, cols=64)))
    pairs = int(window.rows(n).indptr[-1])
    tensors = [*made.buffers(), *made.parameters()]  # those of its tiles too
    assert max(tensor.numel() for tensor in tensors) <= 2 * 2 * 64 * 2 * n  # two cells, two tiles of 64 rows a column
    assert made.tiles.tiles == 2 * n // 64 - 1
    v = torch.ones(1, 1, n, 1)
    torch.testing.assert_close(made(v)[0, 0, 100:, 0], torch.full((n - 100,), 64 * n / pairs), rtol=1e-4, atol=0)


@pytest.mark.parametrize("content_free", [True, False])
def test_gradients_reach_every_strength(content_free):
    made = strengths("pair", content_free)
    q, k, v = draw()
    (made(v) if content_free else made(v, q, k)).square().sum().backward()
    assert (made.strength.grad != 0).all()


class Model(nn.Module):
    def __init__(self, content_free):
        super().__init__()
        self.one, self.two = strengths("pair", content_free), strengths("offset", content_free)


def test_pairs_outside_the_pattern_have_no_device_on_any_chip():
    model = Model(True)
    report = place_strengths(model, PCM)
    assert [layer.name for layer in report.layers] == ["one.tiles", "two.tiles"]
    allowed = WINDOW.to_dense(N)
    assert report.layers[0].utilisation == pytest.approx(int(allowed.sum()) / 256**2)
    for chip in range(2):
        new_chip(model)
        program(model, chip)
        age(model, "1d")
        layers = analog_layers(model)
        assert list(layers) == ["one.tiles.layer", "two.tiles.layer"]
        for layer in layers.values():
            for side in layer.conductances():
                assert side.shape == (H, 1, N, N)  # a tile of all tokens for each head
                assert (side[:, 0][:, ~allowed.t()] == 0).all()
            absent = (layer.fault_map == Fault.OPEN).view(2, N, H, N)  # a weak pair may read 0 by itself
            assert torch.equal(absent, ~allowed.t()[None, :, None, :].expand_as(absent))


def test_they_are_programmed_aged_saved_and_calibrated_as_weights_are(tmp_path):
    hardware = dataclasses.replace(PCM, adc=Converter(full_scale=4.0))
    model, v = Model(True).requires_grad_(False), draw()[2]
    exact = model.one(v)
    place_strengths(model, hardware)
    program(model, 3)
    age(model, "30d")

    def error():
        return float((model.one(v) - exact).square().mean().sqrt() / exact.square().mean().sqrt())

    before = error()
    save_state(model, tmp_path / "state.safetensors")
    step = DriftCompensation()
    step.apply(model, step.fit(model, []))
    assert error() < 0.6 * before
    other = Model(True)
    place_strengths(other, hardware)
    load_state(other, tmp_path / "state.safetensors")
    found, again = (m.one.tiles.layer.effective_weight() for m in (model, other))
    torch.testing.assert_close(found / model.one.tiles.layer.column_gain[0][:, None], again)
    assert (found.view(H, N, N)[:, ~WINDOW.to_dense(N)] == 0).all()


def test_content_free_attention_opens_rows_and_no_key_lines():
    made, v = strengths("pair", content_free=True), draw()[2]
    made.place(IDEAL, "layer")
    with Ledger() as ledger:
        made(v)
    allowed, vectors = WINDOW.to_dense(N), 3 * H * D
    rows = sum(int(allowed[i : i + 4].any(0).sum()) for i in range(0, N, 4))  # tiles of 4 columns (attending tokens)
    columns = sum(int(allowed[:, j : j + 5].any(1).sum()) for j in range(0, N, 5))  # tiles of 5 rows
    assert set(ledger.by_layer) == {"layer.tiles"}
    found = ledger.totals()
    assert found["row_activations"] == vectors * rows
    assert found["adc_conversions"] == vectors * columns
    assert found["cell_macs"] == vectors * int(allowed.sum())
    assert "column_activations" not in found


def test_with_content_each_attended_strength_is_one_activation_and_one_conversion():
    made, (q, k, v) = strengths("offset"), draw()
    made.place(PCM, "layer")
    with Ledger() as ledger:
        made(v, q, k)
    pairs = len(made.key)
    assert ledger.totals()["row_activations"] == ledger.totals()["adc_conversions"] == 3 * H * pairs


def test_a_strength_that_is_read_alone_has_the_noise_and_the_steps_of_its_own_conversion():
    made = strengths("pair")
    made.place(dataclasses.replace(IDEAL, output_noise=0.05))
    every = torch.arange(len(made.key))
    matrix = made.matrix().detach()
    tile = torch.nn.functional.pad(matrix.abs(), (0, 3)).unflatten(2, (3, 5)).amax(3)
    scale = tile[:, made.query, made.key // 5]
    error = (made.tiles.read_pairs(2000, every) - made.of_pairs().detach()) / scale
    assert float(error.std()) == pytest.approx(0.05, rel=0.01)  # of 208,000 reads: a standard error of 0.2%
    assert float(error.mean()) == pytest.approx(0.0, abs=0.001)
    made.place(dataclasses.replace(IDEAL, adc=Converter(bits=5)))
    codes = made.tiles.read_pairs(1, every)[0] / scale * 15
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)


def test_the_offset_of_a_columns_adc_is_in_each_of_its_reads():
    made = strengths("pair")
    made.place(dataclasses.replace(IDEAL, adc=Converter(bits=16, offset_std=0.05)))
    program(made, 0)
    column = made.tiles._pair_column
    scale = made.tiles.layer.scales.view(H, -1)[:, column]
    wanted = made.of_pairs().detach() / scale
    offset = made.tiles.read_pairs(1, torch.arange(len(made.key)))[0] / scale - wanted
    inside = wanted.abs() < 0.7  # beyond, an offset may leave the converter's range of one cell
    for head, own in itertools.product(range(H), column.unique().tolist()):
        same = offset[head, (column == own) & inside[head]]
        assert len(same) == 0 or float(same.max() - same.min()) < 1e-4
    assert 0.04 < float(offset[inside].std()) < 0.06


@pytest.mark.parametrize("bits", [2, 4, 9])
def test_quantised_strengths_are_whole_numbers_of_a_heads_scale(bits):
    made = strengths("pair")
    whole, scale = made.whole(bits)
    assert torch.equal(whole, whole.round())
    assert int(whole.abs().max()) == 2 ** (bits - 1) - 1
    few = made.quantised(bits)
    assert (few.strength - made.strength).abs().amax(1).le(scale / 2 * 1.001).all()
    torch.testing.assert_close(few.strength.detach(), whole * scale[:, None])
    assert few is not made


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"heads": 0}, "strengths heads = 0"),
        ({"n": 0}, "strengths n = 0"),
        ({"by": "token"}, "strengths by = 'token' is not allowed: choose offset or pair"),
        ({"n": 2, "pattern": Beyond(2, 1)}, "attends no pair of 2 tokens"),
        ({"pattern": TopK(3)}, "does not fit strengths"),
        ({"pattern": PerHead([WINDOW, Dense()])}, "does not fit strengths"),
    ],
)
def test_impossible_strengths_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        LearnedStrengths(**{"heads": H, "n": N, "pattern": WINDOW, **change})


def test_inputs_and_hardware_that_do_not_fit_are_refused():
    q, k, v = draw()
    with pytest.raises(InputError, match="give q and k shaped like v"):
        strengths()(v)
    with pytest.raises(InputError, match="take values alone"):
        strengths(content_free=True)(v, q, k)
    with pytest.raises(InputError, match=r"cannot take v \[3, 2, 24, 8\]"):
        strengths(content_free=True)(torch.cat([v, v], 2))
    for hardware in (
        dataclasses.replace(PCM, faults=Faults(stuck_min=0.1)),
        dataclasses.replace(PCM, tile=Tile(encoding="offset")),
        dataclasses.replace(PCM, tile=Tile(slices=2)),
    ):
        with pytest.raises(InputError, match="not supported for strengths"):
            strengths().place(hardware)
    with pytest.raises(InputError, match=r"dac\.offset_std = 0\.\d+ is not supported for strengths read one by one"):
        strengths().place(dataclasses.replace(PCM, dac=Converter(offset_std=0.1)))
    with pytest.raises(InputError, match="bits = 1"):
        strengths().quantised(1)
    with pytest.raises(InputError, match="no LearnedStrengths"):
        place_strengths(nn.Linear(2, 2), PCM)


def test_documents_keep_strengths_apart():
    ids = torch.tensor([0] * 5 + [1] * 7)
    made = strengths("pair", content_free=True, pattern=Dense() & Documents(ids))
    v = draw(N)[2]
    assert torch.equal(made(v)[:, :, :5], made(torch.cat([v[:, :, :5], 9 * v[:, :, 5:]], 2))[:, :, :5])


def test_wires_take_from_mixed_values():
    """Each tile's columns carry the currents of its circuit, where pairs without a device have no cell."""
    v, found = draw()[0], []
    for ohms in (0.0, 50.0, 200.0):
        made = strengths("pair", content_free=True)
        made.place(dataclasses.replace(IDEAL, tile=Tile(rows=12, cols=12), wire=Wire(ohms, ohms)))
        made.tiles.layer.program(0)
        found.append(made(v).detach())
        cells = made.tiles.layer.cells.conductances()
        matrix = transfer_matrix(cells.unflatten(2, (H, -1)).transpose(1, 2), ohms)
        scales = made.tiles.layer.scales.view(H, 1, -1)[:, :, :N]
        seen = ((matrix[0] - matrix[1])[..., :N] / 25 * scales).transpose(1, 2)  # [H, queries, keys]
        assert torch.allclose(found[-1], seen @ v, atol=1e-4 * float(v.abs().max()))
    lost = [(one - found[0]).norm() / found[0].norm() for one in found[1:]]
    assert 0.005 < lost[0] < lost[1] < 0.5


@pytest.mark.parametrize("wire", [Wire(60.0, 40.0), Wire(60.0, 40.0, "both", "top", "interleaved")], ids=str)
def test_a_strength_read_on_its_own_has_one_open_row(wire):
    """Its circuit is that of the other devices of its row, in a tile whose other rows are closed."""
    made, v = strengths("pair"), draw()[0]
    with torch.no_grad():
        made.strength.copy_(torch.randn(made.strength.shape, generator=torch.Generator().manual_seed(3)))
    tile = Tile(rows=6, cols=5)
    made.place(dataclasses.replace(IDEAL, tile=tile, wire=wire))
    layer = made.tiles.layer
    layer.program(0)
    found = made.tiles.read_pairs(1, torch.arange(len(made.key)))[0]
    cells = layer.cells.conductances().double()  # [K, 6, H T 5]
    planes = cells.unflatten(2, (-1, 5)).permute(2, 0, 1, 3)  # [H T, K, R, C]
    seen = torch.zeros(len(planes), 6, 5, dtype=torch.float64)
    for row in range(6):
        only = torch.arange(6) == row
        matrix = transfer_matrix(
            planes, wire.r_row, wire.r_col, only, drive=wire.drive, sense=wire.sense, layout=wire.layout
        )
        seen[:, row] = (matrix[:, 0, row] - matrix[:, 1, row]) / 25
    weight = seen.transpose(0, 1).flatten(1) * layer.scales.double()
    column = made.tiles._pair_column + torch.arange(H)[:, None] * made.tiles.tiles * 5
    expected = weight[made.tiles._pair_row.expand(H, -1), column]
    assert torch.allclose(found.double(), expected, atol=1e-5 * float(expected.abs().max()))
    lost = (expected - made.of_pairs()).norm() / made.of_pairs().norm()
    assert 0.001 < lost < 0.5
    assert made(v, v, v).isfinite().all()
