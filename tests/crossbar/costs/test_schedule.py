"""Time of a token through a placed model, by hand."""

import pytest

from crossbar import Hardware, InputError, Ledger
from crossbar.costs.chips import Chip, Part
from crossbar.costs.floorplan import Block, Edge, floor_plan
from crossbar.costs.ledger import book
from crossbar.costs.schedule import chip_time

TIMES = {
    "slot": 1, "settle": 3, "latch": 10, "mac": 1, "special": 4, "hop": 2, "link_byte": 0.5, "chip_hop": 7,
    "dram_wait": 50, "dram_byte": 0.25,
}  # fmt: skip
CHIP = Chip("mine", tuple(Part(part, ns, "ns") for part, ns in TIMES.items()), tiles=1, width=4, height=1, lanes=2)
READ = 127 + 3 + 10
HARDWARE = {"a": Hardware(), "b": Hardware(), "c": Hardware(), "attention": Hardware()}


def ledger_of(**layers):
    with Ledger() as ledger:
        for layer, counts in layers.items():
            for name, count in counts.items():
                book(layer, name, count)
    return ledger


def a_diamond(tokens=1):
    """a feeds b and c side by side; both feed the activation."""
    layers = {"a": {"tile_reads": 1, "digital_macs": 8}, "b": {"tile_reads": 1}, "c": {"tile_reads": 1},
              "act": {"special_functions": 5}}  # fmt: skip
    counts = {name: {c: n * tokens for c, n in row.items()} for name, row in layers.items()}
    blocks = [Block("a", 1), Block("b", 1), Block("c", 1), Block("act", 0)]
    edges = [Edge("a", "b", 4), Edge("a", "c", 4), Edge("b", "act", 4), Edge("c", "act", 4)]
    return chip_time(ledger_of(**counts), tokens, floor_plan(blocks, edges, CHIP), HARDWARE)


def test_layers_side_by_side_wait_for_the_longer_way():
    found = a_diamond()
    stages = {stage.name: stage for stage in found.stages}
    assert stages["a"].ns == READ + 8 * 1 / 2
    assert stages["b"].start == 144 + 2 + 2  # a hop, and 4 bytes
    assert stages["c"].start == 144 + 4 + 2
    assert stages["act"].start == 148 + READ + 2 + 2  # in c's core: b's numbers come last
    assert found.latency == 292 + 5 * 4 / 2
    assert [stage.name for stage in found.path] == ["a", "b", "act"]
    assert found.waited() == {
        "word lines": 2 * 130, "read-out": 20, "digital units": 14, "network": 8, "converters": 0, "comparators": 0,
        "DRAM": 0,
    }  # fmt: skip
    assert next(iter(found.waited())) == "word lines"
    assert found.missing == ()


def test_schedules_by_hand():
    found = a_diamond(tokens=10)
    assert found.latency == a_diamond().latency  # counts are an average
    assert found.interval == READ
    assert found.pipelined(10) == ((302 + 9 * READ) / 10, 1e10 / (302 + 9 * READ), "tiles of a")
    assert found.decode() == (302, 1e9 / 302, "word lines")
    assert found.decode(2) == (151, 1e9 / 151, "word lines")
    assert found.decode(3) == (READ, 1e9 / READ, "tiles of a")
    # ten tokens in each layer: a's last outputs leave at 144 + 9 * READ, and so on along the longer way
    own = (144 + 9 * READ) + (4 + 9 * 2) + 10 * READ + (4 + 9 * 2) + 10 * 10
    assert found.layer_by_layer(10).ns == pytest.approx(own / 10)


def test_streams_from_dram_hide_digital_work():
    ledger = ledger_of(a={"digital_macs": 1000, "dram_bytes": 400}, b={"digital_macs": 10, "dram_bytes": 400})
    found = chip_time(ledger, 1, floor_plan([Block("a", 0), Block("b", 0)], [], CHIP), {})
    assert [stage.ns for stage in found.stages] == [500, 50 + 100]
    assert found.latency == 650  # where inputs come from is not known: one after another
    assert found.busy["DRAM"] == 200
    assert found.busy["digital unit of core 0"] == 505
    assert found.decode(10).limit == "digital unit of core 0"
    assert found.waited()["DRAM"] == 150


def test_attention_reads_keys_and_then_values():
    chip = Chip("mine", (*CHIP.parts, Part("convert", 3, "ns")), converter="sar", columns=128, lanes=2)
    # two heads, one query each, 300 pairs in three tiles of keys; 16 dimensions
    counts = {"attended_pairs": 300, "tile_reads": 6, "column_activations": 300, "adc_conversions": 300 + 3 * 16}
    found = chip_time(ledger_of(attention=counts), 1, floor_plan([Block("attention", 6)], [], chip), HARDWARE)
    (stage,) = found.stages
    assert stage.spent[:3] == (2 * 130, 3 * (50 + 8), 20)  # 100 scores and 16 outputs by two converters
    events = chip_time(
        ledger_of(attention=counts), 1, floor_plan([Block("attention", 6)], [], chip), HARDWARE, {"attention": 77.0}
    )
    assert events.stages[0].spent[:3] == (77, 0, 0)


def test_rows_are_chosen_before_they_are_read():
    """A pulse of 127 slots, or four of 15 together, and the comparisons that a query waits for; then what opens."""
    chip = Chip("mine", (*CHIP.parts, Part("compare", 2, "ns")), lanes=2)
    dense = {"attended_pairs": 300, "tile_reads": 6, "adc_conversions": 300 + 3 * 16}
    chosen = dense | {"tile_reads": 6 + 8, "screening_reads": 8, "comparisons": 900, "waited_comparisons": 2 * 7}
    plan = floor_plan([Block("attention", 6, across=6)], [], chip)
    for bits, drives, pulses in ((8, 1, 127 + 3), (5, 4, 15 + 4 * 3)):
        ledger = ledger_of(attention=chosen)
        ledger.add("attention", "screening_queries", 2, bits)
        ledger.add("attention", "screening_drives", 2 * drives, bits)
        found = chip_time(ledger, 1, plan, HARDWARE)
        assert found.waited()["word lines"] == 2 * 130 + pulses
        assert found.waited()["comparators"] == 7 * 2
        assert found.waited()["read-out"] == 2 * 10
        assert found.interval == found.latency == 2 * READ + pulses + 14
        assert found.missing == ()
    timed = chip_time(ledger, 1, plan, HARDWARE, {"attention": 77.0})
    assert (timed.latency, timed.missing) == (77, ("comparisons of rows",))
    only = ledger_of(attention={"tile_reads": 8, "screening_reads": 8, "comparisons": 9, "waited_comparisons": 14})
    only.add("attention", "screening_queries", 2, 8)  # what opens is read in digital
    only.add("attention", "screening_drives", 2, 8)
    assert chip_time(only, 1, plan, HARDWARE).latency == 130 + 14


def test_vectors_follow_one_another_on_the_same_tiles():
    ledger = ledger_of(a={"tile_reads": 2 * 5})
    found = chip_time(ledger, 1, floor_plan([Block("a", 2, across=2)], [], CHIP), HARDWARE)
    assert found.latency == 5 * READ
    assert found.interval == 5 * READ


def test_what_has_no_time_is_named():
    chip = Chip("mine", (Part("slot", 1, "ns"),))
    found = chip_time(ledger_of(a={"tile_reads": 1}), 1, floor_plan([Block("a", 1)], [], chip), HARDWARE)
    assert found.latency == 127
    assert "latch" in found.missing
    assert found.to_dict(1)["without_time"] == list(found.missing)
    assert "compare" not in found.missing
    screened = chip_time(ledger_of(a={"comparisons": 1}), 1, floor_plan([Block("a", 1)], [], chip), HARDWARE)
    assert screened.missing[-1] == "compare"
    assert found.to_dict(1)["schedules"]["decode"]["ns"] == 127
    assert set(found.to_dict(7)["schedules"]) == {"layer_by_layer", "pipelined"}


@pytest.mark.parametrize("call", ["decode", "pipelined", "layer_by_layer"])
def test_a_batch_of_none_is_refused(call):
    with pytest.raises(InputError, match="= 0"):
        getattr(a_diamond(), call)(0)
