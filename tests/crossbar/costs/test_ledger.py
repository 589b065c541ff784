"""Ledgers: who counts, and what the sums are."""

import json
import threading

import pytest
import torch
from torch import nn

from crossbar import Hardware, InputError, Ledger, Tile, convert, program
from crossbar.costs import ledger as ledgers
from crossbar.costs.ledger import book, book_later, counting, unbooked


def test_counts_add_up_by_layer_and_name():
    with Ledger() as ledger:
        book("a", "adc_conversions", 3, bits=8)
        book("a", "adc_conversions", 4, bits=8)
        book("a", "adc_conversions", 5, bits=6)
        book("a", "adc_conversions", 6)
        book("b", "adc_conversions", 10, bits=8)
        book("b", "cell_macs", 2**70)
    assert ledger.totals() == {"adc_conversions": 28, "cell_macs": 2**70}
    assert ledger.to_dict() == {
        "a": {"adc_conversions_8bit": 7, "adc_conversions_6bit": 5, "adc_conversions": 6},
        "b": {"adc_conversions_8bit": 10, "cell_macs": 2**70},
    }


def test_nothing_is_counted_outside():
    ledger = Ledger()
    book("a", "cell_macs", 1)
    with ledger:
        book("a", "cell_macs", 2)
    book("a", "cell_macs", 4)
    assert ledger.totals() == {"cell_macs": 2}


def test_ledgers_nest():
    with Ledger() as outer:
        book("a", "cell_macs", 1)
        with Ledger() as inner:
            book("a", "cell_macs", 10)
        book("a", "cell_macs", 100)
    assert outer.totals() == {"cell_macs": 111}
    assert inner.totals() == {"cell_macs": 10}


def test_a_ledger_goes_on_when_opened_again():
    ledger = Ledger()
    for _ in range(2):
        with ledger:
            book("a", "cell_macs", 1)
    assert ledger.totals() == {"cell_macs": 2}


def test_an_open_ledger_is_not_opened_again():
    with Ledger() as ledger:
        with pytest.raises(InputError, match="this ledger is open already: open another Ledger inside it"), ledger:
            pass
        book("a", "cell_macs", 1)
    assert not counting()
    assert ledger.totals() == {"cell_macs": 1}


def test_an_error_closes_the_ledger():
    ledger = Ledger()

    def fail():
        book("a", "cell_macs", 1)
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"), ledger:
        fail()
    assert not counting()
    book("a", "cell_macs", 2)
    assert ledger.totals() == {"cell_macs": 1}


def test_counting_tells_whether_anyone_listens():
    assert not counting()
    with Ledger():
        assert counting()
        with Ledger():
            assert counting()
        assert counting()
    assert not counting()


def test_another_threads_work_is_not_counted():
    with Ledger() as ledger:
        thread = threading.Thread(target=book, args=("a", "cell_macs", 1))
        thread.start()
        thread.join()
    assert ledger.totals() == {}


def test_an_empty_ledger():
    ledger = Ledger()
    assert ledger.totals() == {}
    assert ledger.to_dict() == {}


def test_a_model_by_hand():
    model = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 4))
    convert(model, Hardware(tile=Tile(4, 2)))
    with Ledger() as ledger, torch.no_grad():
        model(torch.zeros(2, 3, 10))
    assert ledger.totals() == {
        "row_activations": 6 * (10 * 4 + 7 * 2),  # inputs times column tiles
        "dac_conversions": 6 * (10 * 4 + 7 * 2),
        "adc_conversions": 6 * (7 * 3 + 4 * 2),  # outputs times row tiles
        "cell_macs": 6 * (70 + 28),
        "tile_reads": 6 * (4 * 3 + 2 * 2),
        "sram_bytes": 6 * (10 + 2 * 7 + 7 + 2 * 4),
        "digital_macs": 6 * (7 * 3 + 4 * 2),
    }
    assert all(type(count) is int for count in ledger.totals().values())
    assert json.loads(json.dumps(ledger.to_dict())) == ledger.to_dict()


def test_programming_writes_every_row_of_every_tile():
    model = nn.Sequential(nn.Linear(10, 7), nn.ReLU(), nn.Linear(7, 4))
    convert(model, Hardware(tile=Tile(4, 2)))
    with Ledger() as ledger:
        program(model)
    # inputs times column tiles: a row of a tile is written at once
    assert ledger.to_dict() == {"0": {"row_writes": 10 * 4}, "2": {"row_writes": 7 * 2}}


def of_two(numbers):
    book("a", "cell_macs", 10 * numbers[0] + numbers[1])


def test_numbers_of_a_device_are_booked_when_a_ledger_is_read():
    asked = []

    def then(numbers):
        asked.append(numbers)
        of_two(numbers)

    with Ledger() as outer:
        book_later("a", torch.tensor([1, 2]), then)
        with Ledger() as inner:
            book_later("b", torch.tensor([3, 4]), then)
            with unbooked():
                book_later("a", torch.tensor([5, 6]), then)
        book("c", "cell_macs", 100)
        assert not asked
        assert inner.totals() == {"cell_macs": 34}
        assert asked == [[3, 4]]
        assert outer.to_dict() == {"a": {"cell_macs": 46}, "b": {}, "c": {"cell_macs": 100}}
        book_later("a", torch.tensor([0, 7]), of_two)
    assert inner.totals() == {"cell_macs": 34}
    assert outer.totals() == {"cell_macs": 153}


def test_a_ledger_keeps_no_more_numbers_than_fit(monkeypatch):
    monkeypatch.setattr(ledgers, "_MOST_WAITING", 3)
    booked = []
    with Ledger() as ledger:
        for index in range(7):
            book_later("a", torch.tensor([index]), booked.extend)
    assert booked == [0, 1, 2, 3, 4, 5]
    assert ledger.totals() == {}
    assert booked == [0, 1, 2, 3, 4, 5, 6]
