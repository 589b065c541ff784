"""Associative recall: what a sequence holds, what patterns reach, what is refused."""

from types import SimpleNamespace

import pytest
import torch

from attention import Dense, LocalWindow, Strided, parse
from calibration.tasks.recall import BLANK, Recall
from crossbar.errors import InputError

TASK = Recall()


class Oracle(torch.nn.Module):
    """Answers by looking the key up; with ``nearest`` or ``farthest`` only over so many tokens."""

    def __init__(self, task, nearest=0, farthest=10**6):
        super().__init__()
        self.task, self.nearest, self.farthest = task, nearest, farthest
        self.place = torch.nn.Parameter(torch.zeros(1))

    def forward(self, input_ids):
        logits = torch.zeros(*input_ids.shape, self.task.vocabulary)
        for b, tokens in enumerate(input_ids.tolist()):
            values = {}
            for i, token in enumerate(tokens):
                if token > self.task.keys:
                    values[tokens[i - 1]] = i
                elif token in values and self.nearest <= i - values[token] <= self.farthest:
                    logits[b, i, tokens[values[token]]] = 1.0
        return SimpleNamespace(logits=logits)


def test_a_sequence_holds_pairs_then_questions():
    tokens, answers = TASK.draw(50, ("test",))
    assert tokens.shape == answers.shape == (50, 512)
    for row, wanted in zip(tokens, answers, strict=True):
        values = (row > TASK.keys).nonzero()[:, 0]
        asked = (wanted >= 0).nonzero()[:, 0]
        assert len(values) == TASK.pairs
        assert len(asked) == TASK.questions
        known = {int(row[i - 1]): (int(row[i]), int(i)) for i in values}
        assert len(known) == TASK.pairs
        assert all(0 < key <= TASK.keys for key in known)
        assert values.diff().tolist() == [TASK.slot] * (TASK.pairs - 1)
        assert int((row != BLANK).sum()) == 2 * TASK.pairs + TASK.questions
        for i in asked.tolist():
            value, place = known[int(row[i])]
            assert int(wanted[i]) == value
            assert TASK.nearest <= i - place <= TASK.farthest


def test_nearest_and_farthest_are_met():
    tokens, answers = TASK.draw(400, ("test",))
    values, asked = ((x.float() @ torch.eye(512)) for x in (tokens > TASK.keys, answers >= 0))
    first, last = asked.argmax(1), 511 - asked.flip(1).argmax(1)
    assert int((first - (511 - values.flip(1).argmax(1))).min()) == TASK.nearest
    assert int((last - values.argmax(1)).max()) == TASK.farthest


def test_draws_repeat_and_differ_by_key_and_seed():
    tokens = TASK.draw(4, ("training", 0)).tokens
    assert torch.equal(tokens, TASK.draw(4, ("training", 0)).tokens)
    assert not torch.equal(tokens, TASK.draw(4, ("training", 1)).tokens)
    assert not torch.equal(tokens, Recall(seed=1).draw(4, ("training", 0)).tokens)


def test_values_are_drawn_evenly():
    answers = TASK.draw(2000, ("test",)).tokens
    counts = torch.bincount(answers[answers > TASK.keys], minlength=TASK.vocabulary)[1 + TASK.keys :].double()
    expected = 2000 * TASK.pairs / TASK.values
    chi2 = float(((counts - expected) ** 2 / expected).sum())
    assert chi2 < 37.7  # the 0.1% point of 15 degrees of freedom


def test_metrics_score_the_evaluation_split():
    task = Recall(sequences=40)
    assert task.metrics(Oracle(task)) == {"accuracy": 1.0}
    assert task.metrics(Oracle(task, task.nearest, task.farthest)) == {"accuracy": 1.0}
    assert task.metrics(Oracle(task, farthest=task.nearest - 1)) == {"accuracy": 0.0}
    seen = [batch["input_ids"] for batch in task.batches("evaluation")]
    assert [len(batch) for batch in seen] == [32, 8]
    other = torch.cat([batch["input_ids"] for batch in task.batches("calibration")])
    assert not {tuple(row) for row in torch.cat(seen).tolist()} & {tuple(row) for row in other.tolist()}


@pytest.mark.parametrize(
    ("text", "direct", "relayed"),
    [
        ("dense", 1, 1),
        ("window(256)", 1, 1),
        ("window(65)", 0, None),  # a window of w keys reaches w − 1 back, so 65 never meets `nearest`
        ("window(32)", 0, 0),
        ("window(32) | sinks(4)", 0, 0),
        ("strided(16)", None, 1),
        ("fixed(16, 2)", None, 1),
        ("window(16) | dilated(256, 16)", None, 1),
        ("dilated(256, 16)", 0, 0),  # a value never meets its key, one token away
    ],
)
def test_reach(text, direct, relayed):
    reach = TASK.reach(parse(text).causal(), count=8)
    assert direct is None or reach.direct == direct
    assert relayed is None or reach.relayed == relayed


def test_reach_by_brute_force():
    task = Recall(n=40, pairs=2, slot=6, gap=5, questions=4)
    pattern = Strided(5).causal()
    held = pattern.to_dense(task.n) | torch.eye(task.n, dtype=torch.bool)
    direct = relayed = total = 0
    places = task._places(6, ("reach",))
    for keys, questions in zip(places.keys.tolist(), places.questions.tolist(), strict=True):
        for key in keys:
            for question in questions:
                total += 1
                direct += bool(held[question, key + 1] and held[key + 1, key])
                relayed += any(held[question, r] and held[r, key] and held[r, key + 1] for r in range(task.n))
    assert 0 < direct < relayed
    assert task.reach(pattern, count=6) == (direct / total, relayed / total)


def test_heads_reach_together():
    assert TASK.reach(Strided(16).per_head(2).causal(), count=4) == TASK.reach(Strided(16).causal(), count=4)
    assert TASK.reach(LocalWindow(8).causal() | Dense().causal(), count=4) == (1, 1)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n": 255}, ["255", "256"]),
        ({"keys": 7}, ["keys = 7", "8"]),
        ({"values": 1}, ["values = 1", "2"]),
        ({"slot": 1}, ["slot = 1", "2"]),
        ({"gap": -1}, ["gap = -1", "0"]),
    ],
)
def test_impossible_tasks_are_refused(options, words):
    with pytest.raises(InputError) as caught:
        Recall(**options)
    assert all(word in str(caught.value) for word in words)
