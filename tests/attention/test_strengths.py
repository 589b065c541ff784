import dataclasses

import pytest
import torch
from torch import nn

from attention import Dense, Documents, LearnedStrengths, LocalWindow, PerHead, Strided, TopK, place_strengths
from attention.strength_tiles import StrengthTiles
from calibration import DriftCompensation
from crossbar import Ledger, age, analog_layers, load_state, new_chip, presets, program, save_state
from crossbar.errors import InputError
from crossbar.faults import Fault
from crossbar.hardware import Converter, Faults, Tile

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


@pytest.mark.parametrize("count", [N, 7])
@pytest.mark.parametrize("by", ["offset", "pair"])
def test_both_uses_are_what_they_say_in_digital_and_on_exact_tiles(by, count):
    q, k, v = draw(count)
    for made in (strengths(by, content_free=True), strengths(by)):
        matrix, allowed = made.matrix()[:, :count, :count], made.allowed[:count, :count]
        if made.content_free:
            expected, inputs = matrix @ v, (v,)
        else:
            scores = (D**-0.5 * q @ k.transpose(-1, -2) + matrix).masked_fill(~allowed, -torch.inf)
            expected, inputs = scores.softmax(-1) @ v, (v, q, k)
        torch.testing.assert_close(made(*inputs), expected, rtol=0, atol=1e-5)
        made.place(IDEAL)
        torch.testing.assert_close(made(*inputs), expected, rtol=0, atol=1e-5)
        made.lift()
        assert made.tiles is None


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
    assert [layer.name for layer in report.layers] == [f"{m}.tiles.{h}" for m in ("one", "two") for h in range(H)]
    assert report.layers[0].utilisation == pytest.approx(int(model.one.allowed.sum()) / 256**2)
    for chip in range(2):
        new_chip(model)
        program(model, chip)
        age(model, "1d")
        for layer in analog_layers(model).values():
            assert isinstance(layer, StrengthTiles)
            cells = layer.conductances()
            for side in cells:
                absent = side[0, 0, :N, :N][~layer.allowed.t()]
                assert (absent == 0).all()
            assert (layer.cell_weight[0][~layer.allowed.t()] == 0).all()
            absent = (layer.fault_map == Fault.OPEN).all(0)  # a weak pair may read 0 by itself: both cells at 0 µS
            assert torch.equal(absent, ~layer.allowed.t())
            assert (layer.fault_map[:, layer.allowed.t()] == Fault.NONE).all()


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
    found, again = (m.one.tiles[0].effective_weight() for m in (model, other))
    torch.testing.assert_close(found / model.one.tiles[0].column_gain[0][:, None], again)
    assert (found[~model.one.allowed] == 0).all()


def test_content_free_attention_opens_rows_and_no_key_lines():
    made, v = strengths("pair", content_free=True), draw()[2]
    made.place(IDEAL, "layer")
    with Ledger() as ledger:
        made(v)
    allowed, vectors = made.allowed, 3 * D
    rows = sum(int(allowed[i : i + 4].any(0).sum()) for i in range(0, N, 4))  # tiles of 4 columns (attending tokens)
    columns = sum(int(allowed[:, j : j + 5].any(1).sum()) for j in range(0, N, 5))  # tiles of 5 rows
    assert set(ledger.by_layer) == {"layer.tiles.0", "layer.tiles.1"}
    for counts in ledger.by_layer.values():
        found = {counter.name: n for counter, n in counts.items()}
        assert found["row_activations"] == vectors * rows
        assert found["adc_conversions"] == vectors * columns
        assert found["cell_macs"] == vectors * int(allowed.sum())
        assert "column_activations" not in found


def test_with_content_each_attended_strength_is_one_activation_and_one_conversion():
    made, (q, k, v) = strengths("offset"), draw()
    made.place(PCM, "layer")
    with Ledger() as ledger:
        made(v, q, k)
    pairs = int(made.allowed.sum())
    assert ledger.totals()["row_activations"] == ledger.totals()["adc_conversions"] == 3 * H * pairs


def test_a_strength_that_is_read_alone_has_the_noise_and_the_steps_of_its_own_conversion():
    made = strengths("pair")
    made.place(dataclasses.replace(IDEAL, output_noise=0.05))
    tiles = made.tiles[0]
    reads = tiles.read_pairs(4000, N)
    scale = tiles.scales[torch.arange(N) // 5].t()
    error = ((reads - made.matrix()[0].detach()) / scale)[:, made.allowed]
    assert float(error.std()) == pytest.approx(0.05, rel=0.01)  # of 208,000 reads: a standard error of 0.2%
    assert float(error.mean()) == pytest.approx(0.0, abs=0.001)
    assert (reads[:, ~made.allowed] == 0).all()
    made.place(dataclasses.replace(IDEAL, adc=Converter(bits=5)))
    codes = made.tiles[0].read_pairs(1, N)[0] / made.tiles[0].scales[torch.arange(N) // 5].t() * 15
    torch.testing.assert_close(codes, codes.round(), rtol=0, atol=1e-4)


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
    with pytest.raises(InputError, match="bits = 1"):
        strengths().quantised(1)
    with pytest.raises(InputError, match="no LearnedStrengths"):
        place_strengths(nn.Linear(2, 2), PCM)


def test_documents_keep_strengths_apart():
    ids = torch.tensor([0] * 5 + [1] * 7)
    made = strengths("pair", content_free=True, pattern=Dense() & Documents(ids))
    v = draw(N)[2]
    assert torch.equal(made(v)[:, :, :5], made(torch.cat([v[:, :, :5], 9 * v[:, :, 5:]], 2))[:, :, :5])
