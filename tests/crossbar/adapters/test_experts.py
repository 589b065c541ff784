"""Experts of transformers on tiles: per-expert equality, and only those that a router chose are driven."""

import copy

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, MixtralConfig
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssExperts
from transformers.models.jetmoe.modeling_jetmoe import JetMoeParallelExperts
from transformers.models.mixtral.modeling_mixtral import MixtralExperts
from transformers.models.nemotron_h.modeling_nemotron_h import NemotronHConfig, NemotronHExperts

from crossbar import AnalogLinear, Ledger, analog_layers, convert, presets, program
from crossbar.adapters import find_adapter
from crossbar.nn.module import AnalogModule
from tests.crossbar.conftest import QUIET, inputs, inputs64, reasons, seeded

CONFIG = MixtralConfig(
    vocab_size=40,
    hidden_size=16,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=2,
    num_key_value_heads=2,
    num_local_experts=4,
    num_experts_per_tok=2,
    max_position_embeddings=64,
    pad_token_id=None,
)


def mixtral(dtype=torch.float32):
    return seeded(lambda: AutoModelForCausalLM.from_config(copy.deepcopy(CONFIG))).to(dtype)


def tokens():
    return torch.randint(0, 40, (2, 9), generator=torch.Generator().manual_seed(3))


def drawn(layer):
    with torch.no_grad():
        for number, parameter in enumerate(layer.parameters()):
            parameter.copy_(inputs64(*parameter.shape, seed=number))
    return layer


@pytest.mark.parametrize("implementation", ["eager", "grouped_mm", "batched_mm"])
def test_a_mixtral_is_the_digital_one_whatever_computes_that(implementation):
    dtype = torch.float32 if implementation == "grouped_mm" else torch.float64  # of which torch takes no float64
    digital = mixtral(dtype)
    digital.set_experts_implementation(implementation)
    model = copy.deepcopy(digital)
    report = convert(model, QUIET)
    with torch.no_grad():
        expected, found = digital(tokens()).logits, model(tokens()).logits
    torch.testing.assert_close(found, expected, rtol=0, atol=2000 * torch.finfo(dtype).eps)
    held = 2 * (4 * 3 * 16 * 24 + 4 * 16 * 16) + 40 * 16  # experts, attention, head
    assert report.analog_parameters == held
    routers = [f"model.layers.{layer}.mlp.gate" for layer in range(2)]
    assert {name: reason for name, reason in reasons(report).items() if "gate" in name} == dict.fromkeys(
        routers, "a router of experts, digital unless registered: crossbar.adapters.OwnForward(MixtralTopKRouter)"
    )


def test_each_expert_is_its_own_two_products():
    """Gate and up in one matrix, down in another: each expert alone, on ideal cells and as written out."""
    experts = drawn(MixtralExperts(CONFIG)).double()
    model = nn.Sequential(copy.deepcopy(experts))
    convert(model, QUIET)
    x, weights = inputs64(5, 16), torch.full((5, 1), 0.7, dtype=torch.float64)
    for expert in range(4):
        gate, up = experts.gate_up_proj[expert].chunk(2)
        expected = 0.7 * (nn.functional.silu(x @ gate.t()) * (x @ up.t())) @ experts.down_proj[expert].t()
        found = model[0](x, torch.full((5, 1), expert), weights)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-10)


def test_only_routed_experts_are_driven():
    """By hand: 5 tokens, three to experts 0 and 2, two to experts 2 and 3; expert 1 stays closed."""
    model = nn.Sequential(drawn(MixtralExperts(CONFIG)))
    convert(model, presets.pcm())
    program(model, 0)
    index = torch.tensor([[0, 2], [0, 2], [2, 0], [3, 2], [2, 3]])
    with torch.no_grad(), Ledger() as ledger:
        model[0](inputs(5, 16), index, torch.full((5, 2), 0.5))
    tokens_of = {0: 3, 2: 5, 3: 2}
    assert set(ledger.by_layer) == {
        f"0.tiles.{name}_{expert}" for name in ("gate_up_proj", "down_proj") for expert in tokens_of
    }
    for expert, count in tokens_of.items():
        for name, macs in (("gate_up_proj", 48 * 16), ("down_proj", 16 * 24)):
            counts = {c.name: n for c, n in ledger.by_layer[f"0.tiles.{name}_{expert}"].items()}
            assert counts["cell_macs"] == count * macs
            assert counts["row_activations"] == count * (16 if name == "gate_up_proj" else 24)
    reads = {name: layer.reads for name, layer in analog_layers(model).items()}
    assert {name: n for name, n in reads.items() if n == 0} == {
        f"0.tiles.{name}_1": 0 for name in ("gate_up_proj", "down_proj")
    }


def test_transposed_experts_with_bias_are_the_digital_ones():
    config = GptOssConfig(hidden_size=16, intermediate_size=8, num_local_experts=3)
    config._experts_implementation = "eager"
    experts = drawn(GptOssExperts(config)).double()
    model, x = nn.Sequential(copy.deepcopy(experts)), inputs64(6, 16)
    index, weights = torch.tensor([[0, 1], [1, 2], [2, 0], [0, 2], [1, 0], [0, 1]]), inputs64(6, 2).softmax(-1)
    convert(model, QUIET)
    torch.testing.assert_close(model[0](x, index, weights), experts(x, index, weights), rtol=0, atol=1e-9)


def test_experts_of_other_classes_are_the_digital_ones():
    config = NemotronHConfig(hidden_size=16, moe_intermediate_size=8, n_routed_experts=3, mlp_hidden_act="relu2")
    config._experts_implementation = "eager"
    plain = drawn(NemotronHExperts(config)).double()
    jet = drawn(JetMoeParallelExperts(3, 16, 8)).double()
    model, x = nn.ModuleList([copy.deepcopy(plain), copy.deepcopy(jet)]), inputs64(6, 16)
    convert(model, QUIET)
    index, weights = torch.tensor([[0], [2], [0], [1], [2], [2]]), inputs64(6, 1)
    torch.testing.assert_close(model[0](x, index, weights), plain(x, index, weights), rtol=0, atol=1e-9)
    torch.testing.assert_close(model[1](x, [1, 3, 2]), jet(x, [1, 3, 2]), rtol=0, atol=1e-12)


def test_a_training_step_reaches_routed_experts_alone():
    model = mixtral()
    convert(model, presets.pcm())
    model.train()
    loss = model(tokens(), labels=tokens()).loss
    loss.backward()
    grads = model.model.layers[0].mlp.experts.digital.gate_up_proj.grad
    assert torch.isfinite(grads).all()
    assert grads.abs().amax() > 0
    assert isinstance(model.model.layers[0].mlp.experts, AnalogModule)
    assert all(isinstance(tile, AnalogLinear) for tile in model.model.layers[0].mlp.experts.tiles.values())


def test_a_router_becomes_analog_when_its_class_is_registered(registries):
    from crossbar.adapters import OwnForward, register_adapter

    digital = mixtral(torch.float64)
    digital.set_experts_implementation("eager")
    router = digital.model.layers[0].mlp.gate
    assert find_adapter(router) is None
    register_adapter(OwnForward(type(router)))
    model = copy.deepcopy(digital)
    names = [layer.name for layer in convert(model, QUIET).analog]
    assert "model.layers.0.mlp.gate.tiles.weight" in names
    with torch.no_grad():
        torch.testing.assert_close(model(tokens()).logits, digital(tokens()).logits, rtol=0, atol=1e-12)
