"""The report: one page that needs nothing else, and its figures."""

import re

import pytest

from calibration import Study
from crossbar import InputError
from tests.calibration.studies import tiny

FIGURES = [
    "over-time-hardware-adc-bits",
    "over-time-pattern",
    "two-by-two",
    "staircase",
    "sensitivity",
    "pareto",
]
CONFIG = {
    "title": "Made <up> & checked",
    "pattern": "dense",
    "grid": {
        "hardware.adc.bits": [4, 8],
        "pattern": ["dense", "window(2)"],
        "recipe": [None, "fast"],
        "time": ["0s", "1d"],
        "seed": "0..2",
    },
}


def score(axes, seconds, seed):
    value = 0.05 * axes["hardware.adc.bits"] + 0.01 * seed - 0.1 * (seconds > 0)
    if axes["recipe"] is None:
        return {"analog": value}
    return {"after InputRanges": value + 0.05, "calibrated": value + 0.1}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return tiny.made_study(tmp_path_factory.mktemp("made") / "s.sqlite", CONFIG, score)


@pytest.fixture(scope="module")
def page(made, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "report.html"
    made.report(path)
    return path.read_text()


def test_it_needs_nothing_else(page):
    assert not re.findall(r"""(?:src|href)=["'](?!data:|#)""", page)
    assert not re.findall(r"@import|url\(", page)
    assert "default-src 'none'" in page


def test_it_says_what_was_found(page):
    assert "<h1>Made &lt;up&gt; &amp; checked</h1>" in page
    assert "50 of 50 cells are done." in page
    for sentence in (
        "spearman at 1 d with adc bits 8, pattern dense: digital 0.900; analog 0.310",
        "Recipe fast gains 0.100",
        "What costs the most is adc bits: 0.200 from 8 to 4.",
        "95% Student-t interval of the mean over chips",
        "made up",
        "ohmformer study study.yaml",
        "hardware.adc.bits",
        "torch",
    ):
        assert sentence in page, sentence


def test_figures(page, made, tmp_path):
    assert re.findall(r'<figure id="([^"]+)"', page) == FIGURES
    paths = made.write_figures(tmp_path / "figures")
    assert sorted(path.name for path in paths) == sorted(
        f"{name}.{kind}" for name in FIGURES for kind in ("svg", "pdf")
    )
    assert sorted((tmp_path / "figures").iterdir()) == sorted(paths)
    for path in paths:
        assert path.read_bytes().startswith(b"%PDF" if path.suffix == ".pdf" else b"<?xml")


def test_it_is_the_same_each_time(page, made, tmp_path):
    made.report(tmp_path / "again.html")
    assert (tmp_path / "again.html").read_text() == page


def test_a_store_without_a_score(tmp_path):
    plan = tiny.made_plan(CONFIG)
    with tiny.Store(tmp_path / "s.sqlite", create=True) as store:
        store.enter(plan)
    with pytest.raises(InputError, match="no finished chip"):
        Study(tmp_path / "s.sqlite").report(tmp_path / "report.html")
    with pytest.raises(InputError, match="folder"):
        Study(tmp_path / "s.sqlite").report(tmp_path / "no" / "report.html")


def test_an_unfinished_study_has_a_report_too(tmp_path):
    """Nothing is there yet at the values that figures hold."""
    plan = tiny.made_plan(CONFIG)
    with tiny.Store(tmp_path / "s.sqlite", create=True) as store:
        store.enter(plan)
        run = store.begin(plan.id, plan.provenance("local", 1))
        (setup,) = {s.setup for s in plan.settings if list(s.axes.values()) == [4, "window(2)", None]}
        for cell in plan.cells.values():
            if cell.setup == setup:
                store.record(cell.id, tiny.Scored(cell.seconds, {"analog": {"spearman": 0.5}}, 1.0, []), run)
    Study(tmp_path / "s.sqlite").report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "6 of 50 cells are done, 44 were not run yet." in page
    assert re.findall(r'<figure id="([^"]+)"', page) == FIGURES
