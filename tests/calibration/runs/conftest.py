"""What tests of streams share."""

import pytest
import torch

from tests.calibration.random_llama import TINY, write_llama


@pytest.fixture(scope="module")
def llama(tmp_path_factory):
    """Shards in bfloat16, with a head of its own."""
    path = tmp_path_factory.mktemp("models") / "shards"
    write_llama(path, dtype=torch.bfloat16, spread=0.3, tie_word_embeddings=False, **TINY)
    return path
