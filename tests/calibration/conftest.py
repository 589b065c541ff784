"""A small network and task of a user's own, tiny and real transformers models, for the tests of the jobs."""

import pytest
import torch
from tokenizers import Regex, Tokenizer, models, pre_tokenizers
from torch import nn
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from calibration import load_model


class TinyNet(nn.Module):
    """Two linear layers on ``x`` ``[B, N, 24]``; padding changes nothing but what calibration may look at."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(24, 40), nn.Linear(40, 8)

    def forward(self, x, attention_mask=None):
        return self.second(torch.relu(self.first(x)))


class Agreement:
    """How close a model's outputs stay to those that the digital model gave when the task was made."""

    name = "agreement"
    primary = "closeness"

    def __init__(self, model):
        draw = torch.Generator().manual_seed(5)
        mask = torch.ones(4, 6, dtype=torch.int64)
        mask[0, 4:] = 0
        self.calibration = [{"x": torch.randn(4, 6, 24, generator=draw), "attention_mask": mask} for _ in range(3)]
        self.evaluation = torch.randn(50, 24, generator=draw)
        with torch.no_grad():
            self.expected = model(self.evaluation)

    def batches(self, split):
        return iter(self.calibration if split == "calibration" else [{"x": self.evaluation}])

    def metrics(self, model):
        with torch.no_grad():
            outputs = model(x=self.evaluation)
        error = (outputs - self.expected).norm() / self.expected.norm()
        return {"closeness": 1 - float(error), "signs": float((outputs.sign() == self.expected.sign()).double().mean())}


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyNet().eval()


@pytest.fixture
def task(net):
    return Agreement(net)


@pytest.fixture(scope="session")
def minilm():
    return load_model("minilm")


@pytest.fixture(scope="session")
def letters():
    """A tokenizer that reads each letter as a token."""
    alphabet = "abcdefghijklmnopqrstuvwxyz'-"
    raw = Tokenizer(models.WordLevel({w: k for k, w in enumerate(["[PAD]", "[UNK]", *alphabet])}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]")


@pytest.fixture(scope="session")
def tiny_llama():
    """A causal language model of random weights that knows letters, with tied embeddings."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=32,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            intermediate_size=24,
            max_position_embeddings=64,
            initializer_range=0.3,
            tie_word_embeddings=True,
        )
        return LlamaForCausalLM(config).eval()


@pytest.fixture(scope="session")
def llama_folder(tmp_path_factory, letters, tiny_llama):
    path = tmp_path_factory.mktemp("models") / "letters-lm"
    tiny_llama.save_pretrained(path)
    letters.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def smollm2():
    """The real language model; half a minute where it was never converted, two seconds where it was."""
    return load_model("smollm2")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A tiny BERT that reads letters, as a model folder."""
    path = tmp_path_factory.mktemp("models") / "letters"
    letters = "abcdefghijklmnopqrstuvwxyz'-"
    raw = Tokenizer(models.WordLevel({w: k for k, w in enumerate(["[PAD]", "[UNK]", *letters])}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Split(Regex("."), "isolated")
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=64)
    tokenizer.save_pretrained(path)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=40,
            hidden_size=16,
            num_hidden_layers=1,
            num_attention_heads=2,
            intermediate_size=24,
            max_position_embeddings=64,
        )
        BertModel(config, add_pooling_layer=False).save_pretrained(path)
    return path


@pytest.fixture
def job(folder):
    """A job of a second."""
    return ["--model", str(folder), "--task", "wordsim", "--times", "[1h]", "--chips", "2"]
