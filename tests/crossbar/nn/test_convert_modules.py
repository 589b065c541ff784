"""Modules that compute with the weights of their layers instead of calling them."""

import copy

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertModel, GPT2Config, GPT2LMHeadModel

from crossbar import InputError, Ledger, convert, presets, program, restore
from tests.crossbar.conftest import inputs, reasons, seeded


def encoder_layer(**options):
    options = {"dropout": 0.1, "batch_first": True, **options}
    return seeded(lambda: nn.TransformerEncoderLayer(16, 2, 32, **options))


def test_multihead_attention_of_another_forward_stays_digital_with_its_projections():
    class Own(nn.MultiheadAttention):
        def forward(self, x):
            return super().forward(x, x, x)[0]

    model = nn.ModuleDict({"attention": Own(8, 2), "head": nn.Linear(8, 3)})
    report = convert(model, presets.ideal())
    assert [layer.name for layer in report.analog] == ["head"]
    assert reasons(report) == {
        "attention": "it has a matrix and no adapter takes it: register one if inputs are multiplied with it",
        "attention.out_proj": "nn.MultiheadAttention reads the weight without calling the layer",
    }


@pytest.mark.parametrize("options", [{}, {"activation": "gelu"}, {"activation": nn.ReLU()}, {"norm_first": True}])
def test_encoder_layers_go_through_the_tiles(options):
    model = encoder_layer(**options)
    x = inputs(2, 5, 16)
    fused = model.activation_relu_or_gelu
    assert fused
    with torch.no_grad():  # where torch takes its fused path
        expected = model(x)
        report = convert(model, presets.pcm())
        program(model)
        with Ledger() as ledger:
            analog = model(x)
        attention = {f"self_attn.tiles.{part}" for part in ("query", "key", "value", "out")}
        assert {layer.name for layer in report.analog} == {"linear1", "linear2"} | attention
        assert ledger.totals()["cell_macs"] == 2 * 5 * (4 * 16 * 16 + 16 * 32 + 32 * 16)
        assert (analog - expected).norm() / expected.norm() > 1e-3
        restore(model)
        assert torch.equal(model(x), expected)
        assert model.activation_relu_or_gelu == fused


@pytest.mark.parametrize("include", ["linear1", "linear2"])
def test_one_analog_half_of_an_encoder_layer_is_used(include):
    model = encoder_layer()
    convert(model, presets.pcm(), include=include)
    with torch.no_grad(), Ledger() as ledger:
        model(inputs(2, 5, 16))
    assert set(ledger.by_layer) == {include}
    assert ledger.totals()["cell_macs"] == 2 * 5 * 16 * 32


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors is in prototype stage:UserWarning")
@pytest.mark.parametrize("nested", [True, False])
def test_encoder_stacks_with_padding_go_through_the_tiles(nested):
    layer = encoder_layer()
    model = seeded(lambda: nn.TransformerEncoder(layer, 2, enable_nested_tensor=nested))
    assert model.use_nested_tensor is nested
    x, padding = inputs(2, 5, 16), torch.tensor([[False] * 5, [False] * 3 + [True] * 2])
    with torch.no_grad():
        expected = model(x, src_key_padding_mask=padding)
        convert(model, presets.ideal())
        with Ledger() as ledger:
            found = model(x, src_key_padding_mask=padding)
        assert len(ledger.by_layer) == 2 * 6
        assert ledger.totals()["cell_macs"] == 2 * 2 * 5 * (4 * 16 * 16 + 16 * 32 + 32 * 16)
        assert (found - expected)[~padding].abs().max() < 1e-5
        restore(model)
        assert model.use_nested_tensor is nested
        assert torch.equal(model(x, src_key_padding_mask=padding), expected)


def test_a_converted_model_of_transformers_is_not_saved_for_from_pretrained(tmp_path):
    config = BertConfig(vocab_size=20, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    model = seeded(lambda: BertModel(config))
    expected = {name: value.clone() for name, value in model.state_dict().items()}
    convert(model, presets.pcm())
    for one in (model, copy.deepcopy(model)):
        with pytest.raises(InputError, match=r"^this model has analog layers, whose weights from_pretrained would not"):
            one.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())
    restore(model)
    model.save_pretrained(tmp_path)
    loaded = BertModel.from_pretrained(tmp_path)
    assert all(torch.equal(value, loaded.state_dict()[name]) for name, value in expected.items())


@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("tied_heads", [False, True])
def test_tokens_are_added_where_the_head_is_digital_and_refused_where_it_is_in_cells(tied, tied_heads):
    config = GPT2Config(vocab_size=20, n_embd=8, n_layer=1, n_head=2, n_positions=8, tie_word_embeddings=tied)
    model = seeded(lambda: GPT2LMHeadModel(config)).eval()
    convert(model, presets.ideal(), tied_heads=tied_heads)
    weight = model.transformer.wte.weight.clone()
    if not tied or tied_heads:
        both = (model, model.transformer) if tied else (model,)  # by its look-up the head would change with it
        for one in both:
            with pytest.raises(InputError, match=r"^the head of this model is in cells, where other tokens have no co"):
                one.resize_token_embeddings(24)
        assert torch.equal(model.transformer.wte.weight, weight)
        restore(model)
    model.resize_token_embeddings(24, mean_resizing=False)
    if not tied or tied_heads:
        convert(model, presets.ideal(), tied_heads=tied_heads)
    assert model(torch.tensor([[1, 22]])).logits.shape == (1, 2, 24)
    assert torch.equal(model.transformer.wte.weight[:20], weight)
