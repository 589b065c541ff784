"""What computes cells: with every kind of step, in any order of chips and times, as `calibrate` does in its own."""

import pytest

from calibration import Recipe, calibrate, load_model
from calibration.placement.layout import MEASURES, Target
from calibration.recipe import _STEPS
from calibration.studies.worker import Failed, Unit, Worker
from crossbar import presets
from crossbar.costs.area import area

EVERY = {
    "name": "every",
    "steps": sorted((kind().stage, place, name) for place, (name, kind) in enumerate(_STEPS.items())),
}
short = {"Finetune": {"step": "Finetune", "steps": 1}}
EVERY["steps"] = [short.get(name, name) for *_, name in EVERY["steps"] if name != "TokenProtection"]  # needs a memory
TIMES = ("1h", "1d")


WRITTEN = {"name": "written", "steps": ["InputRanges", "WeightRanges", "DriftCompensation"]}


@pytest.mark.parametrize(
    ("values", "staircase"),
    [
        (WRITTEN, True),
        pytest.param(EVERY, True, marks=pytest.mark.slow),
        pytest.param(EVERY, False, marks=pytest.mark.slow),
    ],
)
def test_every_step(folder, values, staircase):
    recipe = Recipe.from_dict(values)
    expected = calibrate(folder, "wordsim", "pcm", recipe, times=TIMES, chips=2, staircase=staircase)
    setup = {
        "model": {"include": None, "exclude": None},
        "task": {"name": "wordsim", "options": {}},
        "pattern": None,
        "device": "cpu",
        "memory": None,
        "hardware": presets.pcm().to_dict(),
        "recipe": recipe.to_dict(),
        "wait": 3600.0,
        "staircase": staircase,
    }
    loaded = load_model(folder)
    worker = Worker(lambda fingerprint: loaded)
    setup["model"]["fingerprint"] = loaded.fingerprint
    found = {}
    for seed, seconds in ((1, (86400.0,)), (0, (86400.0, 3600.0)), (1, (3600.0,))):
        for scored in worker.run(Unit("one", setup, seed, seconds)):
            assert not isinstance(scored, Failed), scored.trace
            for arm, metrics in scored.scores.items():
                found[arm, seed, scored.seconds] = metrics["spearman"]
    arms = [arm for arm in dict.fromkeys(m.arm for m in expected.measurements) if arm.startswith(("after", "calib"))]
    assert len(arms) == (len(recipe.steps) if staircase else 1)
    assert found == {(m.arm, m.chip, m.fitted): m.value for m in expected.measurements if m.arm in arms}


def test_chips_are_timed_and_measured(folder):
    loaded, target = load_model(folder), Target.of("mesh", "balanced")
    setup = {
        "model": {"include": None, "exclude": None, "fingerprint": loaded.fingerprint},
        "task": {"name": "wordsim", "options": {}}, "pattern": "dense", "device": "cpu", "memory": None,
        "hardware": presets.pcm().to_dict(), "recipe": None, "chip": target.to_dict(),
    }  # fmt: skip
    (scored,) = Worker(lambda fingerprint: loaded).run(Unit("one", setup, 0, (3600.0,)))
    assert not isinstance(scored, Failed), scored.trace
    found = {name: number for name, _, number in scored.counts if name in MEASURES}
    assert found.keys() == set(MEASURES)
    assert found["chip_um2"] == pytest.approx(1e6 * area(target.chip, presets.pcm()).mm2)
    assert found["token_way_ps"] > found["token_ps"] > 132_940
