"""What a memory may be described as."""

import pytest

from attention import Memory
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
