"""Tokenising and embedding, on a tiny BERT."""

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import nn
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from calibration.models.embedding import embed, tokenise
from crossbar.errors import InputError

TEXTS = ["a b c d e f g h", "a", "b c", "h g f e d c", "c", "a b c d"]


def raw_tokenizer():
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", *"abcdefgh"]
    raw = Tokenizer(models.WordLevel({word: k for k, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    raw.post_processor = processors.BertProcessing(("[SEP]", 3), ("[CLS]", 2))
    return raw


@pytest.fixture(scope="module")
def tokenizer():
    raw = raw_tokenizer()
    return PreTrainedTokenizerFast(tokenizer_object=raw, pad_token="[PAD]", unk_token="[UNK]", model_max_length=32)


@pytest.fixture(scope="module")
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        config = BertConfig(
            vocab_size=12,
            hidden_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=32,
            max_position_embeddings=32,
        )
        return BertModel(config).eval()


def test_embeddings_are_in_input_order_and_do_not_depend_on_the_batch(model, tokenizer):
    together = embed(model, tokenise(TEXTS, tokenizer, max_length=16))
    alone = torch.cat([embed(model, tokenise([text], tokenizer, max_length=16)) for text in TEXTS])
    in_twos = embed(model, tokenise(TEXTS, tokenizer, max_length=16, batch_size=2))
    assert together.dtype == torch.float32
    # Float32 with sums in another order: a few units of the last place of numbers near 1.
    torch.testing.assert_close(together, alone, rtol=0, atol=2e-6)
    torch.testing.assert_close(together, in_twos, rtol=0, atol=2e-6)
    torch.testing.assert_close(together.norm(dim=1), torch.ones(len(TEXTS)))


def test_batches_are_sorted_by_length_and_order_leads_back(tokenizer):
    texts = tokenise(TEXTS, tokenizer, max_length=16, batch_size=2)
    lengths = torch.cat([batch["attention_mask"].sum(dim=1) for batch in texts.batches])
    assert lengths.tolist() == sorted(lengths.tolist())
    expected = [len(text.split()) + 2 for text in TEXTS]
    assert [expected[k] for k in texts.order.tolist()] == lengths.tolist()


def test_what_stands_at_padded_positions_does_not_matter(tokenizer):
    class PoisonedPadding(nn.Module):
        def __init__(self):
            super().__init__()
            self.table = nn.Embedding(12, 4)

        def forward(self, input_ids, attention_mask, **_):
            hidden = self.table(input_ids)
            hidden = torch.where(attention_mask.bool().unsqueeze(-1), hidden, torch.nan)
            return type("Output", (), {"last_hidden_state": hidden})()

    assert embed(PoisonedPadding(), tokenise(TEXTS, tokenizer, max_length=16)).isfinite().all()


def test_a_model_in_training_is_scored_without_dropout_and_left_in_training(model, tokenizer):
    texts = tokenise(TEXTS, tokenizer, max_length=16)
    expected = embed(model, texts)
    model.train()
    model.encoder.layer[0].eval()
    try:
        assert torch.equal(embed(model, texts), expected)
        assert model.training
        assert model.encoder.layer[1].training
        assert not model.encoder.layer[0].training
    finally:
        model.eval()


@pytest.mark.parametrize("max_length", [0, 7, 33])
def test_a_length_that_the_model_cannot_read_is_refused(tokenizer, max_length):
    with pytest.raises(InputError, match=f"max_length {max_length} is not usable: give 8 to 32"):
        tokenise(TEXTS, tokenizer, max_length=max_length)


def test_a_model_that_reads_too_few_tokens_is_refused():
    short = PreTrainedTokenizerFast(tokenizer_object=raw_tokenizer(), pad_token="[PAD]", model_max_length=4)
    with pytest.raises(InputError, match="the model reads 4 tokens at once, and this takes 8"):
        tokenise(TEXTS, short, max_length=32)


def test_a_model_without_a_limit_is_not_told_as_a_number(tokenizer):
    endless = PreTrainedTokenizerFast(tokenizer_object=raw_tokenizer(), pad_token="[PAD]")
    with pytest.raises(InputError, match="max_length 7 is not usable: give 8 or more tokens"):
        tokenise(TEXTS, endless, max_length=7)


def test_a_tokenizer_without_padding_is_refused(tokenizer):
    bare = PreTrainedTokenizerFast(tokenizer_object=raw_tokenizer(), model_max_length=32)
    with pytest.raises(InputError, match="no padding token"):
        tokenise(TEXTS, bare, max_length=16)
