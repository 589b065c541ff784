"""Studies of a language model: keys and values in analog memory, and more text for steps that train."""

from dataclasses import replace

import pytest

from attention import Memory
from calibration import Finetune, Recipe, calibrate, emulate, load_model, study, tasks
from crossbar import InputError, presets

TASK = {"windows": 2, "window_length": 32}
KEPT = {"hardware": "pcm", "token_seconds": 60.0}


def language(folder, **options):
    model = load_model(folder)
    return model, tasks.get("perplexity", model.tokenizer, **TASK, **options)


def config(folder, **changes):
    return {"model": str(folder), "task": {"name": "perplexity", **TASK}, "hardware": "ideal", **changes}


def test_memory_is_a_field(llama_folder, tmp_path, inline):
    inline()
    grid = {"memory.hardware.adc.bits": [4, 8], "memory.token_seconds": [0.0, 60.0], "seed": "0..1"}
    found = study(config(llama_folder, memory="pcm", grid=grid), store=tmp_path / "s.sqlite")
    assert found.failures() == []
    assert [axis.reference for axis in found.axes if axis.name.startswith("memory")] == [8, 0.0]
    values = {}
    for row in found.settings.to_dict("records"):
        bits, seconds = row["memory.hardware.adc.bits"], row["memory.token_seconds"]
        own = found.scores.query("metric == 'perplexity'").sort_values("seed")
        values[bits, seconds] = own[own["setting"] == row["setting"]]["value"].tolist()
        pcm = presets.pcm()
        memory = Memory(replace(pcm, adc=replace(pcm.adc, bits=bits)), token_seconds=seconds)
        expected = emulate(*language(llama_folder), "ideal", memory=memory, times=["1d"], chips=2)
        assert values[bits, seconds] == expected.values("analog")
    assert len(set(map(tuple, values.values()))) == 4  # each field has an effect


def test_a_memory_or_none_of_several_kinds(llama_folder, tmp_path, inline):
    inline()
    grid = {"memory": [None, "ideal", {**KEPT, "protected": {"sinks": 1, "recent": 8}}]}
    found = study(config(llama_folder, grid=grid), store=tmp_path / "s.sqlite")
    assert found.failures() == []
    none, ideal, kept = found.scores.query("metric == 'perplexity'").sort_values("setting")["value"]
    assert ideal == pytest.approx(none, rel=1e-4)
    assert kept != none


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"memory": "tape"}, "hardware 'tape' is unknown"),
        ({"memory": {"capacity": 4}}, "memory has no hardware"),
        ({"memory": {**KEPT, "clock": "wall"}}, "memory clock = 'wall' is not allowed here"),
        ({"memory": {**KEPT, "rows": 4}}, "memory has no field 'rows': allowed are hardware, capacity"),
        ({"memory": {**KEPT, "protected": {"recent": 0}}}, "in memory.protected: protected recent = 0"),
        ({"memory": {**KEPT, "activation": {"kind": "ReLU"}}}, "choose Softmax or Saturating"),
        ({"memory": {**KEPT, "activation": {"kind": "Saturating", "low": "a"}}}, "saturating low = 'a'"),
        ({"memory": {**KEPT, "activation": {"kind": ["Softmax"]}}}, "memory.activation.kind = ['Softmax']"),
        ({"memory": {"hardware": {"device": "tape"}}}, "device.kind = 'tape'"),
        ({"grid": {"memory.capacity": [4]}}, "field 'memory.capacity' has nothing to belong to: give 'memory' too"),
        ({"memory": 3, "grid": {"memory.capacity": [4]}}, "memory = 3 is not allowed: give a mapping"),
        ({"pattern": 3, "grid": {"pattern.size": [4]}}, "'pattern' is 3, which has no parts"),
        ({"memory": "pcm", "grid": {"memory.capacity": [0]}}, "memory capacity = 0"),
    ],
)
def test_refused_before_anything_runs(llama_folder, tmp_path, changes, words):
    with pytest.raises(InputError) as refusal:
        study(config(llama_folder, **changes), store=tmp_path / "s.sqlite")
    assert words in str(refusal.value)
    assert "\n" not in str(refusal.value)


def test_steps_that_train_get_the_training_data(llama_folder, tmp_path, inline):
    inline()
    recipe = Recipe("short", (Finetune(steps=3, rate=1e-3, checkpoint=False),))
    written = config(llama_folder, hardware="pcm", recipe=recipe.to_dict())
    written["task"]["training_windows"] = 3
    scores = study(written, store=tmp_path / "s.sqlite").scores
    found = scores.query("arm == 'calibrated' and metric == 'perplexity'")["value"].tolist()

    def calibrated(**options):
        return calibrate(*language(llama_folder, **options), "pcm", recipe, times=["1d"], chips=1).values("calibrated")

    assert found == calibrated(training_windows=3)
    assert found != calibrated()
