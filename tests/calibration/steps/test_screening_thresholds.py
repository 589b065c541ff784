"""Thresholds of rows that spike, for a wanted share of the pairs."""

import copy

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from attention import attach, detach
from attention.hf.attach import set_thresholds, thresholds
from calibration import ScreeningThresholds
from calibration.bundles.writer import named_parts
from crossbar import Ledger, presets
from crossbar.errors import InputError

HEADS, LAYERS, N = 4, 2, 60


def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": HEADS}
        sizes |= {"num_key_value_heads": 2, "intermediate_size": 32}
        return LlamaForCausalLM(LlamaConfig(vocab_size=40, **sizes)).eval()


def ids(seed=0):
    return torch.randint(0, 40, (2, N), generator=torch.Generator().manual_seed(seed))


def opened(net, tokens, mask=None):
    with Ledger() as ledger, torch.no_grad():
        net(input_ids=tokens, attention_mask=mask, use_cache=False)
    return ledger.totals()["attended_pairs"] / (LAYERS * HEADS)


@pytest.mark.parametrize("memory", [None, presets.ideal()], ids=["digital", "memory"])
@pytest.mark.parametrize("pattern", ["spiking(0)", "spiking(0) | sinks(2) | window(4)"])
def test_the_wanted_share_is_open_and_nearly_so_on_other_text(pattern, memory):
    net, step = model(), ScreeningThresholds(share=0.3)
    attach(net, pattern, memory)
    fitted = step.fit(net, [{"input_ids": ids()}])
    assert fitted.keys() == {f"model.layers.{i}.self_attn.thresholds" for i in range(LAYERS)}
    step.apply(net, fitted)
    every = 2 * N * (N + 1) / 2
    # The model that was looked at attends everything, this one the chosen pairs: later layers differ a little.
    assert opened(net, ids()) / every == pytest.approx(0.3, abs=0.02)
    assert opened(net, ids(1)) / every == pytest.approx(0.3, abs=0.05)


def test_padding_is_not_looked_at_and_heads_whose_share_is_full_never_fire():
    net = model()
    attach(net, "spiking(0) | window(4)")
    mask = torch.ones(2, N, dtype=torch.int64)
    mask[1, 40:] = 0
    step = ScreeningThresholds(share=0.4)
    fitted = step.fit(net, [{"input_ids": ids(), "attention_mask": mask}])
    step.apply(net, fitted)
    every = N * (N + 1) / 2 + 40 * 41 / 2
    assert opened(net, ids(), mask) / every == pytest.approx(0.4, abs=0.02)
    full = ScreeningThresholds(share=0.01)
    full.apply(net, full.fit(net, [{"input_ids": ids()}]))
    assert all(bool((values == 1e6).all()) for values in thresholds(net).values())
    assert opened(net, ids()) == 2 * (4 * N - 6)


def test_thresholds_are_state_of_the_model_until_it_is_detached():
    net = model()
    before = set(net.state_dict())
    attach(net, "heads(spiking(1), spiking(2), window(3), spiking(4)) | sinks(1)")
    assert [values.tolist() for values in thresholds(net).values()] == [[1.0, 2.0, 0.0, 4.0]] * LAYERS
    plain = opened(net, ids())
    other = copy.deepcopy(net)
    set_thresholds(other, {"model.layers.1.self_attn": torch.full((HEADS,), -1e3)})
    assert opened(other, ids()) > plain == opened(net, ids())
    assert named_parts(other)["model.layers.1.self_attn.ohmformer_thresholds"].tolist() == [-1e3] * HEADS
    attach(net, "window(3)")
    assert not thresholds(net)
    detach(net)
    assert set(net.state_dict()) == before


def test_models_without_spiking_rows_are_refused():
    net = model()
    attach(net, "screened(3, bits=4)")
    with pytest.raises(InputError, match=r"needs a pattern with spiking\(\.\.\.\): attach one"):
        ScreeningThresholds().fit(net, [])
    with pytest.raises(InputError, match="share = 0 is not allowed"):
        ScreeningThresholds(share=0)
    attach(net, "spiking(1)")
    with pytest.raises(InputError, match="which has 4 finite ones"):
        set_thresholds(net, {"model.layers.0.self_attn": torch.zeros(3)})
