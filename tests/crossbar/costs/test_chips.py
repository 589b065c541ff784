"""Chips from books: published times, throughput and areas, and what a book may not say."""

import pytest

from crossbar import Converter, Hardware, InputError, PriceBook, Tile, presets
from crossbar.costs.area import area
from crossbar.costs.chips import PARTS, Chip, Part, names
from crossbar.costs.reads import attention_time, peak_tops, read_time, screening_time

ISAAC = Hardware(
    tile=Tile(rows=128, cols=128, slices=8, slice_bits=2, encoding="offset"),  # weights of 16 bits, one cell a digit
    dac=Converter(bits=16, coding="bit_serial"),
)


@pytest.mark.parametrize("name", names())
def test_every_packaged_number_says_where_it_comes_from(name):
    chip = Chip.get(name)
    assert chip.name == name
    assert chip.title
    for part in chip.parts:
        assert part.source
        assert part.unit == PARTS[part.part].unit


# Published figures, out of parts. Some parts were derived from one of these figures, as their sources say; the others
# are then a test of it.


def test_hermes_in_one_phase():
    """63.1 TOPS gave the read-out's 2.94 ns; 1.55 TOPS/mm² is a test of the core's area, which is of another chip."""
    chip, hardware = Chip.get("hermes"), presets.hermes()
    assert read_time(chip, hardware).ns == pytest.approx(132.9, rel=0.002)
    assert peak_tops(chip, hardware) == pytest.approx(63.1, rel=0.002)
    assert peak_tops(chip, hardware) / area(chip, hardware).mm2 == pytest.approx(1.55, rel=0.02)
    joules = PriceBook.get("hermes").prices[0].value * 1e-12
    assert 2 * 256 * 256 / joules / 1e12 == pytest.approx(9.76, rel=0.002)


def test_hermes_in_four_phases():
    """Four pulses of the core's 130 ns and one read-out; nothing of it was derived from these figures."""
    chip, hardware = Chip.get("hermes_4phase"), presets.hermes()
    assert read_time(chip, hardware).ns == pytest.approx(521, rel=0.02)
    assert peak_tops(chip, hardware) == pytest.approx(16.1, rel=0.02)
    assert peak_tops(chip, hardware) / area(chip, hardware).mm2 == pytest.approx(0.4, rel=0.02)
    joules = PriceBook.get("hermes_4phase").prices[0].value * 1e-12
    assert 2 * 256 * 256 / joules / 1e12 == pytest.approx(2.48, rel=0.002)


def test_the_core_of_hermes():
    chip, hardware = Chip.get("hermes_core"), presets.hermes()
    assert read_time(chip, hardware).ns == 127 + 3
    assert peak_tops(chip, hardware) == pytest.approx(1.008, rel=0.002)
    assert peak_tops(chip, hardware) / area(chip, hardware).mm2 == pytest.approx(1.59, rel=0.002)
    joules = PriceBook.get("hermes_core").prices[0].value * 1e-12
    assert 2 * 256 * 256 / joules / 1e12 == pytest.approx(10.5, rel=0.002)


def test_attention_in_gain_cells():
    """A query's pulse, the scores' pulses, counting to 16 at 1 GHz; the rest of the 65 ns is named ``control``."""
    chip, hardware = Chip.get("gain_cell"), presets.gain_cell()
    found = attention_time(chip, hardware, scores=64, values=64)
    assert (found.drive, found.convert, found.latch) == (15 + 15, 16, 19)
    assert found.ns == 65
    one_head = Hardware(device=hardware.device, tile=Tile(rows=64, cols=64))
    assert area(chip, one_head, cores=1).mm2 == pytest.approx(0.5)
    pair = next(price for price in PriceBook.get("gain_cell").prices if price.counter == "attended_pairs")
    assert 1024 * pair.value / 1000 == pytest.approx(6.1)


def test_isaac_cycle_throughput_and_area():
    chip = Chip.get("isaac")
    assert read_time(chip, Hardware(tile=ISAAC.tile, dac=Converter(coding="amplitude"))).interval == 100
    assert chip.ns("convert") * 128 == 100  # the converter keeps up with the array
    read = read_time(chip, ISAAC)
    assert read.interval == 16 * 100  # 15 magnitude bits and the slot of the sign
    assert read.ns == 16 * 100 + 100  # the last pulse's columns are converted while no other is driven
    assert peak_tops(chip, ISAAC, 96) == pytest.approx(0.24576)  # of a core
    assert area(chip, ISAAC, cores=1).mm2 == pytest.approx(0.372, rel=0.002)
    whole = area(chip, ISAAC)
    assert whole.missing == {}
    assert whole.mm2 == pytest.approx(85.4, rel=0.002)
    assert whole.mm2 - 22.88 == pytest.approx(62.5, rel=0.002)
    assert 1000 * peak_tops(chip, ISAAC) / whole.mm2 == pytest.approx(478.95, rel=0.02)  # GOPS/mm2


# The model of a read


def test_pulses_by_coding_and_sign():
    chip = Chip("mine", Chip.get("hermes").parts, converter="sar", columns=8)
    times = {
        coding: read_time(chip, Hardware(dac=Converter(bits=4, coding=coding)))
        for coding in ("pwm", "rate", "amplitude", "bit_serial")
    }
    assert {coding: time.drive for coding, time in times.items()} == {
        "pwm": 7 + 3, "rate": 7 + 3, "amplitude": 1 + 3, "bit_serial": 3 * (1 + 3)
    }  # fmt: skip
    unsigned = Chip("mine", chip.parts, sign="none")
    assert read_time(unsigned, Hardware(dac=Converter(bits=4))).drive == 15 + 3
    assert read_time(unsigned, Hardware(dac=Converter(bits=4, coding="bit_serial"))).drive == 4 * (1 + 3)


def test_pulses_and_comparisons_before_rows_are_read():
    chip = Chip.get("hermes_4phase")
    assert screening_time(chip, Hardware(), None, 1, 5) == (4 * (127 + 3), 5)
    assert screening_time(chip, Hardware(dac=Converter(coding="amplitude")), 8, 1, 0)[0] == 4 * (1 + 3)
    unsigned = Chip("mine", chip.parts, sign="none")
    assert screening_time(unsigned, Hardware(), 4, 1, 2) == (15 + 3, 2)
    assert screening_time(unsigned, Hardware(), 4, 3, 0)[0] == 15 + 3 * 3


def test_conversions_by_kind_of_converter():
    parts = (*Chip.get("hermes").parts, Chip.get("isaac").parts[2])
    assert parts[-1].part == "convert"
    hardware = Hardware(adc=Converter(bits=6))
    step = 0.78125
    for converter, columns, expected in (("counter", 8, 0), ("ramp", 8, 32 * step), ("sar", 8, 8 * step)):
        chip = Chip("mine", parts, converter=converter, columns=columns)
        assert read_time(chip, hardware).convert == expected
    shared = Chip("mine", parts, converter="sar", columns=256)
    assert read_time(shared, hardware).convert == 256 * step
    assert read_time(shared, hardware, columns=100).convert == 100 * step
    held = Chip("mine", parts, converter="sar", columns=256, overlapped=True)
    assert read_time(held, hardware).interval == 256 * step + 2.94
    assert read_time(held, hardware).ns == read_time(shared, hardware).ns


def test_what_has_no_area_is_named():
    found = area(Chip.get("hermes"), Hardware(tile=Tile(rows=128)))
    assert found.mm2 == 0
    assert found.missing["cell"] == 64 * 128 * 256 * 2
    assert found.missing["adc"] == 64 * 256
    mesh = area(Chip.get("mesh"), Hardware(), chips=2).to_dict()
    assert mesh["by_part"]["tile"] == pytest.approx(2048 * 0.634)
    assert mesh["by_part"]["digital_unit"] == pytest.approx(128 * 256 * (1360 + 1640) * 1e-6)
    assert mesh["without_area"] == {}
    assert area(Chip.get("mesh"), Hardware(), comparators=512).missing == {"comparator": 512}
    own = Chip("mine", (Part("comparator", 5e-5, "mm2"),))
    assert area(own, Hardware(), comparators=512).mm2 == pytest.approx(512 * 5e-5)


# A book of one's own


def test_a_chip_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\ntiles: 4\nparts:\n  - {part: slot, value: 2.0, unit: ns, source: bench}\n")
    chip = Chip.get(str(path))
    assert (chip.name, chip.tiles, chip.ns("slot")) == ("mine", 4, 2.0)
    assert chip.missing(("slot", "latch")) == ("latch",)


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name: mine", "lacks its name or its list of parts"),
        ("name: mine\nparts: []\ncolour: red", "no field 'colour'"),
        ("name: mine\nparts: [{part: slot}]", "without part, value or unit"),
        ("name: mine\nparts: [{part: slots, value: 1, unit: ns}]", "no part 'slots'"),
        ("name: mine\nparts: [{part: slot, value: -1, unit: ns}]", "value = -1"),
        ("name: mine\nparts: [{part: slot, value: 1, unit: mm2}]", "give ns"),
        ("name: mine\nparts: [{part: slot, value: 1, unit: ns, evidence: rumour}]", "'rumour'"),
        ("name: mine\nparts: [{part: slot, value: 1, unit: ns}, {part: slot, value: 2, unit: ns}]", "slot twice"),
        ("name: mine\nparts: [3]", "has 3"),
        ("name: mine\ntiles: 0\nparts: []", "tiles = 0"),
        ("name: mine\nconverter: flash\nparts: []", "'flash'"),
        ("name: mine\noverlapped: 3\nparts: []", "overlapped = 3"),
    ],
)
def test_a_bad_chip_is_refused_by_name(tmp_path, text, named):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=named):
        Chip.get(str(path))


def test_an_unknown_chip_is_named():
    with pytest.raises(InputError, match="chip 'gold' does not exist: give one of gain_cell"):
        Chip.get("gold")
