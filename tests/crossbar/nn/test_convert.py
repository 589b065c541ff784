"""Digital models to analog ones and back, and the report of what did not convert."""

import dataclasses
import json

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, prune
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from crossbar import AnalogLinear, Hardware, InputError, Ledger, Tile, analog_layers, convert, presets, program, restore
from tests.crossbar.conftest import inputs, reasons, seeded

SMALL = Hardware(tile=Tile(4, 3))


def mlp():
    return seeded(lambda: nn.Sequential(nn.Linear(10, 7), nn.LayerNorm(7), nn.Sequential(nn.ReLU(), nn.Linear(7, 4))))


def gpt2():
    return seeded(lambda: GPT2LMHeadModel(GPT2Config(vocab_size=11, n_positions=8, n_embd=8, n_layer=2, n_head=2)))


def bert():
    config = BertConfig(
        vocab_size=11,
        hidden_size=8,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=12,
        max_position_embeddings=8,
    )
    return seeded(lambda: BertModel(config))


def snapshot(model):
    return {name: id(module) for name, module in model.named_modules()}, list(model.state_dict())


# What becomes analog, and what the report says


def test_a_sequential_by_hand():
    model = mlp()
    report = convert(model, SMALL)
    assert list(analog_layers(model)) == ["0", "2.1"]
    assert type(model[1]) is nn.LayerNorm
    first, norm, last = report.layers
    assert (first.name, first.kind, first.in_features, first.out_features) == ("0", "Linear", 10, 7)
    # 10 inputs on 4 rows: 3; 7 outputs on 3 columns: 3; 7 inputs: 2; 4 outputs: 2
    assert (first.tiles, last.tiles, report.tiles) == (9, 4, 13)
    assert first.utilisation == 70 / (9 * 12)
    assert report.utilisation == pytest.approx((70 + 28) / (13 * 12), rel=1e-12)
    assert (first.parameters, norm.parameters, last.parameters) == (77, 14, 32)
    assert report.parameters == 123
    assert report.analog_parameters == 98
    assert reasons(report) == {"1": "no matrix product"}


def test_report_as_json_and_text():
    report = convert(mlp(), SMALL)
    values = json.loads(json.dumps(report.to_dict()))
    assert values["analog_layers"] == 2
    assert values["tiles"] == 13
    assert values["parameters"] == 123
    assert values["analog_parameters"] == 98
    assert [layer["name"] for layer in values["layers"]] == ["0", "1", "2.1"]
    assert str(report).splitlines() == [
        "2 layers became analog: 98 of 123 parameters (80%) on 13 tiles, 63% of their cells in use",
        "1 stayed digital (14 parameters): no matrix product",
    ]


def test_ideal_hardware_keeps_the_models_outputs():
    model = mlp()
    x = inputs(5, 10)
    expected = model(x)
    convert(model, presets.ideal())
    program(model)
    assert (model(x) - expected).norm() / expected.norm() < 1e-5


def test_layers_are_named_by_their_path():
    model = mlp()
    convert(model, SMALL)
    assert [layer.name for layer in analog_layers(model).values()] == ["0", "2.1"]


def test_two_layers_of_equal_weights_are_different_devices():
    model = seeded(lambda: nn.Sequential(nn.Linear(6, 6), nn.Linear(6, 6)))
    model[1].load_state_dict(model[0].state_dict())
    convert(model, presets.pcm())
    program(model)
    assert not torch.equal(model[0].cells.digits, model[1].cells.digits)


def test_a_module_used_twice_is_one_analog_layer():
    model = seeded(lambda: nn.Sequential(linear := nn.Linear(4, 4), nn.ReLU(), linear))
    before = snapshot(model)
    x = inputs(3, 4)
    expected = model(x)
    report = convert(model, presets.ideal())
    assert isinstance(model[0], AnalogLinear)
    assert model[2] is model[0]
    assert [(layer.name, layer.parameters, layer.tiles) for layer in report.layers] == [("0", 20, 1)]
    assert report.parameters == 20
    assert list(analog_layers(model)) == ["0"]
    with Ledger() as ledger:
        torch.testing.assert_close(model(x), expected)
    assert ledger.to_dict()["0"]["cell_macs"] == 2 * 3 * 16
    restore(model)
    assert snapshot(model) == before
    assert model[2] is model[0]


@pytest.mark.parametrize(
    "compute", [lambda linear: prune.l1_unstructured(linear, "weight", 0.5), parametrizations.weight_norm]
)
def test_computed_weights_stay_digital_and_are_reported(compute):
    model = seeded(lambda: nn.Sequential(compute(nn.Linear(4, 4)), nn.Linear(4, 4)))
    x = inputs(3, 4)
    expected = model(x)
    report = convert(model, presets.ideal())
    assert [layer.name for layer in report.analog] == ["1"]
    assert reasons(report)["0"].startswith("its weight is computed from other parameters")
    torch.testing.assert_close(model(x), expected)


@pytest.mark.parametrize("training", [True, False])
def test_analog_layers_start_in_eval_mode_and_the_rest_keeps_its_own(training):
    model = mlp().train(training)
    convert(model, SMALL)
    assert model.training is training
    assert all(module.training is (training and not isinstance(module, AnalogLinear)) for module in model)
    assert all(module.training for module in model.train().modules())


def test_gpt2_becomes_analog_except_for_the_tied_head():
    model = gpt2()
    tokens = torch.tensor([[1, 5, 2, 7]])
    expected = model(tokens).logits
    report = convert(model, presets.ideal())
    assert len(report.analog) == 8  # attention in and out, feed-forward in and out, in 2 layers
    assert {layer.kind for layer in report.analog} == {"Conv1D"}
    shapes = {(layer.in_features, layer.out_features) for layer in report.analog}
    assert shapes == {(8, 24), (8, 8), (8, 32), (32, 8)}
    assert reasons(report)["lm_head"] == "weight shared with transformer.wte"
    assert report.parameters == sum(p.numel() for p in model.parameters())
    assert sum(layer.parameters for layer in report.layers if layer.name in ("lm_head", "transformer.wte")) == 88
    program(model)
    found = model(tokens).logits
    assert (found - expected).norm() / expected.norm() < 1e-5


def test_a_tied_head_is_on_tiles_on_request_and_keeps_its_tie(tmp_path):
    digital, model, tokens = gpt2(), gpt2(), torch.tensor([[1, 5, 2, 7]])
    report = convert(model, presets.ideal(), tied_heads=True)
    head = report.analog[-1]
    assert (head.name, head.tied, head.weights, head.parameters) == ("lm_head", "transformer.wte", 88, 0)
    assert [layer.name for layer in report.digital if layer.kind == "Embedding"] == [
        "transformer.wte",
        "transformer.wpe",
    ]
    assert report.analog_parameters == 2 * (8 * 24 + 8 * 8 + 2 * 8 * 32) + 88
    assert report.parameters == sum(p.numel() for p in digital.parameters())
    assert str(report).endswith("lm_head is on tiles with the 88 weights that transformer.wte looks up in digital")
    wte = model.transformer.wte.weight
    assert model.lm_head.digital.weight is wte
    with torch.no_grad(), Ledger() as ledger:
        torch.testing.assert_close(model(tokens).logits, digital(tokens).logits, rtol=0, atol=1e-5)
    assert ledger.to_dict()["lm_head"]["cell_macs"] == 4 * 88
    # a step through the tiles reaches the one parameter from both its places
    for one in (digital, model.train()):
        one.requires_grad_(True)
        for module in one.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        one(tokens, labels=tokens).loss.backward()
    torch.testing.assert_close(wte.grad, digital.transformer.wte.weight.grad, rtol=1e-3, atol=1e-5)
    with torch.no_grad():
        wte.sub_(0.1 * wte.grad)
    model.eval()
    torch.testing.assert_close(model.lm_head.effective_weight(), wte.detach(), rtol=1e-5, atol=1e-6)
    # and what is saved is tied
    model.tie_weights()
    assert "weight" not in model.lm_head._parameters
    restore(model)
    model.save_pretrained(tmp_path)
    loaded = GPT2LMHeadModel.from_pretrained(tmp_path)
    assert loaded.lm_head.weight is loaded.transformer.wte.weight
    assert torch.equal(loaded.lm_head.weight, wte)


def test_other_ties_stay_digital_with_heads_on_tiles():
    model = nn.ModuleDict({"table": nn.Embedding(5, 4), "one": nn.Linear(4, 5), "two": nn.Linear(4, 5)})
    model["other"], model["last"] = nn.Linear(4, 4), nn.Linear(4, 4)
    model["one"].weight = model["two"].weight = model["table"].weight
    model["last"].weight = model["other"].weight
    report = convert(model, presets.ideal(), tied_heads=True)
    assert {layer.name: layer.tied for layer in report.analog} == {"one": "table", "two": "table"}
    assert report.analog_parameters == 20  # of one tensor, though on two arrays of tiles
    assert reasons(report)["last"] == "weight shared with other"


def test_another_weight_for_an_analog_layer_is_refused():
    model = mlp()
    convert(model, SMALL)
    with pytest.raises(InputError, match="the weight of 0 is in cells: call"):
        model[0].weight = nn.Parameter(torch.ones(7, 10))


def test_bert_becomes_analog():
    model = bert()
    tokens = torch.tensor([[1, 5, 2, 7]])
    expected = model(tokens).last_hidden_state
    report = convert(model, presets.ideal())
    names = {layer.name for layer in report.analog}
    assert names == {
        "encoder.layer.0.attention.self.query",
        "encoder.layer.0.attention.self.key",
        "encoder.layer.0.attention.self.value",
        "encoder.layer.0.attention.output.dense",
        "encoder.layer.0.intermediate.dense",
        "encoder.layer.0.output.dense",
        "pooler.dense",
    }
    with Ledger() as ledger:
        found = model(tokens).last_hidden_state
    assert (found - expected).norm() / expected.norm() < 1e-5
    assert set(ledger.by_layer) == names
    assert ledger.by_layer["pooler.dense"][("cell_macs", None)] == 64  # the first token alone
    assert ledger.by_layer["encoder.layer.0.intermediate.dense"][("cell_macs", None)] == 4 * 8 * 12


# Choosing layers


@pytest.mark.parametrize(
    ("choice", "analog"),
    [
        ({"include": "*.query"}, {"encoder.layer.0.attention.self.query"}),
        ({"include": ["*.query", "pooler*"]}, {"encoder.layer.0.attention.self.query", "pooler.dense"}),
        ({"exclude": "encoder.*"}, {"pooler.dense"}),
        (
            {"include": "*attention*", "exclude": ("*.key", "*.value")},
            {"encoder.layer.0.attention.self.query", "encoder.layer.0.attention.output.dense"},
        ),
    ],
)
def test_include_and_exclude(choice, analog):
    model = bert()
    report = convert(model, presets.ideal(), **choice)
    assert {layer.name for layer in report.analog} == analog
    assert set(analog_layers(model)) == analog
    rest = [layer for layer in report.digital if layer.kind == "Linear"]
    assert len(rest) == 7 - len(analog)
    assert {layer.reason for layer in rest} <= {"excluded by name", "not included by name"}


def test_per_layer_hardware_first_match_counts():
    model = mlp()
    other, third = dataclasses.replace(SMALL, tile=Tile(2, 2)), presets.ideal()
    report = convert(model, SMALL, per_layer={"2.*": other, "*.1": third})
    assert model[0].hardware is SMALL
    assert model[2][1].hardware is other
    assert [layer.tiles for layer in report.analog] == [9, 8]


def test_conversion_can_go_on_later():
    model = mlp()
    convert(model, SMALL, include="0")
    report = convert(model, SMALL)
    assert [layer.name for layer in report.analog] == ["2.1"]
    assert list(analog_layers(model)) == ["0", "2.1"]


# And back


@pytest.mark.parametrize("build", [mlp, bert, gpt2])
def test_restore_puts_the_same_modules_back(build):
    model = build()
    before = snapshot(model)
    weights = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    convert(model, presets.pcm())
    program(model)
    restore(model)
    assert snapshot(model) == before
    assert all(torch.equal(tensor, weights[name]) for name, tensor in model.state_dict().items())
    restore(model)  # nothing left to do
    assert snapshot(model) == before


def test_a_layer_itself_has_nothing_to_restore():
    layer = AnalogLinear.from_digital(nn.Linear(3, 3), SMALL)
    with pytest.raises(InputError, match=r"a single one has its digital layer in \.digital"):
        restore(layer)
    assert list(layer._modules) == ["digital", "cells"]


# Refusals, each leaving the model as it was


@pytest.mark.parametrize(
    ("choice", "message"),
    [
        ({"include": "encoder.*"}, r"layer pattern 'encoder\.\*' matches none of the 2 layers, such as '0'"),
        ({"exclude": ["0", "1"]}, r"layer pattern '1' matches none"),  # a layer norm
        ({"per_layer": {"9": SMALL}}, r"layer pattern '9' matches none"),
        ({"exclude": "*"}, r"no layer would become analog: all are excluded by name"),
    ],
)
def test_refuses_choices_that_choose_nothing(choice, message):
    model = mlp()
    before = snapshot(model)
    with pytest.raises(InputError, match=message):
        convert(model, SMALL, **choice)
    assert snapshot(model) == before


def test_refuses_a_model_without_linear_layers():
    with pytest.raises(InputError, match=r"Sequential has no layer left to convert"):
        convert(nn.Sequential(nn.LayerNorm(4)), SMALL)


def test_refuses_to_convert_twice():
    model = mlp()
    convert(model, SMALL)
    before = snapshot(model)
    with pytest.raises(InputError, match=r"no layer left to convert"):
        convert(model, SMALL)
    assert snapshot(model) == before


def test_refuses_nan_weights_and_leaves_the_model():
    model = mlp()
    with torch.no_grad():
        model[2][1].weight[0, 0] = torch.nan
    before = snapshot(model)
    with pytest.raises(InputError, match=r"parameter '2\.1\.weight' holds NaN or infinite numbers: repair the model"):
        convert(model, SMALL)
    assert snapshot(model) == before


@pytest.mark.parametrize(("value", "told"), [(0.0, "only weights of 0"), (7e4, "weights beyond 65504")])
def test_warns_of_weights_that_can_hardly_be_meant(value, told):
    model = mlp()
    with torch.no_grad():
        model[2][1].weight.fill_(value)
    with pytest.warns(UserWarning, match=rf"^layer '2\.1' has {told}"):
        convert(model, SMALL)
    model = mlp()
    with torch.no_grad():
        model[0].weight.fill_(value)
        model[2][1].weight.fill_(value)
    with pytest.warns(UserWarning, match=rf"^2 layers, such as '0', have {told}"):
        convert(model, SMALL)
    convert(mlp(), SMALL)  # of which there is nothing to tell


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_refuses_numbers_that_stay_digital_and_are_not_finite(value):
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
    with torch.no_grad():
        model[1].bias[2] = value
    before = snapshot(model)
    with pytest.raises(InputError, match=r"parameter '1\.bias' holds NaN or infinite numbers: repair the model first"):
        convert(model, SMALL)
    assert snapshot(model) == before


@pytest.mark.parametrize("build", [lambda: nn.Linear(3, 3), lambda: AnalogLinear.from_digital(nn.Linear(3, 3), SMALL)])
def test_refuses_a_layer_as_model(build):
    with pytest.raises(InputError, match=r"^the model is itself a layer: use AnalogLinear\.from_digital|no layer left"):
        convert(build(), SMALL)


def test_refuses_to_program_what_is_not_converted():
    for use in (analog_layers, program):
        with pytest.raises(InputError, match=r"Sequential has no analog layers: call crossbar.convert"):
            use(mlp())


def test_refuses_to_program_layers_of_one_name():
    model = nn.ModuleList([mlp(), mlp()])
    for part in model:
        convert(part, presets.pcm())
    with pytest.raises(InputError, match=r"2 layers are called '0' and would get the same noise: convert in one call"):
        program(model)
    assert model[0][0].seed is None


@pytest.mark.parametrize("seed", [-1, 1.0, True, "1", None])
def test_refuses_odd_seeds(seed):
    model = mlp()
    convert(model, SMALL)
    with pytest.raises(InputError, match=rf"seed = {seed!r} is not allowed: give a whole number of 0 or more"):
        program(model, seed)
