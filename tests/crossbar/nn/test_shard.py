"""Converted models that two processes share: the outputs of one, and the same cells and noise."""

import os
import subprocess
import sys
from datetime import timedelta
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from crossbar import (
    Converter,
    Hardware,
    InputError,
    Ledger,
    Tile,
    age,
    analog_layers,
    bypassed,
    convert,
    presets,
    program,
    reset_reads,
    shard,
    unshard,
    using_backend,
)
from crossbar.nn.shard import AnalogShard

HARDWARE = {
    "no converters": Hardware(presets.pcm().device, tile=Tile(8, 8), dac=None, adc=None, output_noise=0.04),
    "pcm": Hardware(presets.pcm().device, tile=Tile(8, 8), output_noise=0.04),
    "found ranges, slices, cell noise": Hardware(
        presets.reram().device,
        tile=Tile(8, 8, slices=2),
        dac=Converter(range="per_token"),
        adc=Converter(bits=10),
        read_noise=presets.reram().read_noise,
    ),
}
IDS = torch.arange(24).view(2, 12)


def llama(blocks=2):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32,
            hidden_size=32,
            num_hidden_layers=blocks,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=48,
            max_position_embeddings=64,
            initializer_range=0.3,
            tie_word_embeddings=False,
        )
        return LlamaForCausalLM(config).eval()


def chip(hardware):
    """A calibrated chip: word-line scales, digital lines, output corrections, adapters and gains of its own.

    Where there are no converters inputs are rotated too.
    """
    model = llama(1)
    convert(model, hardware)
    draw = torch.Generator().manual_seed(1)
    for layer in analog_layers(model).values():
        layer.set_digital_lines(torch.tensor([1, layer.in_features - 2]))
        layer.set_line_scale(torch.rand(layer.in_features, generator=draw) + 0.5)
        layer.set_rotation(16 if hardware.adc is None else None)
    program(model, 3)
    age(model, "1d")
    for layer in analog_layers(model).values():
        layer.column_gain = torch.rand(layer.column_gain.shape, generator=draw) + 0.5
        layer.set_output_correction(*torch.rand(2, layer.out_features, generator=draw))
        down, up = (torch.randn(size, 2, generator=draw) / 9 for size in (layer.in_features, layer.out_features))
        layer.set_adapter(down, up.t().contiguous())
    return model


@torch.inference_mode()
def scores(model):
    """Of two reads, the second with noise of its own."""
    with using_backend("eager"):
        reset_reads(model)
        return torch.stack([model(input_ids=IDS).logits for _ in range(2)])


@torch.inference_mode()
def read(layer, x):
    """Two reads of a layer, or of what a process has of it."""
    with using_backend("eager"):
        reset_reads(layer)
        return torch.stack([layer(x) for _ in range(2)])


def test_two_processes_give_the_outputs_of_one(tmp_path):
    name = "no converters"  # of those, a code more or less where rounding differs is more than rounding
    wanted = scores(chip(HARDWARE[name]))
    with subprocess.Popen([sys.executable, __file__, str(tmp_path / "meeting")], **SETTING) as other:
        found = shared(tmp_path / "meeting", 0)
        assert other.wait(timeout=240) == 0
    assert not torch.equal(wanted[0], wanted[1])
    torch.testing.assert_close(found[name], wanted, rtol=1e-4, atol=1e-4)


def shared(meeting, rank):
    """The scores of chips that two processes share, which meet at a file; all else that they have to hold to."""
    dist.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(minutes=4)
    )
    try:
        return {name: of_half(chip(hardware), rank) for name, hardware in HARDWARE.items()}
    finally:
        dist.destroy_process_group()


def of_half(model, rank):
    whole = {name: layer.cells.digits.clone() for name, layer in analog_layers(model).items()}
    inputs = {n: torch.randn(5, n, generator=torch.Generator().manual_seed(n)) for n in (32, 48)}
    outputs = {name: read(layer, inputs[layer.in_features]) for name, layer in analog_layers(model).items()}
    digital = llama(1)(input_ids=IDS).logits
    names = shard(model, model.tp_plan)
    assert len(names) == 8  # seven layers of a block, and the head
    query, down = (model.get_submodule(f"model.layers.0.{name}") for name in ("self_attn.q_proj", "mlp.down_proj"))
    assert (query.lines, query.columns) == (slice(0, 32), slice(16 * rank, 16 * rank + 16))
    assert (down.lines, down.columns) == (slice(24 * rank, 24 * rank + 24), slice(0, 32))
    assert (query.in_features, query.out_features, down.in_features, down.out_features) == (32, 16, 24, 32)
    assert model.lm_head.out_features == 32
    for name in names:
        own = model.get_submodule(name)
        columns = slice(None) if name == "lm_head" else own.columns
        got = read(own, inputs[own.whole.in_features][:, own.lines])
        torch.testing.assert_close(got, outputs[name][:, :, columns], rtol=1e-5, atol=1e-5)
    found = scores(model)
    with torch.inference_mode(), bypassed(model):
        torch.testing.assert_close(model(input_ids=IDS).logits, digital, rtol=1e-4, atol=1e-4)
    with Ledger() as ledger, torch.inference_mode():
        model(input_ids=IDS)
    counted = {counter.name: number for counter, number in ledger.by_layer["model.layers.0.mlp.down_proj"].items()}
    if down.whole.rotation is not None:  # 24 vectors drive 24 lines of 4 tiles, digital lines too
        assert counted["dac_conversions"] == 24 * 24 * 4
    assert counted["adc_conversions"] == 24 * 32 * 3 * query.whole.hardware.tile.slices
    age(model, "1h")
    age(model, "1d")
    assert torch.equal(scores(model), found)
    for own in (query, down):  # the same cells, and no others in memory
        digits = own._readout().weight
        assert torch.equal(digits, whole[own.whole.name][:, own.lines, own.columns])
        assert own.whole.cells._digits is None
    unshard(model)
    assert torch.equal(scores(model), scores(chip(query.whole.hardware)))
    return found


ROOT = Path(__file__).resolve().parents[3]
SETTING = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}


# What cannot be shared


@pytest.fixture
def alone(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path / 'meeting'}", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def one(inputs=12, outputs=8, hardware=HARDWARE["pcm"]):
    model = nn.Sequential(nn.Linear(inputs, outputs))
    convert(model, hardware)
    return model


def test_it_needs_processes():
    with pytest.raises(InputError, match="no processes share the model: start them with torchrun"):
        shard(one(), {"0": "colwise"})


def test_a_plan_has_to_name_layers(alone):
    model = one()
    with pytest.raises(InputError, match="names none of the 1 analog layers, such as '0'"):
        shard(model, {"1": "colwise", "0": "sequence_parallel"})
    assert shard(model, {"0": "colwise"}) == ["0"]


@pytest.mark.parametrize(
    ("style", "world", "said"),
    [
        ("colwise", 3, "has 8 outputs, which 3 processes cannot share evenly"),
        ("rowwise", 5, "has 12 inputs, which 5 processes cannot share evenly"),
        ("rowwise", 2, "cut between word lines of one tile: 6 inputs a process are no multiple of 8 rows"),
    ],
)
def test_layers_that_cannot_be_cut(style, world, said):
    with pytest.raises(InputError, match=said):
        AnalogShard(one()[0], style, 0, world, None)


def test_shards_do_not_train(alone):
    model = one()
    shard(model, {"0": "colwise"})
    with pytest.raises(InputError, match="shared among processes, which find no gradients"):
        model(torch.ones(2, 12, requires_grad=True))
    with pytest.raises(InputError, match=r"got inputs \[2, 9\]: give \[..., 12\]"):
        model(torch.ones(2, 9))


if __name__ == "__main__":
    shared(Path(sys.argv[1]), 1)
