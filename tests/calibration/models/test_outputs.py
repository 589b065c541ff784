"""What tasks read from models, and the refusal of models that give something else."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM, BertForSequenceClassification, BertModel

from calibration.models.outputs import hidden_states, next_token_scores
from crossbar import InputError

IDS = {"input_ids": torch.tensor([[1, 2, 3], [4, 5, 6]])}


def bert(kind):
    config = BertConfig(vocab_size=8, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    return kind(config).eval()


class Own(nn.Module):
    """A model of a user's own, which returns whatever it is given."""

    def __init__(self, **fields):
        super().__init__()
        self.fields = fields

    def forward(self, input_ids):
        return SimpleNamespace(**self.fields)


def test_hidden_states_of_an_encoder_and_of_a_model_of_ones_own():
    assert hidden_states(bert(BertModel), IDS).shape == (2, 3, 8)
    hidden = torch.ones(2, 3, 5)
    assert hidden_states(Own(last_hidden_state=hidden), IDS) is hidden


def test_scores_of_a_language_model_and_of_a_model_of_ones_own(tiny_llama):
    assert next_token_scores(tiny_llama, IDS).shape == (2, 3, 32)
    logits = torch.ones(2, 3, 5)
    assert next_token_scores(Own(logits=logits), IDS) is logits


def test_a_language_model_has_no_embeddings(tiny_llama):
    with pytest.raises(InputError, match="LlamaForCausalLM returns CausalLMOutputWithPast, which has no embeddings"):
        hidden_states(tiny_llama, IDS)


@pytest.mark.parametrize(
    ("kind", "output"),
    [
        (BertModel, "BaseModelOutputWithPooling"),
        (BertForMaskedLM, "MaskedLMOutput"),  # sees what it would have to predict
        (BertForSequenceClassification, "SequenceClassifierOutput"),
    ],
)
def test_what_does_not_score_next_tokens(kind, output):
    with pytest.raises(InputError, match=f"{kind.__name__} returns {output}.*, which does not score next tokens: give"):
        next_token_scores(bert(kind), IDS)


def test_scores_of_another_shape_are_refused():
    with pytest.raises(InputError, match="does not score next tokens"):
        next_token_scores(Own(logits=torch.ones(2, 5)), IDS)
