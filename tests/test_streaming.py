"""The benchmark of windows and first tokens: arms have as many tokens in view, and what is scored is behind them."""

import importlib
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from transformers import LlamaConfig, LlamaForCausalLM

from attention import Memory, parse
from crossbar import presets
from tests.calibration.random_llama import TINY

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"
VIEW = 8


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("streaming")


@pytest.fixture
def model():
    torch.manual_seed(0)
    return LlamaForCausalLM(LlamaConfig(**{**TINY, "num_hidden_layers": 1})).eval()


@pytest.fixture
def windows():
    return torch.randint(2, 32, (2, 24), generator=torch.Generator().manual_seed(0))


def test_every_arm_but_dense_has_as_many_tokens_in_view(script):
    for arm, first in script.ARMS.items():
        seen = parse(script.pattern(arm, VIEW)).causal().to_dense(24)
        assert seen[VIEW:].sum(1).tolist() == ([VIEW] * 16 if arm != "dense" else list(range(VIEW + 1, 25)))
        assert seen[-1, : first or 0].all()
        assert arm == "dense" or not seen[-1, first : 24 - VIEW + first].any()


def test_tokens_behind_the_view_are_scored(script, model, windows):
    with torch.inference_mode():
        scores = model(input_ids=windows).logits[:, VIEW - 1 : -1]
    expected = F.cross_entropy(scores.transpose(1, 2), windows[:, VIEW:], reduction="none").double().mean(1)
    torch.testing.assert_close(script.losses(model, windows, "dense", VIEW), expected, rtol=1e-5, atol=0)
    exact = script.losses(model, windows, "dense", VIEW, Memory(presets.ideal(), capacity=24))
    torch.testing.assert_close(exact, expected, rtol=1e-4, atol=0)


@pytest.mark.parametrize("arm", ["none", "1", "4"])
def test_first_tokens_matter_where_they_are_in_view(script, model, windows, arm):
    text = script.pattern(arm, VIEW)
    changed = windows.clone()
    changed[:, 0] = 33 - changed[:, 0]
    behind = 2 * VIEW  # one layer: a query sees no further
    same = torch.equal(script.losses(model, windows, text, behind), script.losses(model, changed, text, behind))
    assert same == (arm == "none")


def test_newlines_stand_in_the_first_four_places(script, windows):
    assert script.begun(windows, "4", 1) is windows
    begun = script.begun(windows, script.NEWLINES, 1)
    assert (begun[:, :4] == 1).all()
    assert torch.equal(begun[:, 4:], windows[:, 4:])
    assert (windows[:, :4] != 1).all()


def test_the_table_has_ratios_to_four_first_tokens(script):
    found = {arm: torch.full((2,), 3.0, dtype=torch.float64) for arm in script.ARMS}
    found["none"] += 1
    columns = {str(column.header): list(column.cells) for column in script.view(found, VIEW).columns}
    assert columns["first tokens"] == list(script.ARMS)
    assert columns["× that of 4"] == ["1.00", "2.72", "1.00", "1.00", "1.00", "1.00"]
    assert columns["Llama-2-7B"] == ["", "350.36", "1.24", "1.10", "1.00", ""]
    assert columns["Llama-2-13B"] == ["", "955.20", "", "", "1.00", "1.04"]
