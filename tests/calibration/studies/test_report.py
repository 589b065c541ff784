"""The report: one page that needs nothing else, and its figures."""

import math
import re

import pytest

from calibration import Study
from calibration.studies.sentences import summary
from crossbar import InputError
from tests.calibration.studies import tiny
from tests.limits import files_of_at_most

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
        "What costs the most is adc bits: 0.200 (0.200 to 0.200) from 8 to 4.",
        "Over all 8 settings and times that have both, recipe fast gains in 8, does harm in 0.",
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


def sentences(tmp_path, config, score, **options):
    return summary(made := tiny.made_study(tmp_path / "s.sqlite", config, score, **options), made.table())


NOISE = (0.0, 0.004, -0.003)  # of chips, in what a recipe gains


def test_harm_is_told_where_it_is(tmp_path):
    """Praise at the reference does not speak for levels at which a recipe does harm."""

    def harmful(axes, seconds, seed):
        base = 0.3 + 0.05 * axes["hardware.adc.bits"]
        if axes["recipe"] is None:
            return {"analog": base}
        gain = {4: -0.2, 8: 0.1}[axes["hardware.adc.bits"]]
        return {"calibrated": base + gain + NOISE[seed]}

    told = sentences(tmp_path, CONFIG, harmful)
    assert "Recipe fast gains 0.100 (0.092 to 0.109) on the same 3 chips there." in told
    assert (
        "Over all 8 settings and times that have both, recipe fast gains in 4, does harm in 4: at adc bits 4 (4 of 4)."
        in told
    )
    (costs,) = [sentence for sentence in told if "costs" in sentence]
    assert costs.startswith("What costs the most is adc bits")


@pytest.mark.parametrize(
    ("gain", "words"),
    [
        (-0.1, "Recipe fast does harm and loses 0.100 (0.091 to 0.108) on the same 3 chips there."),
        (0.0, "Recipe fast changes nothing that can be told: its gain is 0.000 (-0.008 to 0.009) on the same 3 chips"),
    ],
)
def test_no_gain_is_claimed_that_is_none(tmp_path, gain, words):
    def flat(axes, seconds, seed):
        return {"analog": 0.5} if axes["recipe"] is None else {"calibrated": 0.5 + gain + NOISE[seed]}

    told = sentences(tmp_path, CONFIG, flat)
    assert any(sentence.startswith(words) for sentence in told), told
    assert any(sentence.startswith("No field costs more than these chips differ by") for sentence in told)


def test_a_recipe_is_no_cost(tmp_path):
    config = {"recipe": "fast", "grid": {"recipe": [None, "fast"], "seed": "0..2"}}
    told = sentences(
        tmp_path, config, lambda axes, *of: {"analog": 0.9} if axes["recipe"] is None else {"calibrated": 0.1}
    )
    assert not any("costs" in sentence for sentence in told)
    assert any("does harm and loses 0.800" in sentence for sentence in told)


@pytest.mark.parametrize("wrong", [math.inf, math.nan])
def test_scores_that_are_no_numbers(tmp_path, wrong):
    def broken(axes, seconds, seed):
        value = wrong if axes["hardware.adc.bits"] == 4 and seconds > 0 else 10.0 + seed
        return {"analog" if axes["recipe"] is None else "calibrated": value}

    study = tiny.made_study(tmp_path / "s.sqlite", CONFIG, broken, primary="perplexity", digital=9.0)
    table = study.table()
    bad = table.query("`hardware.adc.bits` == 4 and time > 0")
    assert len(bad) == 4
    assert bad["low"].isna().all()
    assert (bad["mean"] == math.inf).all() if wrong == math.inf else bad["mean"].isna().all()
    assert table.query("time == 0")["mean"].tolist() == pytest.approx([(10 * 11 * 12) ** (1 / 3)] * 8)
    told = summary(study, table)
    assert any("12 of 48 scores are infinite or not a number" in sentence for sentence in told)
    if wrong == math.inf:
        assert any("is adc bits: without bound from 8 to 4, where scores are infinite" in s for s in told)
    study.report(tmp_path / "report.html")
    study.export(tmp_path / "scores.csv")
    assert study.pareto()["mean"].isna().sum() == (0 if wrong == math.inf else 4)


def test_names_that_pictures_could_take_for_more(tmp_path):
    """Mathematics, markup, and two names that make one file name."""
    text = "$\\frac{ <b>[/red] & {x}"
    fields = ["hardware.dac.bits", "hardware.output_noise"]
    grid = {
        text: {"fields": fields[:1], "values": [4, 8]},
        text.replace("$", "-"): {"fields": fields[1:], "values": [0.0, 0.1]},
        "pattern": ["window({size})" + " | sinks(1)" * 30],
        "seed": "0..1",
    }
    config = {"title": text, "grid": grid}
    study = tiny.made_study(tmp_path / "s.sqlite", config, lambda axes, seconds, seed: {"analog": 0.5 + 0.1 * seed})
    study.report(tmp_path / "report.html")
    page = (tmp_path / "report.html").read_text()
    assert "<h1>$\\frac{ &lt;b&gt;[/red] &amp; {x}</h1>" in page
    assert "<b>" not in page
    paths = study.write_figures(tmp_path / "figures")
    assert len(set(paths)) == len(paths) == 2 * 7
    study.export(tmp_path / "scores.csv")


def test_a_report_before_the_first_task_has_chips(tmp_path):
    """What is quoted, the metric of the first setting, has no score yet."""
    plan = tiny.made_plan({"grid": {"task": ["wordsim", "lee"], "seed": "0..1"}})
    with tiny.Store(tmp_path / "s.sqlite", create=True) as store:
        store.enter(plan)
        run = store.begin(plan.id, plan.provenance("local", 1))
        for cell in plan.cells.values():
            if cell.seed is not None:
                store.record(cell.id, tiny.Scored(cell.seconds, {"analog": {"pearson": 0.5}}, 1.0, []), run)
    Study(tmp_path / "s.sqlite").report(tmp_path / "report.html")
    assert "2 of 3 cells are done, 1 were not run yet." in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize("what", ["report", "export", "write_figures"])
def test_a_full_disk_leaves_nothing(made, tmp_path, what):
    target = tmp_path / {"report": "report.html", "export": "scores.csv", "write_figures": "figures"}[what]
    write = getattr(made, what)
    with files_of_at_most(1000), pytest.raises(InputError, match="cannot be written"):
        write(target)
    assert [path.name for path in tmp_path.rglob("*") if path.is_file()] == []
    write(target)
    assert target.exists()


@pytest.mark.parametrize("what", ["report", "export", "write_figures"])
def test_targets_that_are_no_files(made, tmp_path, what):
    name = {"report": "report.html", "export": "scores.csv", "write_figures": "figures"}[what]
    (tmp_path / "file").write_text("kept")
    (tmp_path / name).mkdir()
    (tmp_path / name / "inside").write_text("kept")
    for target in (tmp_path / "file" / name, *([] if what == "write_figures" else [tmp_path / name])):
        with pytest.raises(InputError):
            getattr(made, what)(target)
    assert (tmp_path / "file").read_text() == (tmp_path / name / "inside").read_text() == "kept"
