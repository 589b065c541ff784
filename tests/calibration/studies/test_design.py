"""What a study varies: grids, samples, and what is refused before anything runs."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.studies import design
from calibration.studies.fields import DEFAULTS, resolve
from crossbar import InputError


def points(config):
    return [
        (found.labels, seconds, seed)
        for found in design.read(config).combinations()
        for seconds in found.times
        for seed in found.seeds
    ]


def test_grid():
    config = {"grid": {"hardware.adc.bits": [4, 8], "time": ["1h", 60], "seed": "2..4"}}
    expected = [({"hardware.adc.bits": b}, t, s) for b in (4, 8) for t in (3600.0, 60.0) for s in (2, 3, 4)]
    assert points(config) == expected
    assert design.read(config).points == 12


def test_fields_that_vary_together():
    both = {"fields": ["hardware.dac.bits", "hardware.adc.bits"], "values": [4, 6]}
    (first, second) = design.read({"grid": {"bits": both}}).combinations()
    assert first.labels == {"bits": 4}
    assert [second.values["hardware"][name]["bits"] for name in ("dac", "adc")] == [6, 6]
    assert first.values["hardware"]["device"] == second.values["hardware"]["device"]


def test_a_whole_comes_before_its_parts():
    grid = {"hardware.adc.bits": [4], "hardware": ["pcm", "ideal"]}
    found = list(design.read({"grid": grid}).combinations())
    assert [point.values["hardware"]["adc"]["bits"] for point in found] == [4, 4]
    assert [point.values["hardware"]["device"]["kind"] for point in found] == ["pcm", "ideal"]


def test_several_grids_hold_what_they_do_not_vary():
    grids = [{"hardware.adc.bits": [4, 6], "recipe": [None, "fast"]}, {"hardware.output_noise": [0.0]}]
    read = design.read({"grid": grids, "recipe": "fast"})
    assert read.points == 5
    labels = [found.labels for found in read.combinations()]
    assert labels[-1] == {"hardware.adc.bits": 8, "recipe": "fast", "hardware.output_noise": 0.0}
    assert labels[0] == {"hardware.adc.bits": 4, "recipe": None, "hardware.output_noise": 0.04}
    assert [axis.values for axis in read.axes] == [(4, 6, 8), (None, "fast"), (0.0, 0.04)]


def test_samples_are_drawn_once_for_all_grids():
    fields = {"hardware.output_noise": {"low": 0.01, "high": 1.0, "scale": "log"}, "hardware.adc.bits": [4, 6]}
    config = {"grid": {"seed": "0..1"}, "random": {"samples": 200, "seed": 3, "fields": fields}}
    read = design.read(config)
    assert read.points == 400
    assert read.samples == design.read(config).samples
    noise = [sample["hardware.output_noise"] for sample in read.samples]
    assert all(0.01 <= value <= 1.0 for value in noise)
    # Uniform logarithms on a decade 2 wide: deviation 2 / sqrt(12), so 4 standard errors of the mean are 0.16.
    assert sum(map(math.log10, noise)) / 200 == pytest.approx(-1, abs=4 * 2 / math.sqrt(12 * 200))
    # A fair choice of two, 200 times: 4 deviations are 28.
    assert sum(sample["hardware.adc.bits"] == 4 for sample in read.samples) == pytest.approx(100, abs=28)
    assert read.samples != design.read({**config, "random": {**config["random"], "seed": 4}}).samples


@given(st.integers(0, 50), st.integers(1, 50), st.sampled_from(["linear", "log"]))
def test_whole_numbers_stay_within_their_bounds(low, width, scale):
    low += scale == "log"
    spread = {"low": low, "high": low + width, "scale": scale}
    read = design.read({"random": {"samples": 30, "fields": {"task.pairs": spread}}})
    values = [sample["task.pairs"] for sample in read.samples]
    assert all(isinstance(value, int) and low <= value <= low + width for value in values)


REFUSED = [
    ({"grids": {}}, "'grids'", "title, model"),
    ({"title": 3}, "title"),
    ({"grid": 3}, "grid = 3"),
    ({"grid": {"hardware.adc.bits": []}}, "hardware.adc.bits", "list of one value or more"),
    ({"grid": {"hardware.adc.bits": 4}}, "hardware.adc.bits", "list"),
    ({"grid": {"hardware.adc.bits": [4, 4]}}, "lists 4 twice"),
    ({"grid": {"colour": [1]}}, "'colour'", "hardware"),
    ({"grid": {"time.hours": [1]}}, "'time.hours'"),
    ({"grid": {"time": ["soon"]}}, "soon"),
    ({"grid": {"seed": ["first"]}}, "seed = 'first'"),
    ({"grid": {"seed": "5..1"}}, "seed"),
    ({"grid": {"bits": {"fields": [], "values": [1]}}}, "'bits'"),
    ({"grid": {"both": {"fields": ["time", "hardware.adc.bits"], "values": [1]}}}, "time or seed"),
    ({"grid": {"hardware.adc.bits": [4], "b": {"fields": ["hardware.adc.bits"], "values": [6]}}}, "varies twice"),
    ({"grid": {"recipe.DriftCompensation.reads": [4]}}, "needs a recipe"),
    ({"grid": {"seed": "0..9999999"}}, "1,000,000"),
    (
        {"grid": {"seed": "0..9999", "hardware.adc.bits": list(range(1, 11)), "task.pairs": list(range(100))}},
        "10,000,000",
    ),
    ({"random": {"samples": 0, "fields": {"seed": [1]}}}, "random.samples = 0"),
    ({"random": {"samples": 2, "fields": {}}}, "random.fields"),
    ({"random": {"samples": 2, "fields": {"seed": {"low": 3, "high": 1}}}}, "low < high"),
    ({"random": {"samples": 2, "fields": {"seed": {"low": 0, "high": 1, "scale": "log"}}}}, "log"),
    ({"random": {"count": 2}}, "'count'"),
]


@pytest.mark.parametrize(("config", "words"), [(case[0], case[1:]) for case in REFUSED])
def test_refused_in_one_sentence(config, words):
    with pytest.raises(InputError) as refusal:
        design.read(config)
    assert "\n" not in str(refusal.value)
    for word in words:
        assert word in str(refusal.value)


@pytest.mark.parametrize(
    "text", ["grid: [", "- 1\n- 2", "seed: 0\nseed: 1", "grid: {seed: !!python/object:os.system {}}"]
)
def test_files_that_are_not_plain_yaml(tmp_path, text):
    path = tmp_path / "study.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=r"study\.yaml"):
        design.read(path)
    with pytest.raises(InputError, match="does not exist"):
        design.read(tmp_path / "other.yaml")


@pytest.mark.parametrize(
    ("name", "points"),
    [("robustness", 3 * 3 * 3 * 2 * 5 * 5 + 50), ("robustness-short", 108), ("memory", (6 + 4 + 3) * 5)],
)
def test_example_studies_are_read(name, points):
    path = Path(__file__).resolve().parents[3] / "examples" / "studies" / f"{name}.yaml"
    assert design.read(path).points == points


ODD = {
    "n": "n",
    "steps": "steps",
    "time": "time",
    "hardware.adc.bits": "hardware.adc.bits",
    "": "''",
    "a\nb": "letters",
    "\x1b[31m": "letters",
    "a" * 81: "letters",
}


@pytest.mark.parametrize("name", ODD)
def test_names_that_tables_could_not_have(name):
    with pytest.raises(InputError) as refusal:
        design.read({"grid": {name: {"fields": ["hardware.dac.bits", "hardware.output_noise"], "values": [4]}}})
    assert ODD[name] in str(refusal.value)
    assert len(str(refusal.value)) < 300
    assert str(refusal.value).isprintable()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"seed": 2**63}, "seed = 9223372036854775808"),
        ({"grid": {"seed": [2**63]}}, "grid.seed.0"),
        ({"grid": {"seed": "0..99999999999999999999"}}, "seed"),
        ({"grid": {"seed": "9223372036854775807..9223372036854775808"}}, "seed = 9223372036854775808"),
        ({"grid": {"hardware.adc.bits": [10**400]}}, "grid.hardware.adc.bits.0 = 1000000"),
        ({"hardware": {"output_noise": -(10**5000)}}, "hardware.output_noise = a int too large to print"),
        ({"wait": math.inf}, "wait = inf is not allowed: give a finite number"),
        ({"wait": b"1"}, "wait = b'1' is not allowed: give plain values"),
        ({"title": "\x1b[2J"}, "title"),
        ({"title": ""}, "title"),
        ({"grid": {"pattern": ["a\x00"]}}, "letters that can be printed"),
        ({"grid": {"hardware.adc.bits": [4, 4.0]}}, "lists 4.0 twice (once as 4)"),
        ({"grid": {"recipe": ["fast", {"name": "fast", "steps": []}]}}, "twice (once as 'fast')"),
        ({"grid": {"recipe": [None, "none"]}}, "twice (once as None)"),
        ({"grid": [{"recipe": [{"name": "a", "steps": []}]}, {"seed": [0]}], "recipe": "a"}, "two values called 'a'"),
        ({"random": {"samples": 10**6, "fields": {"seed": [1], "wait": [1]}}}, "1,000,000"),
        ({"random": {"samples": 1, "fields": {"wait": {"low": -1e308, "high": 1e308}}}}, "low < high"),
        ({"grid": [{"seed": [0]}] * 1001}, "1000 grids"),
        ({"grid": {f"task.a{k}": [0] for k in range(101)}}, "at most 100"),
        ({"title": "a", "model": "a" * 2**24}, "16,777,216"),
    ],
)
def test_values_that_a_store_or_a_report_could_not_hold(config, words):
    with pytest.raises(InputError) as refusal:
        design.read(config)
    assert words in str(refusal.value)
    assert len(str(refusal.value)) < 400


def test_nesting_has_an_end():
    deep = []
    for _ in range(100_000):
        deep = [deep]
    with pytest.raises(InputError, match="nested deeper"):
        design.read({"model": deep})
    while deep:  # or taking it apart would be too deep for Python itself
        deep = deep[0]


def test_paths_start_from_the_file(tmp_path, monkeypatch):
    (tmp_path / "own").mkdir()
    (tmp_path / "own" / "tiles.yaml").write_text("output_noise: 0.5")
    (tmp_path / "own" / "steps.yaml").write_text("name: steps\nsteps: [DriftCompensation]")
    path = tmp_path / "own" / "study.yaml"
    path.write_text("model: network\nhardware: tiles.yaml\nmemory: tiles.yaml\nrecipe: steps.yaml")
    (tmp_path / "own" / "network").mkdir()
    monkeypatch.chdir(tmp_path)
    (point,) = design.read("own/study.yaml").combinations()
    job = resolve({**point.values, "time": 0, "seed": 0}, Path("own"))
    assert job.model == "own/network"
    assert (job.hardware.output_noise, job.memory.hardware.output_noise) == (0.5, 0.5)
    assert [type(step).__name__ for step in job.recipe.steps] == ["DriftCompensation"]
    varied = path.read_text() + "\ngrid: {hardware.adc.bits: [4], memory.hardware.adc.bits: [4], hardware.dac: [null]}"
    path.write_text(varied)
    (point,) = design.read("own/study.yaml").combinations()
    assert point.values["hardware"]["output_noise"] == point.values["memory"]["hardware"]["output_noise"] == 0.5
    with pytest.raises(InputError, match=r"tiles\.yaml"):
        resolve({**point.values, "hardware": "tiles.yaml"})
    (tmp_path / "only-here").mkdir()
    assert resolve({**point.values, "model": "only-here"}, Path("own")).model == "own/only-here"
    assert resolve({**point.values, "model": "minilm"}, Path("own")).model == "minilm"


@pytest.mark.parametrize(
    "pattern",
    [
        {"text": "window({0})", "0": [1]},
        {"text": "window({size:>9999999999})", "size": 1},
        {"text": "window({size.real})", "size": 1},
        {"text": "window({)", "size": 1},
        {"text": "window({})"},
        {"text": "window({size})"},
        {"text": "window({size})", "size": {"a": 1}},
    ],
)
def test_placeholders_are_names(pattern):
    with pytest.raises(InputError):
        resolve({**DEFAULTS, "pattern": pattern})
