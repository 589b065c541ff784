"""One resolver: Python, the command and studies ask for the same, and are refused in the same words."""

from dataclasses import replace
from pathlib import Path

import pytest

from attention import Memory, parse
from calibration import DriftCompensation, Recipe, calibrate, cli, emulate, recipe
from calibration.commands.options import make_parser
from calibration.energy import energy
from calibration.runs.experiment import Experiment
from calibration.runs.request import Request, as_hardware, as_memory, as_pattern, as_recipe, as_times
from calibration.studies.fields import DEFAULTS, resolve
from crossbar import Hardware, InputError, presets


def test_hardware_in_each_form(tmp_path):
    (tmp_path / "tiles.yaml").write_text("output_noise: 0.5")
    expected = Hardware(output_noise=0.5)
    assert as_hardware("pcm") == presets.pcm()
    for given in (expected, {"output_noise": 0.5}, tmp_path / "tiles.yaml", str(tmp_path / "tiles.yaml")):
        assert as_hardware(given) == expected
    assert as_hardware("tiles.yaml", tmp_path) == expected


def test_patterns_and_memories_in_each_form():
    expected = parse("window(9) | sinks(4)")
    for given in (expected, "window(9) | sinks(4)", {"text": "window({w}) | sinks(4)", "w": 9}):
        assert as_pattern(given) == expected
    assert as_pattern(None) is None
    kept = Memory(presets.gain_cell(), capacity=64)
    for given in (kept, {"hardware": "gain_cell", "capacity": 64}):
        assert as_memory(given) == kept
    for given in ("gain_cell", presets.gain_cell(), presets.gain_cell().to_dict()):
        assert as_memory(given, options={"capacity": 64}) == kept
    assert as_memory(None) is None


def test_recipes_and_times_in_each_form(tmp_path):
    (tmp_path / "steps.yaml").write_text("name: steps\nsteps: [{step: DriftCompensation, reads: 64}]")
    expected = Recipe("steps", (DriftCompensation(reads=64),))
    for given in (
        expected,
        {"name": "steps.yaml"},
        "steps.yaml",
        {"name": "steps", "steps": expected.to_dict()["steps"]},
    ):
        assert as_recipe(given, tmp_path).steps == expected.steps
    changed = as_recipe({"name": "quick", "DriftCompensation": {"reads": 64}})
    assert [*changed.steps[:2], expected.steps[0]] == [*recipe.get("quick").steps[:2], changed.steps[2]]
    for given in ("1h, 1d", ["1h", "1d"], (3600, "1d"), [3600.0, 86400, "1h"]):
        assert as_times(given) == [3600.0, 86400.0]


def test_python_the_command_and_studies_ask_for_the_same():
    arguments = ["--model", "letters", "--task", "wordsim", "--hardware", "reram", "--pattern", "window(4)"]
    arguments += ["--memory", "pcm", "--times", "1d", "--chips", "1", "--seed", "3", "--include", "*.query"]
    options = make_parser().read(["calibrate", *arguments, "--recipe", "quick", "--wait", "2h"])["calibrate"]
    command = cli._request(options, recipe=options.recipe, wait=options.wait)
    cell = {
        **DEFAULTS,
        "model": {"name": "letters", "include": ["*.query"]},
        "task": "wordsim",
        "hardware": "reram",
        "pattern": "window(4)",
        "memory": "pcm",
        "recipe": "quick",
        "wait": "2h",
        "time": "1d",
        "seed": 3,
    }
    python = Request.of(
        "letters",
        "wordsim",
        presets.reram(),
        pattern=parse("window(4)"),
        memory=Memory(presets.pcm()),
        recipe=recipe.get("quick"),
        times=86400.0,
        wait=7200,
        seed=3,
        device="cpu",
        include="*.query",
        stream=None,
    )
    assert command == python
    assert resolve(cell) == replace(python, stream=False)  # cells of studies do not go block by block
    assert (python.chips, python.times, python.wait, python.include) == (range(3, 4), (86400.0,), 7200.0, ("*.query",))


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"hardware": "rram"}, "hardware 'rram' is unknown"),
        ({"pattern": "windows(4)"}, "pattern 'windows"),
        ({"memory": "paper"}, "hardware 'paper' is unknown"),
        ({"task": "poetry"}, "task 'poetry' does not exist"),
        ({"seed": -1}, "seed = -1 is not allowed: give a whole number from 0"),
        ({"recipe": "slow"}, "recipe 'slow' is unknown"),
        ({"wait": "0s"}, "a wait of 0 s would score the very noise that was fitted"),
        ({"include": [3]}, "include = [3] is not allowed: give a list of layer patterns"),
    ],
)
def test_every_job_refuses_in_the_same_words_before_it_loads(options, told):
    found = set()
    jobs = [calibrate, energy] if {"recipe", "wait"} & {*options} else [emulate, calibrate, energy]
    for job in jobs:
        given = {"model": "absent", "task": "wordsim", **options, **({} if job is energy else {"chips": 1})}
        if job is energy and "pattern" in given:
            given["patterns"] = [given.pop("pattern")]
        with pytest.raises(InputError) as caught:
            job(**given)
        found.add(str(caught.value))
    cell = {**DEFAULTS, "model": "absent", "recipe": "quick", **options}
    if "include" in cell:
        cell["model"] = {"name": "absent", "include": cell.pop("include")}
    with pytest.raises(InputError) as caught:
        resolve(cell)
    found.add(str(caught.value))
    assert len(found) == 1
    assert found.pop().startswith(told)


def test_options_of_a_memory_need_one():
    with pytest.raises(InputError, match="memory capacity 9 has no memory to be of: give --memory too"):
        Request.of("minilm", "wordsim", memory_options={"capacity": 9})


def test_a_device_elsewhere_need_not_be_here():
    assert Request.of("minilm", "wordsim", device="cuda:999", elsewhere=True).device == "cuda:999"
    for elsewhere, told in ((False, "is not there"), (True, "is not known")):
        with pytest.raises(InputError, match=told):
            Request.of("minilm", "wordsim", device="tpu" if elsewhere else "cuda:999", elsewhere=elsewhere)


def test_files_start_from_the_study_and_models_too(tmp_path):
    (tmp_path / "own").mkdir()
    request = Request.of("own", "wordsim", folder=tmp_path)
    assert request.model == str(tmp_path / "own")
    assert Request.of("minilm", "wordsim", folder=tmp_path).model == "minilm"
    assert Request.of(Path("own"), "wordsim", folder=tmp_path).model == Path("own")


def test_a_users_model_is_copied_and_one_of_ones_own_is_not(net, task, folder):
    request = Request.of(net, task)
    own, lent = Experiment.prepare(request), Experiment.prepare(request, is_lent=True)
    assert own.digital.first.weight.data_ptr() != net.first.weight.data_ptr()
    assert lent.digital.first.weight.data_ptr() == net.first.weight.data_ptr()
    for experiment in (own, lent):
        assert experiment.analog.first.digital.weight.data_ptr() == experiment.digital.first.weight.data_ptr()
    assert request.load().is_borrowed
    assert not replace(request, model=str(folder)).load().is_borrowed
