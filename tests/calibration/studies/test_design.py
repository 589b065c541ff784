"""What a study varies: grids, samples, and what is refused before anything runs."""

import math
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from calibration.studies import design
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
