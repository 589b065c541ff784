"""What a ledger that is given a model counts of its digital layers."""

import torch
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence
from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralExperts

from crossbar import Hardware, Ledger, Tile, convert


class RMSNorm(nn.Module):
    def __init__(self, size):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(size))

    def forward(self, x):
        return x * self.weight


class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.gain = nn.Parameter(torch.ones(1))

    def forward(self, x):
        return x * self.gain


def model():
    return nn.Sequential(
        nn.Embedding(50, 8), nn.LayerNorm(8), nn.Linear(8, 4), nn.SiLU(), RMSNorm(4), nn.Linear(4, 3, bias=False)
    )


IDS = torch.arange(10).view(2, 5)


def test_digital_layers_by_hand():
    net = model()
    with Ledger(net) as ledger:
        net(IDS)
    assert ledger.to_dict() == {
        "0": {"dram_bytes": 2 * 10 * 8, "sram_bytes": 2 * 10 * 8},
        "1": {"digital_macs": 4 * 80, "special_functions": 20, "sram_bytes": 2 * 160},
        "2": {"digital_macs": 10 * 32, "dram_bytes": 2 * (32 + 4), "sram_bytes": 2 * (80 + 40)},
        "3": {"special_functions": 40, "sram_bytes": 2 * 80},
        "4": {"digital_macs": 3 * 40, "special_functions": 20, "sram_bytes": 2 * 80},
        "5": {"digital_macs": 10 * 12, "dram_bytes": 2 * 12, "sram_bytes": 2 * (40 + 30)},
    }
    assert ledger.uncounted == {}


def test_analog_layers_book_themselves_and_only_once():
    net = model()
    convert(net, Hardware(tile=Tile(4, 4)))
    with Ledger(net) as ledger, torch.no_grad():
        net(IDS)
    assert "cell_macs" in ledger.to_dict()["2"]
    assert "dram_bytes" not in ledger.to_dict()["2"]
    assert ledger.to_dict()["1"]["digital_macs"] == 4 * 80
    with Ledger() as bare, torch.no_grad():
        net(IDS)
    assert set(bare.by_layer) == {"2", "5"}


def test_the_model_is_left_as_it_was():
    net = model()
    with Ledger(net):
        pass
    with Ledger() as ledger:
        net(IDS)
    assert ledger.to_dict() == {}
    assert all(not module._forward_hooks for module in net.modules())


def test_a_layer_of_unknown_kind_is_named():
    net = nn.Sequential(nn.Linear(2, 2), Strange())
    with Ledger(net) as ledger:
        net(torch.ones(1, 2))
    assert ledger.uncounted == {"1": "Strange"}


def test_a_language_model_leaves_nothing_uncounted():
    from tests.attention.hf_models import llama, tokens

    net = llama()
    with Ledger(net) as ledger, torch.no_grad():
        net(tokens())
    assert ledger.uncounted == {}
    kinds = {name.rpartition(".")[2] for name in ledger.by_layer}
    assert {"embed_tokens", "input_layernorm", "norm", "act_fn", "q_proj", "down_proj"} <= kinds


def counted(layer, *inputs, **options):
    """What one call of a layer books under its own name."""
    net = nn.ModuleDict({"layer": layer})
    with torch.no_grad(), Ledger(net) as ledger:
        layer(*inputs, **options)
    assert ledger.uncounted == {}
    return ledger.to_dict()


def test_routed_experts_alone_by_hand():
    """5 tokens, three to experts 0 and 2, two to experts 2 and 3; the weights of expert 1 are not read."""
    config = MixtralConfig(hidden_size=16, intermediate_size=24, num_local_experts=4)
    index = torch.tensor([[0, 2], [0, 2], [2, 0], [3, 2], [2, 3]])
    for implementation in ("eager", "batched_mm"):  # however they are computed
        config._experts_implementation = implementation
        counts = counted(MixtralExperts(config), torch.ones(5, 16), index, torch.full((5, 2), 0.5))
        expert = 48 * 16 + 16 * 24
        assert counts["layer"] == {
            "digital_macs": 5 * 2 * expert,
            "dram_bytes": 2 * 3 * expert,
            "sram_bytes": 2 * (5 * 16 + 5 * 2 + 5 * 16),
        }
        assert counts["layer.act_fn"]["special_functions"] == 5 * 2 * 24


def test_an_lstm_by_hand():
    """Sequences of 3, 2 and 1 steps, packed: 6 inputs, and as many states."""
    layer = nn.LSTM(5, 4, dropout=0.0)
    packed = pack_padded_sequence(torch.ones(3, 3, 5), [3, 2, 1])
    weights = 16 * 5 + 16 * 4
    assert counted(layer, packed)["layer"] == {
        "digital_macs": 6 * weights,
        "dram_bytes": 2 * (weights + 2 * 16),
        "sram_bytes": 2 * (6 * 5 + 6 * 4 + 2 * 3 * 4),  # inputs, outputs, and the last two states
    }


def test_projections_of_attention_by_hand():
    """Queries of 3 tokens, keys and values of 5, in two sequences; the products of queries and keys are not a layer."""
    layer, query, key = nn.MultiheadAttention(8, 2, batch_first=True), torch.ones(2, 3, 8), torch.ones(2, 5, 8)
    counts = counted(layer, query, key, key, need_weights=False)["layer"]
    assert counts == {
        "digital_macs": (2 * 6 + 2 * 10) * 64,
        "dram_bytes": 2 * (4 * 64 + 4 * 8),
        "sram_bytes": 2 * (2 * 3 * 8 + 2 * 5 * 8 + 2 * 3 * 8),
    }


def test_counting_draws_no_random_number_of_training():
    layer = nn.GRU(3, 3, num_layers=2, dropout=0.5)
    state = torch.get_rng_state()
    plain = layer(torch.ones(4, 2, 3))[0]
    after = torch.get_rng_state()
    torch.set_rng_state(state)
    with Ledger(nn.Sequential(layer)):
        assert torch.equal(layer(torch.ones(4, 2, 3))[0], plain)
    assert torch.equal(torch.get_rng_state(), after)
