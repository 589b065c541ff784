"""Text that a language model writes itself: from its own distribution, the same however many are written."""

from dataclasses import replace

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

import calibration.steps.finetune as finetuning
from calibration import Finetune
from calibration.steps.own_text import own_text
from crossbar import InputError, convert, presets, program

WORDS = 12
TRAINING = Finetune("weights", "any", steps=3, own_texts=5, rate=1e-3, checkpoint=False)


def llama(on_tiles=True):
    torch.manual_seed(0)
    sizes = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 1, "num_attention_heads": 2}
    model = LlamaForCausalLM(LlamaConfig(vocab_size=WORDS, eos_token_id=2, **sizes)).eval()
    with torch.no_grad():
        model.lm_head.weight *= 20
    if on_tiles:
        convert(model, presets.pcm())
    return model


def starts():
    return [{"input_ids": torch.tensor([[4, 5, 6]])}, {"input_ids": torch.tensor([[7, 8]])}]


def test_tokens_come_in_the_share_that_the_digital_model_gives_them():
    model = llama()
    program(model, 0)
    texts = own_text(model, starts(), 3000, 0)
    assert texts.shape == (3000, 3)
    assert texts[:, 0].tolist() == [4, 7] * 1500
    with torch.no_grad():
        scores = llama(on_tiles=False)(input_ids=torch.tensor([[4]])).logits[0, -1]
    scores[2] = -torch.inf  # a text does not end before it is long enough
    expected = scores.softmax(-1)
    found = texts[texts[:, 0] == 4][:, 1].bincount(minlength=WORDS) / 1500
    deviation = (expected * (1 - expected) / 1500).sqrt()
    assert ((found - expected).abs() <= 4 * deviation + 1e-6).all()
    assert (expected > 0.1).sum() > 1  # there was something to draw


def test_a_text_does_not_depend_on_how_many_are_written():
    assert torch.equal(own_text(llama(), starts(), 70, 3)[:5], own_text(llama(), starts(), 5, 3))
    assert not torch.equal(own_text(llama(), starts(), 5, 3), own_text(llama(), starts(), 5, 4))


def test_models_that_write_nothing_are_refused():
    with pytest.raises(InputError, match=r"Linear writes no text of its own: give Finetune own_texts: 0"):
        own_text(nn.Linear(2, 2), starts(), 1, 0)


def test_a_stopped_training_finds_its_texts_again(tmp_path, monkeypatch):
    monkeypatch.setattr(finetuning, "_KEEP", -1.0)
    whole, file = TRAINING.fit(llama(), starts()), tmp_path / "fit.state"

    def stop(step, total, text):
        if step == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        TRAINING.fit_long(llama(), starts(), file, stop)
    assert {path.name for path in tmp_path.iterdir()} == {"fit.state", "fit.state.texts"}
    (tmp_path / "fit.state.texts").write_bytes(b"damaged")
    with pytest.raises(KeyboardInterrupt):
        TRAINING.fit_long(llama(), starts(), file, lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    monkeypatch.setattr(finetuning, "own_text", None)  # it is read
    resumed = TRAINING.fit_long(llama(), starts(), file, None)
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert {path.name for path in tmp_path.iterdir()} == {"fit.state"}


def test_errors_are_drawn_as_wide_as_asked():
    curves = [replace(TRAINING, errors=errors).fit(llama(), starts())["losses"] for errors in (0.0, 1.0, 3.0)]
    assert curves[0][0] < curves[1][0] < curves[2][0]


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"errors": -1.0}, "Finetune errors = -1.0"),
        ({"own_texts": -1}, "Finetune own_texts = -1"),
        ({"train": "adapters", "chip": "own", "errors": 0.5}, "trains with the errors that a chip has"),
    ],
)
def test_refusals(options, named):
    with pytest.raises(InputError, match=named):
        replace(TRAINING, **options)
