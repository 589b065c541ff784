"""Wire-aware mapping: what wires take is made up for by targets, with places for lines that lose less."""

import dataclasses

import pytest
import torch
from torch import nn

from calibration import DriftCompensation, Recipe, WeightRanges, WireAware
from crossbar import (
    InputError,
    Tile,
    Wire,
    age,
    analog_layers,
    convert,
    load_state,
    new_chip,
    presets,
    program,
    save_state,
)

LOSSY = dataclasses.replace(presets.ideal(), tile=Tile(32, 16), wire=Wire(60.0, 60.0))


def model(hardware=LOSSY, bias=True):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(40, 24, bias=bias)).eval()
    convert(net, hardware)
    return net


def data(seed=1):
    return torch.randn(64, 40, generator=torch.Generator().manual_seed(seed))


def error(net, step=None, seconds=None):
    """Of outputs of a chip, relative, with a step."""
    x, layer = data(2), net[0]
    if step is not None:
        step.apply(net, step.fit(net, [{"input": data()}]))
    program(net, 0)
    if seconds is not None:
        age(net, seconds)
    with torch.no_grad():
        wanted = nn.functional.linear(x, layer.target_weight(), layer.bias)
        return float((net(x) - wanted).norm() / (wanted - layer.bias).norm())


@pytest.mark.parametrize("ohms", [15.0, 30.0, 75.0])  # of tiles an eighth as long: 1, 2 and 5 ohm of 256 x 256
def test_targets_make_up_for_wires(ohms):
    hardware = dataclasses.replace(LOSSY, wire=Wire(ohms, ohms))
    plain, aware = error(model(hardware)), error(model(hardware), WireAware(rounds=8))
    assert plain > 0.002
    assert aware < plain / 50


@pytest.mark.parametrize(
    "options",
    [
        {"wire": Wire(60.0, 60.0, drive="both", sense="top", layout="interleaved")},
        {"tile": Tile(32, 16, scale="tile")},
        {"tile": Tile(32, 16, encoding="balanced")},
        {"tile": Tile(32, 16, slices=2, slice_bits=6, scale="layer")},
        {"tile": Tile(32, 16, pairs=2)},
    ],
)
def test_every_layout_of_cells(options):
    hardware = dataclasses.replace(LOSSY, **options)
    plain = error(model(hardware))
    assert error(model(hardware), WireAware(rounds=8, place=False)) < plain / 10


def test_rounds_converge():
    errors = [error(model(), WireAware(rounds=rounds, place=False)) for rounds in (1, 2, 4, 8)]
    assert errors == sorted(errors, reverse=True)
    assert errors[3] < errors[0] / 100


def test_compensation_does_not_take_it_back():
    net = model()
    before = error(net, WireAware(rounds=8))
    step = DriftCompensation()
    step.apply(net, step.fit(net, []))
    x = data(2)
    with torch.no_grad():
        wanted = nn.functional.linear(x, net[0].target_weight(), net[0].bias)
        after = float((net(x) - wanted).norm() / (wanted - net[0].bias).norm())
    assert after < before + 1e-4
    assert torch.allclose(net[0].column_gain, torch.ones(()), atol=1e-3)


def test_the_largest_lines_come_next_to_drivers_and_amplifiers():
    net = model()
    layer = net[0]
    with torch.no_grad():
        layer.digital.weight[3] *= 4
        layer.digital.weight[:, 7] *= 4
    fitted = WireAware(rounds=0).fit(net, [{"input": data()}])
    assert set(fitted) == {"0.row_places", "0.column_places"}
    assert (fitted["0.row_places"][:, 7] == 31).all()  # inputs 0 to 31 are the first row tile; the bottom is sensed
    assert fitted["0.column_places"][0, 3] == 0
    large = data() * torch.where(torch.arange(40) == 20, 100.0, 1.0)
    assert (WireAware(rounds=0).fit(net, [{"input": large}])["0.row_places"][:, 20] == 31).all()
    both = model(dataclasses.replace(LOSSY, wire=Wire(60.0, 60.0, drive="both", sense="top")))
    places = WireAware(rounds=0).fit(both, [{"input": large}])
    assert (places["0.row_places"][:, 20] == 0).all()
    sums = both[0].target_weight().abs()[:16, :32].sum(1)
    assert set(places["0.column_places"][0, :16][sums.topk(2).indices].tolist()) == {0, 15}


def test_placement_alone_loses_less():
    hardware = dataclasses.replace(LOSSY, tile=Tile(64, 32))
    assert error(model(hardware), WireAware(rounds=0)) < error(model(hardware))


def test_behind_weight_ranges_it_keeps_what_these_chose():
    hardware = dataclasses.replace(presets.pcm(), tile=Tile(32, 16), wire=Wire(60.0, 60.0))
    net, batches = model(hardware), [{"input": data()}]
    ranges = WeightRanges()
    ranges.apply(net, ranges.fit(net, batches))
    layer = net[0]
    chosen, correction = layer.weight_range.clone(), layer.weight_correction
    wanted = layer.cells.matrix().clamp(-chosen.amax(), chosen.amax()).clone()
    step = WireAware(place=False)
    step.apply(net, step.fit(net, batches))
    assert (layer.weight_range >= chosen).all()
    assert correction is None or torch.equal(layer.weight_correction, correction)
    seen = layer.cells.through_wires(layer.cells.matrix(), layer.scales)
    assert (seen - wanted).norm() < 0.1 * wanted.norm()


def test_state_keeps_it(tmp_path):
    net = model()
    error(net, WireAware())
    with torch.no_grad():
        expected = net(data(2))
    save_state(net, tmp_path / "chip.safetensors")
    other = model()
    load_state(other, tmp_path / "chip.safetensors")
    with torch.no_grad():
        assert torch.equal(other(data(2)), expected)
    assert torch.equal(other[0].cells.row_places, net[0].cells.row_places)
    new_chip(other)
    assert other[0].target_correction is not None  # as written again


def test_nothing_to_do_without_wires():
    net = model(presets.ideal())
    step = WireAware()
    assert step.fit(net, [{"input": data()}]) == {}
    step.apply(net, {})
    assert net[0].target_correction is None
    assert analog_layers(net)["0"].cells.row_places is None


def test_offset_encoding_is_refused():
    net = model(dataclasses.replace(LOSSY, tile=Tile(32, 16, encoding="offset")))
    message = (
        r"^hardware field tile\.encoding = 'offset' is not supported for WireAware: give differential or balanced$"
    )
    with pytest.raises(InputError, match=message):
        WireAware().fit(net, [])


def test_options():
    with pytest.raises(InputError, match=r"^WireAware rounds = -1 is not allowed: give a whole number from 0 to 100$"):
        WireAware(rounds=-1)
    with pytest.raises(InputError, match=r"^WireAware seconds = -1 is not allowed"):
        WireAware(seconds=-1)
    assert Recipe.from_dict({"name": "wires", "steps": [{"step": "WireAware", "place": False}]}).steps == (
        WireAware(place=False),
    )
