"""Attention of some architectures in the ordinary suite, of every one that can be built small in the slow one."""

import contextlib

import pytest

from tests.architectures import tiny
from tests.architectures.attended import PATTERN, called, difference, look

EQUAL = (
    "bart", "exaone4", "falcon_h1", "gemma2", "gpt_oss", "layoutlm", "llava", "modernbert", "paligemma", "swin", "t5",
    "clip", "patchtst", "qwen2_5_vl",
)  # fmt: skip
REMEMBER = (
    "deepseek_v3",
    "exaone4",
    "falcon_h1",
    "gemma2",
    "gemma3",
    "gpt_oss",
    "lfm2",
    "moshi",
    "nemotron_h",
    "bamba",
)
REFUSED = {
    "falcon": "FalconForCausalLM computes attention in code of its own in transformer.h.0.self_attention",
    "longt5": "LongT5Model computes attention in code of its own in encoder.block.0.layer.0.LocalSelfAttention",
    "sam_vision_model": "SamVisionModel computes attention in code of its own in vision_encoder.layers.0.attn",
    "pegasus_x": "PegasusXModel computes attention in code of its own in encoder.layers.0.self_attn",
    "mamba": "MambaForCausalLM has no softmax attention that a pattern could restrict",
    "resnet": "ResNetModel has no softmax attention that a pattern could restrict",
    "segformer": "SegformerModel attends pooled keys in stages.0.blocks.0.attention",
    "t5gemma2": "T5Gemma2Model attends its own and another sequence in one softmax in decoder.layers.0.self_attn",
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted({*EQUAL, *REMEMBER}))
def test_an_architecture_is_attached_and_remembers(name):
    found = look(name)
    assert found.verdict == "equal", found
    if name != "swin":  # whose windows of 2 x 2 patches the pattern holds whole
        assert found.moved > 0.05
    if name in REMEMBER:
        assert found.remembers == "equal", found


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", REFUSED)
def test_what_no_pattern_reaches_is_refused_at_attach(name):
    found = look(name)
    assert found.verdict == "refused", found
    assert REFUSED[name] in found.sentence


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
def test_no_architecture_is_wrong():
    found = {}
    for name in tiny.architectures():
        with contextlib.suppress(Exception):  # whatever a configuration that is no model raises
            found[name] = look(name)
    wrong = {name: x for name, x in found.items() if x.verdict in ("wrong", "late") or x.remembers == "wrong"}
    assert not wrong
    assert sum(x.verdict == "equal" for x in found.values()) >= 250
    assert sum(x.remembers == "equal" for x in found.values()) >= 120


def test_the_pattern_of_the_walk_is_felt():
    """What `as_eager` compares with is no attention of everything."""
    from tests.architectures.attended import as_eager, enlarged

    model = enlarged(tiny.model_of("llama"))
    inputs = tiny.inputs_of(model)
    plain = called(model, inputs)
    with as_eager(model, PATTERN):
        restricted = called(model, inputs)
    assert difference(restricted, plain) > 0.05
    assert difference(called(model, inputs), plain) == 0
