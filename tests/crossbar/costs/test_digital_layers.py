"""What a ledger that is given a model counts of its digital layers."""

import torch
from torch import nn

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
