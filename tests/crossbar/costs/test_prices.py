"""Price books, and ledgers priced by them."""

import pytest
import torch
from torch import nn

from crossbar import (
    AnalogLinear,
    Converter,
    Hardware,
    InputError,
    Ledger,
    Price,
    PriceBook,
    Tile,
    digital_baselines,
    presets,
    price,
)
from crossbar.costs.ledger import COUNTERS, book
from crossbar.costs.prices import DEFAULT, names


def ledger_of(**layers):
    with Ledger() as ledger:
        for layer, counts in layers.items():
            for name, count in counts.items():
                counter, _, bits = name.partition("__")
                book(layer, counter, count, int(bits) if bits else None)
    return ledger


def mine(*prices, **fields):
    return PriceBook("mine", prices, **fields)


@pytest.mark.parametrize("name", names())
def test_every_packaged_price_says_where_it_comes_from(name):
    packaged = PriceBook.get(name)
    assert packaged.name == name
    assert packaged.title
    assert packaged.prices
    for entry in packaged.prices:
        assert entry.source
        assert entry.value > 0


def test_the_published_figures_of_the_books():
    assert PriceBook.get("isaac").prices[0].value == 1.56
    four = {n: PriceBook.get(f"andrulis_{n}nm").prices[0].value for n in (65, 40, 32, 14)}
    assert four == {65: 6.49, 40: 2.61, 32: 1.71, 14: 0.36}
    table = {entry.bits: entry.value for entry in PriceBook.get("andrulis_22nm").prices}
    assert table == {4: 0.46, 5: 0.46, 6: 0.53, 7: 0.65, 8: 0.85, 9: 1.16, 10: 1.64}


# Published totals, from counts of what ran


def hermes_stream(hardware, vectors=50):
    layer = AnalogLinear.from_digital(nn.Linear(256, 256, bias=False), hardware)
    with Ledger() as ledger, torch.no_grad():
        layer(torch.ones(vectors, 256))
    return ledger, 2 * 256 * 256 * vectors


def test_hermes_all_in_gives_its_published_efficiency():
    ledger, operations = hermes_stream(presets.hermes())
    joules = price(ledger, "hermes").total.pj * 1e-12
    assert operations / joules / 1e12 == pytest.approx(9.76, abs=0.005)
    four = price(ledger, "hermes_4phase").total.pj * 1e-12
    assert four / joules == pytest.approx(52.9 / 13.4, rel=0.005)


def test_a_gain_cell_token_at_a_window_of_1024_takes_6_1_nanojoules():
    pairs = ledger_of(attention={"attended_pairs": 1024, "adc_conversions__8": 1024, "row_writes": 2})
    report = price(pairs, "gain_cell")
    assert report.total.pj == pytest.approx(6100)
    assert report.unpriced == {}
    assert report.by_evidence().keys() == {"simulated"}


def test_isaac_beside_hermes_on_the_same_stream():
    """One pulse a row is far below HERMES; what ISAAC itself does for 8-bit inputs and weights is above it."""
    analog = {"ADC", "DAC and row drive", "cells"}

    def per_product(hardware):
        found = price(hermes_stream(hardware)[0], "isaac").by_component()
        return sum(energy.pj for part, energy in found.items() if part in analog) / 50

    pulse = Hardware(output_noise=0.0)
    own = Hardware(
        tile=Tile(slices=4, slice_bits=2), dac=Converter(range="per_token", coding="bit_serial"), output_noise=0.0
    )
    assert per_product(pulse) == pytest.approx(256 * 1.56 + 256 * 0.39 + 65536 * 0.00183)
    assert per_product(own) == pytest.approx(28 * per_product(pulse))  # 7 magnitude bits, 4 slices
    assert per_product(pulse) < 13_429.508 / 20 < 13_429.508 < per_product(own)


# Rules


def test_energy_is_linear_in_the_counters():
    counts = {name: 3 + place for place, name in enumerate(COUNTERS)}
    once = price(ledger_of(a=counts), DEFAULT).by_component()
    thrice = price(ledger_of(a={name: 3 * n for name, n in counts.items()}), DEFAULT).by_component()
    assert {part: energy.pj * 3 for part, energy in once.items()} == pytest.approx(
        {part: energy.pj for part, energy in thrice.items()}
    )
    apart = price(ledger_of(a=counts, b=counts, c=counts), DEFAULT)
    assert apart.total.pj == pytest.approx(sum(energy.pj for energy in thrice.values()))


def test_what_has_no_price_is_named_with_its_count():
    report = price(ledger_of(a={"adc_conversions__5": 7, "barriers": 2}, b={"barriers": 3}), "isaac")
    assert report.unpriced == {"adc_conversions_5bit": 7, "barriers": 5}
    assert report.total == (0, 0, 0)
    assert price(ledger_of(a={"adc_conversions__5": 7}), "andrulis_22nm").total.pj == pytest.approx(7 * 0.46)


def test_what_became_of_events_and_rows_takes_nothing():
    ledger = ledger_of(attention={"events_dropped": 3, "expired_row_reads": 4, "lost_pairs": 5})
    report = price(ledger, "isaac")
    assert (report.total.pj, report.unpriced) == (0, {})


def test_a_count_without_bits_takes_the_default_price():
    assert price(ledger_of(a={"adc_conversions": 4}), "isaac").total.pj == pytest.approx(4 * 1.56)
    assert price(ledger_of(a={"digital_macs": 4}), "horowitz").total.pj == pytest.approx(6.0)
    assert price(ledger_of(a={"digital_macs__8": 4}), "horowitz").total.pj == pytest.approx(0.92)


def test_an_all_in_price_and_its_terms_are_never_added():
    counts = {"tile_reads": 10, "adc_conversions__8": 2560, "row_activations": 2560, "dac_conversions__8": 2560}
    report = price(ledger_of(tile=counts, other={"adc_conversions__8": 100}), "hermes + isaac")
    assert report.by_layer()["tile"].pj == pytest.approx(10 * 13429.508)
    assert report.by_layer()["other"].pj == pytest.approx(156)
    assert set(report.covered) == {"adc_conversions_8bit", "row_activations", "dac_conversions_8bit"}
    assert report.unpriced == {}


def test_the_first_of_joined_books_counts():
    ledger = ledger_of(a={"adc_conversions__8": 10, "digital_macs": 1})
    joined = price(ledger, "andrulis_14nm + isaac + horowitz")
    assert joined.total.pj == pytest.approx(10 * 0.36 + 1.5)
    assert joined.book == "andrulis_14nm + isaac + horowitz"


def test_bounds_carry_through():
    total = price(ledger_of(a={"dram_bytes": 8}), "horowitz").total
    assert total == pytest.approx((1950, 1300, 2600))


def test_static_power_needs_a_time():
    quiet = ledger_of()
    assert price(quiet, "truenorth").unpriced == {"static_seconds": 0}
    report = price(quiet, "truenorth", seconds=2e-3)
    assert report.by_component() == {"static": pytest.approx((64e-3 * 2e-3 * 1e12,) * 3)}
    assert report.unpriced == {}


def test_figures_of_one_token():
    ledger = ledger_of(a={"adc_conversions__8": 10})
    assert price(ledger, "isaac", tokens=5).to_dict()["pj_per_token"] == pytest.approx(3.12)
    assert price(ledger, "isaac").to_dict()["pj_per_token"] is None
    assert ledger.per_token(5) == {"a": {"adc_conversions_8bit": 2.0}}


def test_the_table_has_a_row_for_each_counter_of_each_layer():
    table = price(ledger_of(a={"cell_macs": 10}, b={"cell_macs": 20, "sram_bytes": 1}), "isaac").table()
    assert table[["layer", "counter", "component"]].to_numpy().tolist() == [
        ["a", "cell_macs", "cells"],
        ["b", "cell_macs", "cells"],
        ["b", "sram_bytes", "SRAM"],
    ]
    assert table.pj.tolist() == pytest.approx([0.0183, 0.0366, 2.7])


# A book of one's own


def test_a_book_from_a_file(tmp_path):
    path = tmp_path / "mine.yaml"
    path.write_text("name: mine\nprices:\n  - {counter: cell_macs, value: 0.5, evidence: measured, source: bench}\n")
    report = price(ledger_of(a={"cell_macs": 4}), str(path))
    assert (report.book, report.total.pj) == ("mine", 2.0)
    assert report.by_evidence().keys() == {"measured"}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("name: [", "is not YAML"),
        ("name: mine\nname: yours\nprices: []", "has 'name' again in line 2"),
        ("name: mine", "lacks its name or its list"),
        ("name: mine\nprices: []\ncolour: red", "no field 'colour'"),
        ("name: mine\nprices: [{counter: cell_macs}]", "without counter or value"),
        ("name: mine\nprices: [{counter: cellmacs, value: 1}]", "counter 'cellmacs'"),
        ("name: mine\nprices: [{counter: cell_macs, value: -1}]", "value = -1"),
        ("name: mine\nprices: [{counter: cell_macs, value: 1, low: 2}]", "not from low to high"),
        ("name: mine\nprices: [{counter: cell_macs, value: 1, evidence: rumour}]", "'rumour'"),
        ("name: mine\nprices: [{counter: cell_macs, value: 1}, {counter: cell_macs, value: 2}]", "cell_macs twice"),
        ("name: mine\nprices: [3]", "has 3"),
    ],
)
def test_a_bad_book_is_refused_by_name(tmp_path, text, named):
    path = tmp_path / "mine.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=named):
        PriceBook.from_yaml(path)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: PriceBook.get("gold"), "'gold' does not exist: give one of andrulis_14nm"),
        (lambda: PriceBook.from_yaml("no.yaml"), "'no.yaml' does not exist"),
        (lambda: price(Ledger(), "isaac", seconds=-1.0), "seconds = -1"),
        (lambda: price(Ledger(), "isaac", tokens=0), "tokens = 0"),
        (lambda: mine(static_watts=-1.0), "static_watts"),
        (lambda: Price("cell_macs", 1.0, bits=0), "bits = 0"),
        (lambda: digital_baselines(macs=-1, numbers=0), "macs = -1"),
        (lambda: Ledger().per_token(0), "tokens = 0"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(InputError, match=named):
        make()


# Digital baselines


def test_baselines_of_one_attended_pair():
    rows = {row.machine: row for row in digital_baselines(macs=128, numbers=128)}
    assert {name: round(row.pj) for name, row in rows.items()} == {
        "int8 logic, 45 nm": 29,
        "H100 at its peak": 181,
        "H100 bf16": 53_500,
        "HBM alone, bf16": 8_130,
        "Orin Nano int8": 28_200,
    }
    assert {row.bound for row in rows.values()} == {"compute", "bandwidth"}


def test_reuse_divides_the_bandwidth_bound_alone():
    once, shared = (digital_baselines(macs=1280, numbers=n) for n in (1280, 128))
    for a, b in zip(once, shared, strict=True):
        assert a.pj / b.pj == pytest.approx(10 if a.bound == "bandwidth" else 1)
