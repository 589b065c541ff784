"""A small transformer learns recall through patterns that cover it, and not through others."""

from dataclasses import replace

import pytest
import torch

from attention import parse
from calibration import emulate
from calibration.tasks import from_scratch
from calibration.tasks.from_scratch import Lesson, SmallTransformer, curriculum, train
from calibration.tasks.recall import BLANK, Recall
from crossbar.errors import InputError

TINY = Recall(n=32, pairs=2, slot=4, gap=8, questions=8, keys=4, values=4, sequences=64)

COVERING = ["dense", "window(256)", "strided(16)", "fixed(16, 2)", "topk(16)", "blocktopk(16, 4)"]


def learn(text, task, stages, **options):
    model = SmallTransformer(task.vocabulary, parse(text), **options)
    return train(model, stages), task.metrics(model)["accuracy"], model


def stages(task, steps=400):
    return (Lesson(replace(task, n=16, gap=0), 32, steps, 0.95), Lesson(task, 32, steps, 0.99))


@pytest.fixture(autouse=True)
def one_thread():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.mark.parametrize("text", ["window(24)", "fixed(4, 1)"])
def test_learns_through_a_pattern_that_covers(text):
    assert TINY.reach(parse(text).causal()).relayed == 1
    _, accuracy, _ = learn(text, TINY, stages(TINY), width=32)
    assert accuracy >= 0.95


def test_fails_where_the_pattern_cannot_reach():
    assert TINY.reach(parse("window(5)").causal()).relayed == 0
    training, accuracy, _ = learn("window(5)", TINY, stages(TINY, 60), width=32)
    assert training.steps[1] == 60
    assert accuracy < 0.5  # 1 of 4 by guessing; 512 questions, of 64 sequences of two pairs each


def test_training_repeats_and_leaves_global_randomness_alone():
    state = torch.random.get_rng_state()
    first, again = (learn("window(24)", TINY, stages(TINY, 5), width=32) for _ in range(2))
    assert torch.equal(state, torch.random.get_rng_state())
    assert first[0].steps == again[0].steps == (5, 5)
    for a, b in zip(first[2].parameters(), again[2].parameters(), strict=True):
        assert torch.equal(a, b)
    other = SmallTransformer(TINY.vocabulary, parse("dense"), width=32, seed=1)
    assert not torch.equal(first[2].read.weight, other.read.weight)


def test_a_blank_is_zeros_and_stays_so():
    _, _, model = learn("window(24)", TINY, stages(TINY, 5), width=32)
    assert not model.embed.weight[BLANK].any()
    assert model.embed.weight[BLANK + 1].any()


def test_time_runs_out():
    model = SmallTransformer(TINY.vocabulary, parse("dense"), width=32)
    training = train(model, stages(TINY), minutes=1e-6)
    assert not training.finished
    assert training.steps in ((0, 0), (1, 0))
    assert not model.training


def test_progress_names_stage_and_accuracy():
    told = []
    model = SmallTransformer(TINY.vocabulary, parse("dense"), width=32)
    train(model, stages(TINY, 2), progress=lambda *what: told.append(what))
    assert [done for done, _, _ in told] == [0, 1, 2, 3]
    assert {total for _, total, _ in told} == {4}
    assert told[0][2].startswith("16 tokens, accuracy")


def test_the_model_goes_onto_analog_tiles_and_the_task_scores_it_there():
    task = replace(TINY, sequences=8)
    model = SmallTransformer(task.vocabulary, parse("fixed(4, 1)"), width=32)
    result = emulate(model, task, "pcm", times=["1d"], chips=1)
    assert {row.arm for row in result.rows()} == {"digital", "analog"}
    assert {row.metric for row in result.rows()} == {"accuracy"}
    assert len(result.conversion.analog) == 9  # 4 a layer, and the one that reads out


@pytest.mark.parametrize("learned", [True, False])
def test_routing_starts_after_steps_of_dense_attention(learned, monkeypatch):
    monkeypatch.setattr(from_scratch, "_WAIT", 9)
    text = "routing(2, 8) | window(4)"
    model = SmallTransformer(TINY.vocabulary, parse(text), width=32, learn_routing=learned)
    routers = [layer.router for layer in model.layers]
    assert routers[0].wait == 9
    directions = [router.centroids.clone() for router in routers]
    train(model, (Lesson(TINY, 2, routers[0].wait, 2.0),))
    assert not any(bool(router.started) for router in routers)
    train(model, (Lesson(TINY, 2, 1, 2.0),))
    assert all(bool(router.started) for router in routers)
    moved = [not torch.equal(a, router.centroids) for a, router in zip(directions, routers, strict=True)]
    assert moved == [learned, learned]


def test_the_curriculum_ends_in_the_task():
    task = Recall()
    assert [stage.task.n for stage in curriculum(task)] == [64, 128, 256, 512]
    assert curriculum(task)[-1].task == task
    assert {stage.task.vocabulary for stage in curriculum(task)} == {task.vocabulary}
    curriculum(TINY)  # small tasks have one too


def test_refusals():
    with pytest.raises(InputError, match=r"width 30 .* 4 heads"):
        SmallTransformer(9, parse("dense"), width=30, heads=4)
    with pytest.raises(InputError, match="minutes"):
        train(SmallTransformer(9, parse("dense")), stages(TINY), minutes=0)


@pytest.mark.slow
@pytest.mark.parametrize(
    "text",
    ["dense", "window(256)", "strided(16)", "fixed(16, 2)", "topk(16)", "blocktopk(16, 4)", "hierarchical(32, 4)"],
)
def test_512_tokens_are_learned_through_patterns_that_cover(text):
    task = Recall()
    training, accuracy, _ = learn(text, task, curriculum(task))
    assert accuracy >= (0.99 if text == "dense" else 0.95)
    assert training.finished


@pytest.mark.slow
def test_512_tokens_are_learned_through_learned_routing_and_less_through_random_routing():
    task, fresh = Recall(), Recall(seed=1)
    text = "routing(8, 64) | window(16)"
    training, accuracy, model = learn(text, task, curriculum(task))
    assert training.finished
    assert accuracy >= 0.95
    assert fresh.metrics(model)["accuracy"] >= 0.95
    _, by_random, _ = learn(text, task, curriculum(task), learn_routing=False)
    assert by_random < accuracy - 0.02


@pytest.mark.slow
@pytest.mark.parametrize("text", ["window(32)", "window(32) | sinks(4)"])
def test_512_tokens_are_not_learned_where_nothing_reaches(text):
    task = Recall()
    assert task.reach(parse(text).causal()).relayed == 0
    _, accuracy, _ = learn(text, task, curriculum(task))
    assert accuracy < 0.2  # 1 of 16 by guessing
