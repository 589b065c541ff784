"""What a memory may be described as."""

import pytest

from attention import Memory, Protected
from attention.activation import Saturating, Softmax
from crossbar import presets
from crossbar.errors import InputError
from tests.attention.memory.cases import IDEAL


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"capacity": 0}, "memory capacity = 0"),
        ({"sinks": -1}, "memory sinks = -1"),
        ({"eviction": "oldest"}, "memory eviction = 'oldest' is not allowed: choose refuse, ring"),
        ({"placement": "random"}, "memory placement = 'random'"),
        ({"key_scale": "tensor"}, "memory key_scale = 'tensor'"),
        ({"value_scale": "channel"}, "memory value_scale = 'channel' is not allowed: choose row, head"),
        ({"token_seconds": 1.0, "clock": lambda: 0.0}, "give one of them"),
        ({"hardware": "pcm"}, "is not a Hardware"),
    ],
)
def test_impossible_descriptions_are_refused(change, message):
    with pytest.raises(InputError, match=message):
        Memory(**{"hardware": IDEAL, **change})


@pytest.mark.parametrize(
    "memory",
    [
        Memory(presets.gain_cell()),
        Memory(presets.pcm(), 64, 2, "refuse", "striped", 1e-3, None, "channel", "head", Protected(1, 3, "pairs", 4)),
        Memory(IDEAL, activation=Saturating(-1.0, 3.0, None, 0.5), seed=3),
        Memory(IDEAL, activation=Softmax(8)),
    ],
)
def test_plain_values_give_the_memory_again(memory):
    assert Memory.from_dict(memory.to_dict()) == memory


def test_what_is_not_given_keeps_its_default():
    assert Memory.from_dict({"hardware": "pcm", "protected": {}}) == Memory(presets.pcm(), protected=Protected())
    part = {"hardware": {"device": "pcm", "adc": {"bits": 6}}, "activation": {"bits": 8}}
    assert Memory.from_dict(part).hardware.adc.bits == 6
    assert Memory.from_dict(part).activation == Softmax(8)
