"""What decides a result is in its identity: results of another model are never served."""

import copy
import json
import shutil
from importlib import import_module

import pytest
import torch
from torch import nn

from calibration import InputRanges, Recipe, calibrate, load_model
from calibration.runs import fingerprint
from calibration.studies import design
from calibration.studies.plan import resolve_plan
from tests.calibration.studies import tiny

PLAIN = Recipe("plain", (InputRanges(),))
SMALL = {"chips": 1, "staircase": False}


def other(folder, place, **values):
    """The folder with another configuration and the very same weights."""
    changed = shutil.copytree(folder, place / folder.name)
    config = json.loads((changed / "config.json").read_text())
    (changed / "config.json").write_text(json.dumps({**config, **values}))
    return changed


@pytest.mark.parametrize("values", [{"hidden_act": "relu"}, {"num_attention_heads": 4}])
def test_a_study_of_another_configuration_has_other_cells(folder, tmp_path, values):
    changed = other(folder, tmp_path, **values)
    plans = [resolve_plan(design.read(tiny.config(path, grid={"seed": "0..1"}))) for path in (folder, changed)]
    assert len(plans[0].cells) == len(plans[1].cells) == 3
    assert not plans[0].cells.keys() & plans[1].cells.keys()
    assert load_model(folder).fingerprint != load_model(changed).fingerprint


def test_a_journal_of_another_configuration_is_not_gone_on_with(folder, tmp_path, monkeypatch):
    def stop(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("calibration.calibrate"), "save_bundle", stop)
    found = []
    for path in (folder, folder, other(folder, tmp_path, hidden_act="relu")):
        told = []
        with pytest.raises(KeyboardInterrupt):
            calibrate(path, "wordsim", times=["1d"], recipe=PLAIN, out=tmp_path / "out", notify=told.append, **SMALL)
        found.append(len(told))
    assert found == [0, 1, 0]


def test_the_identity_of_a_model_is_all_that_it_computes_with(net, llama_folder):
    assert fingerprint.of_model(net) == fingerprint.of_model(copy.deepcopy(net))
    model = load_model(llama_folder).model
    seen = {fingerprint.of_model(model)}
    model.generation_config.max_length = 7
    seen.add(fingerprint.of_model(model))
    model.config.hidden_act = "relu"
    seen.add(fingerprint.of_model(model))
    with torch.no_grad():
        next(model.parameters())[0, 0] += 1
    seen.add(fingerprint.of_model(model))
    assert len(seen) == 4
    linear = nn.Linear(3, 3)
    assert fingerprint.of_model(nn.Sequential(linear, nn.ReLU())) != fingerprint.of_model(
        nn.Sequential(linear, nn.GELU())
    )
