"""Perplexity: against plain computations, on a tiny model and on SmolLM2."""

import copy
import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn
from transformers import BertConfig, BertForMaskedLM

from calibration import calibrate, emulate, load_model, tasks
from calibration.tasks.wikipedia import articles, plain
from crossbar import InputError, convert, presets

SIZES = {"windows": 3, "window_length": 40, "calibration_windows": 2}


@pytest.fixture(scope="module")
def task(letters):
    return tasks.get("perplexity", letters, **SIZES)


@pytest.fixture(scope="module")
def cut():
    """Each article as it enters a text."""
    return [plain(body)[:4000] for body in articles()]


def windows(task, split):
    return torch.cat([batch["input_ids"] for batch in task.batches(split)])


# The text


def test_windows_are_the_first_tokens_of_their_articles(letters, task, cut):
    for split, chosen, count in (("evaluation", cut[20:40], 3), ("calibration", cut[40:60], 2)):
        expected = letters("\n\n".join(chosen))["input_ids"][: count * 40]
        assert windows(task, split).shape == (count, 40)
        assert windows(task, split).flatten().tolist() == expected


def test_no_article_is_in_both_splits(cut):
    bodies = [plain(body) for body in articles()]
    evaluation, fitted = set(cut[20:40]), set(cut[40:60]) | set(bodies[60:])
    assert len(evaluation) == 20
    assert len(fitted) == 66
    assert not evaluation & fitted


def test_training_goes_on_where_calibration_ends(letters, cut):
    calibrating = len(letters("\n\n".join(cut[40:60]))["input_ids"]) // 512
    task = tasks.get("perplexity", letters, windows=2, calibration_windows=3, training_windows=calibrating + 5)
    trained = torch.cat([batch["input_ids"] for batch in task.training_batches()])
    expected = letters("\n\n".join([*cut[40:60], *(plain(body) for body in articles()[60:])]))["input_ids"]
    assert trained.shape == (calibrating + 5, 512)
    assert trained.flatten().tolist() == expected[: trained.numel()]
    assert torch.equal(windows(task, "calibration"), trained[:3])
    task = tasks.get("perplexity", letters, windows=2, calibration_windows=3)
    assert torch.equal(windows(task, "calibration"), torch.cat([b["input_ids"] for b in task.training_batches()]))


def test_batches_of_whole_windows_of_at_most_2048_tokens(letters):
    task = tasks.get("perplexity", letters, windows=10, window_length=512)
    assert [tuple(b["input_ids"].shape) for b in task.batches("evaluation")] == [(4, 512), (4, 512), (2, 512)]
    task = tasks.get("perplexity", letters, windows=2, window_length=4000)
    assert [tuple(b["input_ids"].shape) for b in task.batches("evaluation")] == [(1, 4000), (1, 4000)]


def test_as_many_windows_calibrate_as_are_scored_unless_told(letters):
    task = tasks.get("perplexity", letters, windows=4, window_length=2048)
    assert windows(task, "calibration").shape == windows(task, "evaluation").shape == (4, 2048)


def test_a_text_longer_than_the_model_reads_makes_no_noise(llama_folder, capfd):
    tasks.get("perplexity", load_model(llama_folder).tokenizer, windows=2, window_length=64)
    assert capfd.readouterr() == ("", "")


def test_two_constructions_are_equal(letters, task):
    again = tasks.get("perplexity", letters, **SIZES)
    for split in ("evaluation", "calibration"):
        assert torch.equal(windows(task, split), windows(again, split))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"windows": 0}, "windows 0 is not usable: give 1 to"),
        ({"windows": 10**6}, "windows 1000000 is not usable: give 1 to [0-9]+, as many as the text has of 512 tokens"),
        ({"calibration_windows": 0}, "calibration_windows 0 is not usable"),
        ({"window_length": 1}, "window_length 1 is not usable: give 2 or more tokens"),
        ({"pairs": 3}, "no option 'pairs': choose from windows, window_length, calibration_windows, training_windows"),
    ],
)
def test_impossible_sizes(letters, options, message):
    with pytest.raises(InputError, match=message):
        tasks.get("perplexity", letters, **options)


def test_a_window_longer_than_the_model_reads(llama_folder):
    with pytest.raises(InputError, match="window_length 512 is not usable: give 2 to 64 tokens, which is what the"):
        tasks.get("perplexity", load_model(llama_folder).tokenizer)


# Text of one's own


def test_texts_of_ones_own_are_scored_and_the_articles_calibrate(letters, task):
    poems = ["the raven never flitting", "still is sitting " * 9]
    own = tasks.get("perplexity", letters, texts=poems, **SIZES)
    expected = letters("\n\n".join(poems))["input_ids"][: 3 * 40]
    assert windows(own, "evaluation").flatten().tolist() == expected
    assert torch.equal(windows(own, "calibration"), windows(task, "calibration"))
    (single,) = (tasks.get("perplexity", letters, texts="\n\n".join(poems), **SIZES),)
    assert torch.equal(windows(single, "evaluation"), windows(own, "evaluation"))


def test_with_both_texts_no_article_is_read(letters, monkeypatch):
    monkeypatch.setattr("calibration.tasks.perplexity.articles", lambda: pytest.fail("articles were read"))
    texts = {"texts": "nevermore " * 20, "calibration_texts": ["quoth the raven " * 10, "lenore"]}
    own = tasks.get("perplexity", letters, **texts, **SIZES)
    assert windows(own, "calibration").flatten().tolist() == letters("quoth the raven " * 10)["input_ids"][:80]
    trained = torch.cat([batch["input_ids"] for batch in own.training_batches()])
    assert torch.equal(trained, windows(own, "calibration"))


def test_a_text_that_both_calibrates_and_is_scored_is_refused(letters, tiny_llama):
    own = tasks.get("perplexity", letters, texts="nevermore " * 20, calibration_texts="nevermore " * 20, **SIZES)
    with pytest.raises(InputError, match="is in its evaluation data too"):
        calibrate(tiny_llama, own, "ideal", times=["1h"], chips=1)


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        ("too short", "the text of windows has 9 tokens, which fill no window of 40: give more text, a shorter"),
        ([], "the text of windows has 0 tokens, which fill no window of 40"),
        ("nevermore " * 9, "windows 3 is not usable: give 1 to 2, as many as the text has of 40 tokens"),
        (["nevermore", b"lenore"], "texts holds a bytes: give one text or a list of texts, each a str"),
    ],
)
def test_texts_that_cannot_be_scored(letters, texts, message):
    with pytest.raises(InputError, match=message):
        tasks.get("perplexity", letters, texts=texts, **SIZES)


# The number


def test_perplexity_is_the_exponential_of_the_mean_loss(tiny_llama, task):
    losses = []
    with torch.no_grad():
        for window in windows(task, "evaluation"):  # one at a time, with transformers' own loss
            losses.append(float(tiny_llama(input_ids=window[None], labels=window[None]).loss))
    assert task.metrics(tiny_llama)["perplexity"] == pytest.approx(math.exp(sum(losses) / 3), rel=1e-5)
    assert task.losses(tiny_llama).tolist() == pytest.approx(losses, rel=1e-5)


class Known(nn.Module):
    """Scores that are known: each token the same number of nats."""

    def __init__(self, scores):
        super().__init__()
        self.scores = nn.Parameter(torch.tensor(scores))

    def forward(self, input_ids):
        return SimpleNamespace(logits=self.scores.expand(*input_ids.shape, -1))


def test_a_model_that_knows_nothing_is_as_perplexed_as_there_are_tokens(task):
    expected = pytest.approx(32.0, rel=1e-6)
    assert task.metrics(Known([0.0] * 32)) == {"perplexity": expected, "median_perplexity": expected}


class Lost(nn.Module):
    """Sure of the right token in all windows but the first, where it is as sure of another."""

    def __init__(self, sure):
        super().__init__()
        self.sure = nn.Parameter(torch.tensor(sure))
        self.seen = 0

    def forward(self, input_ids):
        scores = torch.nn.functional.one_hot(input_ids.roll(-1, 1), 32).float() * self.sure
        if self.seen == 0:
            scores[0] = torch.nn.functional.one_hot((input_ids[0].roll(-1) + 1) % 32, 32).float() * self.sure
        self.seen += len(input_ids)
        return SimpleNamespace(logits=scores)


@pytest.mark.parametrize("count", [3, 4])
def test_a_window_that_is_lost_decides_the_mean_and_not_the_median(letters, count):
    task = tasks.get("perplexity", letters, windows=count, window_length=40)
    right = math.log(math.exp(8) + 31) - 8  # nats
    metrics = task.metrics(Lost(8.0))
    assert metrics["median_perplexity"] == pytest.approx(math.exp(right), rel=1e-4)
    assert metrics["perplexity"] == pytest.approx(math.exp(right + 8 / count), rel=1e-4)


def test_the_median_of_an_even_number_of_windows_is_between_two_on_a_logarithmic_scale(tiny_llama, letters):
    task = tasks.get("perplexity", letters, windows=2, window_length=40)
    metrics = task.metrics(tiny_llama)
    assert metrics["median_perplexity"] == pytest.approx(metrics["perplexity"], rel=1e-12)


@pytest.mark.parametrize("score", [math.nan, math.inf])
def test_scores_that_are_not_finite_are_infinitely_bad(task, score):
    assert task.metrics(Known([score] * 32)) == {"perplexity": math.inf, "median_perplexity": math.inf}


def test_a_loss_beyond_what_a_float_holds_is_infinitely_bad(task):
    assert task.metrics(Known([1e6] + [0.0] * 31)) == {"perplexity": math.inf, "median_perplexity": math.inf}


def test_scoring_leaves_training_mode_alone(tiny_llama, task):
    model = copy.deepcopy(tiny_llama).train()
    assert task.metrics(model) == task.metrics(tiny_llama)
    assert model.training


# The jobs


def test_emulate_and_calibrate_a_language_model(tiny_llama, task):
    """On ideal tiles nothing is lost; on PCM, calibration leaves less to lose."""
    pattern = "window(8) | sinks(2)"
    plain_perplexity = task.metrics(tiny_llama)["perplexity"]
    ideal = emulate(tiny_llama, task, "ideal", pattern=pattern, times=["1y"], chips=1)
    assert ideal.values("digital dense") == pytest.approx([plain_perplexity], rel=1e-5)
    assert ideal.values("analog") == pytest.approx(ideal.values("digital"), rel=1e-4)
    assert ideal.values("digital") != pytest.approx([plain_perplexity], rel=1e-3)
    result = calibrate(tiny_llama, task, "pcm", pattern=pattern, times=["1d"], chips=3)
    (digital,) = result.values("digital")
    mean = {row.arm: row.mean for row in result.rows() if row.metric == "perplexity"}
    assert mean["analog"] > digital
    logarithms = [math.log(value) for value in result.values("analog")]
    assert mean["analog"] == pytest.approx(math.exp(sum(logarithms) / 3))
    assert result.to_dict()["interval"] == "Student-t, 95%, over chips, of logarithms"
    assert abs(math.log(mean["calibrated"] / digital)) < abs(math.log(mean["analog"] / digital))


def test_the_tied_head_stays_digital_and_is_reported(tiny_llama):
    report = convert(copy.deepcopy(tiny_llama), presets.pcm())
    reasons = {layer.name: layer.reason for layer in report.digital}
    assert reasons["lm_head"] == "weight shared with model.embed_tokens"
    assert len(report.analog) == 2 * 7
    assert report.parameters == sum(p.numel() for p in tiny_llama.parameters())


# Tasks and models that do not fit


def test_a_task_for_encoders_refuses_a_language_model(llama_folder, tiny_llama, letters):
    message = (
        r"task 'wordsim' reads embeddings, and model 'letters-lm' gives next tokens: choose a task that fits it "
        r"\(perplexity\), or a model such as minilm"
    )
    for job in (emulate, calibrate):
        with pytest.raises(InputError, match=message):
            job(llama_folder, "wordsim")
    with pytest.raises(InputError, match=r"LlamaForCausalLM returns .* no embeddings of tokens: give an encoder"):
        emulate(tiny_llama, tasks.get("wordsim", letters))


def test_perplexity_refuses_an_encoder(minilm, task):
    message = (
        r"task 'perplexity' reads next tokens, and model 'minilm' gives embeddings: choose a task that fits it "
        r"\(code-search, lee, wordsim\), or a model such as smollm2"
    )
    with pytest.raises(InputError, match=message):
        emulate(minilm, "perplexity")
    with pytest.raises(InputError, match=r"BertModel returns .* which does not score next tokens: give a causal"):
        emulate(minilm, task)


def test_perplexity_refuses_a_masked_language_model(task):
    config = BertConfig(vocab_size=32, hidden_size=8, num_hidden_layers=1, num_attention_heads=2, intermediate_size=8)
    with pytest.raises(InputError, match="BertForMaskedLM returns MaskedLMOutput"):
        task.metrics(BertForMaskedLM(config))
