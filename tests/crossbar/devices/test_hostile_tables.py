"""Price books and tables of measured devices, damaged: refused in one sentence, or right (issue 18)."""

import math
from pathlib import Path

import pytest
import torch

import crossbar
from crossbar import InputError, PriceBook
from crossbar.costs import prices
from crossbar.devices import Measured, from_csv
from crossbar.storage.plain_values import load_yaml
from tests.mutations import of_bytes, of_values

BOOKS = Path(crossbar.__file__).parent / "costs" / "price_books"
TABLE = (
    b"target_us,mean_us,std_us,drift_mean,drift_std\n0,0.2,0.3,0.05,0.01\n10,9.5,0.7,0.04,0.02\n25,24,1,-0.01,0.02\n"
)


def test_damaged_price_books_are_refused_or_price():
    """Bytes, and values of a book: what is taken has prices that are finite and not below 0."""
    good = (BOOKS / "nvsim_reram.yaml").read_text()
    values = load_yaml("book", good)
    texts = [damaged.decode("utf-8", "replace") for damaged in of_bytes(good.encode(), 250)]
    taken = 0
    for damaged in [*texts, *of_values(values, 250)]:
        try:
            book = prices._of_values(load_yaml("book", damaged) if isinstance(damaged, str) else damaged, "book")
        except InputError:
            continue
        taken += 1
        for price in book.prices:
            assert 0 <= price.low_value <= price.value <= price.high_value <= 1e15
    assert taken > 60


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ("{counter: row_writes, value: -1}", "value = -1 is not allowed: give a finite number from 0 to"),
        ("{counter: row_writes, value: .nan}", "value = nan is not allowed"),
        ("{counter: row_writes, value: 1e999}", "value = inf is not allowed"),
        ("{counter: row_writes, value: 1.0e30}", r"value = 1e\+30 is not allowed"),
        ("{counter: row_writes, value: text}", "value = 'text' is not allowed"),
        ("{counter: row_writes, value: null}", "value = None is not allowed"),
        ("{counter: [row_writes], value: 1}", r"no use for counter \['row_writes'\]"),
        (
            "{counter: row_writes, value: 1, covers: row_reads}",
            "covers = 'row_reads' is not allowed: give a list of texts",
        ),
        ("{counter: row_writes, value: 1, covers: [[]]}", r"covers = \[\[\]\] is not allowed"),
        ("{counter: row_writes, value: 1, default: 3}", "default = 3 is not allowed: give true or false"),
        ("{counter: row_writes, value: 1, bits: 65}", "bits = 65 is not allowed"),
        ("{counter: row_writes, value: 1, node: [32]}", r"node = \[32\] is not allowed: give a text"),
        ("{counter: row_writes, value: 1, evidence: {}}", "evidence = {} is not allowed"),
        ("3", "has 3: give a mapping"),
    ],
)
def test_prices_that_cannot_be_are_refused(tmp_path, entry, words):
    path = tmp_path / "book.yaml"
    path.write_text(f"name: mine\nprices:\n  - {entry}\n")
    with pytest.raises(InputError, match=words):
        PriceBook.from_yaml(path)


def test_damaged_tables_are_refused_or_give_conductances(tmp_path):
    path, taken = tmp_path / "cells.csv", 0
    draw = torch.Generator().manual_seed(0)
    for damaged in of_bytes(TABLE, 500):
        path.write_bytes(damaged)
        try:
            device = from_csv(path)
        except InputError as error:
            assert len(str(error).splitlines()) == 1  # noqa: PT017  # some of the damaged files are still tables
            continue
        taken += 1
        target = torch.linspace(0, device.g_max, 50)
        state = device.program(target, lambda purpose: torch.randn(50, generator=draw))
        for seconds in (0.0, 1e12):
            found = device.drifted(state, seconds)
            assert found.isfinite().all()
            assert (found >= 0).all()
    assert taken >= 3  # most damage leaves no number where one is wanted


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        (((0, 1e-46), (0, 0), (0, 0)), r"target_us = 1e-46 is not allowed: give a finite number from 0\.001 to 100000"),
        (((0, 25 - 1e-6, 25), (0, 1, 2), (0, 0, 0)), "less than a millionth of the largest target above 24.999999"),
        (((0, 1e38), (0, 0), (0, 0)), r"target_us = 1e\+38 is not allowed"),
        (((0, 25), (0, 10**400), (0, 0)), "mean_us"),
        (((0, 25), (0, 25), (0, math.nan)), "std_us = nan is not allowed"),
        (
            ((0, 25), (0, 25), (0, 0), (0, 1.5), (0, 0)),
            "drift_mean = 1.5 is not allowed: give a finite number from -1 to 1",
        ),
        (((0, 25), (0, 25), (0, 0), (0, 0), (0, 1.5)), "drift_std = 1.5 is not allowed"),
        ((tuple(range(10_001)),) * 3, "has measurements at 10,001 targets: give at most 10,000"),
    ],
)
def test_tables_that_cannot_be_are_refused(rows, words):
    with pytest.raises(InputError, match=words):
        Measured(*rows)


def test_a_table_that_is_too_large_is_refused(tmp_path):
    path = tmp_path / "cells.csv"
    path.write_bytes(b"0,0,0\n" * 200_000)
    with pytest.raises(InputError, match="is larger than 1,048,576 bytes: give a CSV file of at most that"):
        from_csv(path)
