"""Features of hardware: every field is one or a mere size; one sentence refuses what a reader does not honour."""

import dataclasses
from types import NoneType
from typing import Literal, get_args, get_origin, get_type_hints

import pytest
import torch
from torch import nn

from crossbar import (
    AnalogLinear,
    Cell,
    CellNoise,
    Converter,
    Faults,
    Hardware,
    InputError,
    Tile,
    Wire,
    WriteVerify,
    convert,
    presets,
)
from crossbar.features import CELLS, CONVERTERS, MISMATCH, NOISES, WIRES, require_honoured
from crossbar.tiles.tile_array import TileArray
from crossbar.tiles.weight_errors import weight_errors
from tests.crossbar.backends.test_contract import Redrawn
from tests.crossbar.conftest import inputs
from tests.crossbar.toys import Heated

KNOWN = CELLS | CONVERTERS | MISMATCH | NOISES | WIRES
PLAIN = Hardware(dac=Converter(), output_noise=0.0)
SIZES = {
    "tile.rows", "tile.cols", "tile.slice_bits", "dac.bits", "dac.full_scale", "adc.bits", "adc.full_scale",
    "read_noise.constant", "read_noise.relative", "verify.tolerance", "verify.rounds", "verify.read_std",
    "faults.stuck_min", "faults.stuck_max", "faults.shorts", "faults.broken_rows", "faults.broken_cols",
    "faults.short_conductance", "faults.spare_cols", "faults.seed", "faults.partners", "wire.r_row", "wire.r_col",
    "cell.v0", "cell.v_read", "cell.table",
}  # fmt: skip
"""Fields whose value is no feature: whoever honours the part that they are of computes with all their values."""


def part_of(hint):
    """The dataclass among the types of a field; None: there is none."""
    return next((kind for kind in (hint, *get_args(hint)) if dataclasses.is_dataclass(kind)), None)


def others(hint, value):
    """Values that a field may have beside its plain one."""
    if get_origin(hint) is Literal:
        return [choice for choice in get_args(hint) if choice != value]
    if hint is bool:
        return [not value]
    if hint is int:
        return [other for other in (1, value + 1, value + 3) if other != value]
    if hint is float:
        return [0.25, 2.0]
    if get_origin(hint) is tuple:
        return [((1.0, 1.0), (2.0, 3.0))]
    raise AssertionError(f"say here what other values a field of the type {hint} has")


def settings(owner, prefix=""):
    """Each field but the device, by its dotted name, with the plain hardware around it and with all others to try."""
    for name, hint in get_type_hints(owner).items():
        part = part_of(hint)
        if name == "device":
            continue
        if part is None:
            yield name, PLAIN, [(name, {name: value}) for value in others(hint, getattr(PLAIN, name))]
            continue
        present = dataclasses.replace(PLAIN, **{name: part()})
        if NoneType in get_args(hint):
            absent = getattr(PLAIN, name) is None
            yield name, PLAIN, [(name, {name: part() if absent else None})]
        for own, kind in get_type_hints(part).items():
            values = others(kind, getattr(part(), own))
            yield f"{name}.{own}", present, [(name, {own: value}) for value in values]


def tried(base, changes):
    """The features that each change adds, of those that hardware can have."""
    for part, values in changes:
        try:
            whole = values if part in values else {part: dataclasses.replace(getattr(base, part), **values)}
            changed = dataclasses.replace(base, **whole)
        except InputError:
            continue
        yield changed.features() - base.features()


FIELDS = {name: (base, changes) for name, base, changes in settings(Hardware)}


@pytest.mark.parametrize("name", FIELDS)
def test_every_field_is_a_feature_or_a_size(name):
    found = list(tried(*FIELDS[name]))
    assert found or name == "adc.coding"  # there is one choice
    if name in SIZES:
        assert set().union(*found) <= {f"{name}:1"}
        return
    for added in found:
        assert {feature.partition(":")[0] for feature in added} <= {
            name,
            *(own for own in FIELDS if own.startswith(f"{name}.")),
        }
        assert added


def test_the_sizes_are_fields():
    assert set(FIELDS) >= SIZES


def test_the_named_features_are_those_that_fields_give():
    given = set().union(*(added for base, changes in FIELDS.values() for added in tried(base, changes)))
    assert given | {"device:redrawn", "cell.iv:table"} == KNOWN
    table = Cell("table", table=((1.0, 1.0),))
    assert dataclasses.replace(PLAIN, cell=table).features() == {"cell", "cell.iv:table"}
    assert dataclasses.replace(PLAIN, device=Redrawn()).features() == {"device:redrawn"}
    assert sum(map(len, (CELLS, CONVERTERS, MISMATCH, NOISES, WIRES))) == len(KNOWN)
    assert PLAIN.features() == frozenset()


@pytest.mark.parametrize("preset", [presets.ideal, presets.pcm, presets.hermes, presets.reram, presets.gain_cell])
def test_presets_have_known_features(preset):
    assert preset().features() <= KNOWN


def plain(**parts):
    return dataclasses.replace(PLAIN, **parts)


REFUSED = [
    ({"dac": None}, "dac:ideal", "dac = None", "a Converter"),
    ({"adc": None}, "adc:ideal", "adc = None", "a Converter"),
    ({"dac": Converter(1)}, "dac.bits:1", "dac.bits = 1", "2 or more"),
    ({"adc": Converter(1)}, "adc.bits:1", "adc.bits = 1", "2 or more"),
    ({"dac": Converter(gain_std=0.1)}, "dac.gain_std", "dac.gain_std = 0.1", "0"),
    ({"adc": Converter(offset_std=0.1)}, "adc.offset_std", "adc.offset_std = 0.1", "0"),
    ({"dac": Converter(range="max")}, "dac.range:max", "dac.range = 'max'", "static or per_token"),
    ({"adc": Converter(range="active_rows")}, "adc.range:active_rows", "adc.range = 'active_rows'", "static"),
    ({"dac": Converter(coding="rate")}, "dac.coding:rate", "dac.coding = 'rate'", "pwm or bit_serial or amplitude"),
    ({"tile": Tile(encoding="offset")}, "tile.encoding:offset", "tile.encoding = 'offset'", "differential or balanced"),
    ({"tile": Tile(pairs=2)}, "tile.pairs", "tile.pairs = 2", "1"),
    ({"tile": Tile(slices=2)}, "tile.slices", "tile.slices = 2", "1"),
    ({"tile": Tile(scale="layer")}, "tile.scale:layer", "tile.scale = 'layer'", "tile_column or tile"),
    ({"output_noise": 0.1}, "output_noise", "output_noise = 0.1", "0"),
    ({"read_noise": CellNoise(0.1)}, "read_noise", None, "None"),
    ({"read_noise": CellNoise(form="cheap")}, "read_noise.form:cheap", "read_noise.form = 'cheap'", "exact"),
    ({"verify": WriteVerify(0.5)}, "verify", "verify = WriteVerify(tolerance=0.5, rounds=10, read_std=0.0)", "None"),
    ({"faults": Faults(seed=1)}, "faults", None, "None"),
    ({"wire": Wire(1.0)}, "wire", None, "None"),
    ({"wire": Wire(drive="both")}, "wire.drive:both", "wire.drive = 'both'", "left"),
    ({"wire": Wire(sense="top")}, "wire.sense:top", "wire.sense = 'top'", "bottom"),
    ({"wire": Wire(layout="interleaved")}, "wire.layout:interleaved", "wire.layout = 'interleaved'", "separate"),
    ({"wire": Wire(solution="exact")}, "wire.solution:exact", "wire.solution = 'exact'", "auto or first_order"),
    ({"device": Redrawn()}, "device:redrawn", None, "a device whose errors are not drawn anew at each time"),
]  # fmt: skip


@pytest.mark.parametrize(("parts", "feature", "shown", "allowed"), REFUSED, ids=[row[1] for row in REFUSED])
def test_a_feature_that_is_not_honoured_is_refused_in_one_sentence(parts, feature, shown, allowed):
    hardware = plain(**parts)
    require_honoured(hardware, KNOWN, "a reader")
    with pytest.raises(InputError) as caught:
        require_honoured(hardware, KNOWN - {feature}, "a reader")
    found = str(caught.value)
    assert found.endswith(f" is not supported for a reader: give {allowed}")
    assert found.startswith(f"hardware field {feature.partition(':')[0]} = ")
    if shown is not None:
        assert found == f"hardware field {shown} is not supported for a reader: give {allowed}"


def test_the_first_of_several_is_named():
    hardware = plain(tile=Tile(slices=2, pairs=2), faults=Faults())
    with pytest.raises(InputError, match=r"^hardware field faults = "):
        require_honoured(hardware, frozenset(), "a reader")
    with pytest.raises(InputError, match=r"^hardware field tile\.pairs = 2 "):
        require_honoured(hardware, {"faults"}, "a reader")


def test_no_form_of_noise():
    with pytest.raises(
        InputError, match=r"read_noise\.form = 'exact' is not supported for a reader: give no read_noise$"
    ):
        require_honoured(plain(read_noise=CellNoise(0.1)), {"read_noise"}, "a reader")


# A feature that someone adds

HEATED = Heated(heat=2.5, tile=Tile(4, 3))
SENTENCE = r"^hardware field heat = 2\.5 is not supported for {}: give 0$"


@dataclasses.dataclass(frozen=True)
class Gapped(Tile):
    """Tiles with word lines between others that carry nothing."""

    gap: int = 0
    order: Literal["straight", "snake"] | None = None


@dataclasses.dataclass(frozen=True)
class Coupled(Hardware):
    """Hardware with a part that others do not have."""

    coupling: CellNoise | None = None


def test_a_field_of_a_subclass_is_a_feature():
    assert HEATED.features() - {"heat"} == dataclasses.replace(HEATED, heat=0.0).features() == Hardware().features()
    assert "heat" in HEATED.features()
    assert plain(tile=Gapped(gap=2, order="snake")).features() == {"tile.gap", "tile.order:snake"}
    assert plain(tile=Gapped()).features() == frozenset()
    assert Coupled(coupling=CellNoise(1.0)).features() - Hardware().features() == {"coupling", "coupling.form:exact"}
    assert Coupled().features() == Hardware().features()


@pytest.mark.parametrize(
    ("hardware", "sentence"),
    [
        (HEATED, SENTENCE.format("a reader")),
        (plain(tile=Gapped(gap=2)), r"^hardware field tile\.gap = 2 is not supported for a reader: give 0$"),
        (plain(tile=Gapped(order="snake")), r"tile\.order = 'snake' is not supported for a reader: give None$"),
        (Coupled(coupling=CellNoise(1.0)), r"coupling = CellNoise\(.+\) is not supported for a reader: give None$"),
    ],
    ids=["number", "number of a part", "choice of a part", "part"],
)
def test_what_nobody_named_is_refused(hardware, sentence):
    with pytest.raises(InputError, match=sentence):
        require_honoured(hardware, KNOWN, "a reader")


def test_layers_and_tiles_refuse_it():
    model = nn.Sequential(nn.Linear(6, 5), nn.Linear(5, 4))
    before = dict(model.named_children())
    for build in (
        lambda: convert(model, HEATED),
        lambda: convert(model, presets.ideal(), per_layer={"1": HEATED}),
        lambda: AnalogLinear.from_digital(model[0], HEATED),
        lambda: AnalogLinear.from_matrix(torch.ones(5, 6), HEATED, "matrix"),
        lambda: TileArray(torch.ones(5, 6), HEATED, "cells"),
        lambda: weight_errors(HEATED, 1.0),
    ):
        with pytest.raises(InputError, match=SENTENCE.format("analog layers")):
            build()
    assert dict(model.named_children()) == before


def test_at_its_plain_value_it_changes_nothing():
    layers = [AnalogLinear.from_matrix(inputs(5, 6), kind(tile=Tile(4, 3)), "one") for kind in (Hardware, Heated)]
    found = []
    for layer in layers:
        layer.program(3)
        found.append(layer(inputs(4, 6, seed=2)))
    assert torch.equal(*found)
    assert found[0].abs().max() > 0
