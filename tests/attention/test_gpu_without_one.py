"""Attention on tensors that have a device and a shape and no numbers, as on a GPU that the host does not wait for.

Whoever asks for a number, copies one to the host or counts what is not 0 is refused by torch, and so are tensors of two
devices in one operation. That the right numbers come out is what the other tests are for.
"""

import dataclasses

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from attention import AnalogMemory, Controller, Memory, Router, attach, gated_attention, parse, platforms
from attention.controller.event_arithmetic import accumulate, score
from attention.controller.events import Placement
from attention.hf.cache import AnalogCacheLayer
from crossbar import CellNoise, Ledger, Tile, presets

PCM = dataclasses.replace(presets.pcm(), tile=Tile(32, 8), read_noise=CellNoise(0.2, 0.02))
GAIN_CELL = dataclasses.replace(presets.gain_cell(), tile=Tile(16, 8))
WINDOW = parse("causal(window(12) | sinks(2))")
META = torch.device("meta")


def tensors(n=260, batch=1, **options):
    return [torch.zeros(batch, heads, n, 16, device=META, **options) for heads in (4, 2, 2)]


@pytest.mark.parametrize("hardware", [None, PCM], ids=["digital", "pcm"])
@pytest.mark.parametrize(
    "pattern",
    ["causal(window(9) | sinks(2))", "strided(17)", "bigbird(32, 2)", "heads(window(4), dense, window(4), sinks(2))"],
)
def test_forward_and_backward_wait_for_nothing(pattern, hardware):
    inputs = tensors(requires_grad=True)
    mask = torch.ones(1, 260, dtype=torch.bool, device=META)
    output, lse = gated_attention(*inputs, parse(pattern), hardware=hardware, mask=mask, return_lse=True)
    (output.sum() + lse.sum()).backward()
    assert output.device == inputs[1].grad.device == META


SELECTIONS = [
    "topk(5)", "causal(topk(5, straight) | window(4))", "causal(blocktopk(16, 3) & dense)", "routing(3, 20)",
    "causal(routing(3, 20) | window(4))", "heads(topk(3), window(4), blocktopk(16, 2), dense)",
]  # fmt: skip


@pytest.mark.parametrize("hardware", [None, PCM], ids=["digital", "pcm"])
@pytest.mark.parametrize("pattern", SELECTIONS)
def test_selections_stay_where_the_scores_are(pattern, hardware):
    inputs = tensors(90, batch=2, requires_grad=True)
    mask = torch.ones(2, 90, dtype=torch.bool, device=META)
    output, lse = gated_attention(*inputs, parse(pattern), hardware=hardware, mask=mask, return_lse=True)
    (output.sum() + lse.sum()).backward()
    assert output.device == inputs[1].grad.device == META


@pytest.mark.parametrize("platform", [platforms.ideal(32), platforms.loihi1()], ids=["ideal", "mesh"])
@pytest.mark.parametrize("pattern", [*SELECTIONS, "causal(window(12) | sinks(2))"])
def test_controllers_and_ledgers_wait_for_no_pairs(pattern, platform):
    inputs = tensors(90, batch=2)
    mask = torch.ones(2, 90, dtype=torch.bool, device=META)
    hardware = PCM if platform.rows == 32 else None
    with Ledger() as ledger:
        gated_attention(*inputs, parse(pattern), hardware=hardware, mask=mask, controller=Controller(platform))
        gated_attention(*inputs, parse(pattern), hardware=PCM, mask=mask)
    with pytest.raises(NotImplementedError, match="Cannot copy out of meta tensor"):
        ledger.totals()


def test_hierarchical_and_delivered_events_wait_for_nothing():
    for options in (
        {"pattern": parse("causal(hierarchical(8, 2))")},
        {"pattern": WINDOW, "controller": Controller(platforms.ideal())},
    ):
        assert gated_attention(*tensors(), **options).device == META


@pytest.mark.parametrize("hardware", [PCM, GAIN_CELL], ids=["pcm", "gain cell"])
def test_a_memory_decodes_and_waits_for_nothing(hardware):
    memory = AnalogMemory(Memory(hardware, capacity=20, sinks=2, token_seconds=1e-4, key_scale="head"))
    with Ledger():
        for n in (9, *[1] * 5, 24):  # through a ring that turns
            q, k, v = tensors(n, batch=2)
            memory.append(k, v)
            assert memory.read(q, WINDOW)[0].device == META
    layer = AnalogCacheLayer(memory)
    layer.batch_repeat_interleave(2)
    layer.batch_select_indices(torch.tensor([3, 0], device="cpu"))
    assert memory.batch == 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "pattern", ["routing(3, 8)", "causal(routing(3, 8) | window(4))", "topk(5)", "causal(blocktopk(8, 2))"]
)
def test_selections_in_16_bits(pattern, dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 30, 8, generator=generator).to(dtype) for _ in range(3))
    found = gated_attention(q, k, v, parse(pattern))
    expected = gated_attention(*(x.float() for x in (q, k, v)), parse(pattern))
    assert found.dtype == dtype
    torch.testing.assert_close(found.float(), expected, rtol=0, atol=0.02)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_router_learns_in_16_bits(dtype):
    generator = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 2, 30, 8, generator=generator) for _ in range(3))
    found = []
    for kind in (torch.float32, dtype):
        router = Router(parse("causal(routing(3, 8) | window(4))"), 2, 8, decay=0.9).to(kind)
        for _ in range(4):
            output = gated_attention(
                *(x.to(dtype).to(kind) for x in (q, k, v)), router(q.to(dtype).to(kind), k.to(dtype).to(kind))
            )
        assert output.dtype == kind
        found.append(router.centroids)
    assert found[1].dtype == torch.float32  # steps of a thousandth need it
    torch.testing.assert_close(*found, rtol=0, atol=1e-5)


def test_events_are_added_up_where_the_values_are():
    placement = Placement.sequential(8, 4)
    events = Controller(platforms.ideal(4)).events(parse("window(2)").rows(8), placement)
    v = torch.zeros(8, 3, dtype=torch.int64, device=META)
    assert accumulate(events, placement, v, 8).device == META
    assert score(events, placement, v, v).device == META


@pytest.mark.parametrize("memory", [None, PCM], ids=["digital", "pcm"])
def test_an_attached_model_waits_for_nothing(memory, monkeypatch):
    # What transformers itself asks once a call: whether sequences are packed.
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda *args, **kwargs: None)
    sizes = {"hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2}
    config = LlamaConfig(**sizes, intermediate_size=48, max_position_embeddings=512, vocab_size=40)
    with META:
        model = LlamaForCausalLM(config).eval()
        tokens = torch.zeros(1, 150, dtype=torch.int64)
    attach(model, WINDOW, memory)
    assert model(input_ids=tokens, use_cache=memory is not None).logits.device == META
    model.train()(input_ids=tokens, use_cache=False).logits.sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.device == META
