"""The tasks on real MiniLM: reference values, splits that do not overlap, determinism, errors."""

import inspect
import re
import textwrap
from collections import Counter
from importlib import util

import pytest
import torch

from calibration import tasks
from calibration.models import load_model
from calibration.tasks.stdlib_functions import described_functions
from crossbar.errors import InputError

TASKS = [("code-search", {"pairs": 50}), ("lee", {}), ("wordsim", {})]


@pytest.fixture(scope="module")
def minilm():
    return load_model("minilm")


def texts_of(task, split, tokenizer):
    return decoded(task.batches(split), tokenizer)


def decoded(batches, tokenizer):
    return [tokenizer.decode(row, skip_special_tokens=True) for batch in batches for row in batch["input_ids"]]


@pytest.mark.parametrize(
    ("name", "primary", "reference"),
    # Measured by independent scripts with sentence-transformers' pooling.
    [("wordsim", "spearman", 0.729), ("lee", "pearson", 0.656)],
)
def test_reference_values_of_minilm(minilm, name, primary, reference):
    task = tasks.get(name, minilm.tokenizer)
    assert (task.name, task.primary) == (name, primary)
    assert task.metrics(minilm.model) == {primary: pytest.approx(reference, abs=0.005)}


def test_code_search_equals_a_plain_computation(minilm):
    task = tasks.get("code-search", minilm.tokenizer, pairs=50)

    def plain_embeddings(batches):
        found = {}
        for batch in batches:
            for ids, mask in zip(batch["input_ids"], batch["attention_mask"], strict=True):
                ids = ids[mask.bool()]
                with torch.no_grad():
                    mean = minilm.model(input_ids=ids[None]).last_hidden_state[0].mean(dim=0)
                found[minilm.tokenizer.decode(ids, skip_special_tokens=True)] = mean / mean.norm()
        return found

    # The plain side pairs by text, read again from the source: it shares no order and no padding with the task.
    embeddings = plain_embeddings(task.batches("evaluation"))

    def embedding(text, length):
        ids = minilm.tokenizer(text, truncation=True, max_length=length)["input_ids"]
        return embeddings.get(minilm.tokenizer.decode(ids, skip_special_tokens=True))

    scored = [
        (query, body)
        for function in described_functions()
        if (query := embedding(function.description, 64)) is not None
        and (body := embedding(function.body, 128)) is not None
    ]
    assert len(scored) == 50
    hits, reciprocal = 0, 0.0
    for k, (query, body) in enumerate(scored):
        own = float(query @ body)
        rank = 1 + sum(float(query @ other) >= own for j, (_, other) in enumerate(scored) if j != k)
        hits += rank == 1
        reciprocal += 1 / rank if rank <= 10 else 0
    metrics = task.metrics(minilm.model)
    assert metrics["recall@1"] == hits / 50
    assert metrics["mrr@10"] == pytest.approx(reciprocal / 50, abs=1e-12)
    assert hits > 25


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_calibration_text_is_not_evaluation_text(minilm, name, options):
    task = tasks.get(name, minilm.tokenizer, **options)
    calibration = texts_of(task, "calibration", minilm.tokenizer)
    evaluation = texts_of(task, "evaluation", minilm.tokenizer)
    assert calibration
    assert not set(calibration) & set(evaluation)


@pytest.mark.parametrize(("name", "options"), TASKS)
def test_two_constructions_give_identical_batches(minilm, name, options):
    first, second = (tasks.get(name, minilm.tokenizer, **options) for _ in range(2))
    for split in ("calibration", "evaluation"):
        for one, other in zip(first.batches(split), second.batches(split), strict=True):
            assert one.keys() == other.keys()
            assert all(torch.equal(one[key], other[key]) for key in one)


def test_the_whole_pool_can_be_used_and_stays_disjoint(minilm):
    size = len(described_functions())
    options = {"pairs": 100, "max_length": 16}
    with pytest.raises(InputError, match="functions that share no text with the 100 that are scored") as refusal:
        tasks.get("code-search", minilm.tokenizer, calibration_pairs=size - 100, **options)
    apart = int(re.search(r"at most the (\d+)", str(refusal.value))[1])
    assert 0.5 * size < apart < size - 100
    task = tasks.get("code-search", minilm.tokenizer, calibration_pairs=apart, **options)
    count = {split: sum(len(b["input_ids"]) for b in task.batches(split)) for split in ("calibration", "evaluation")}
    assert count == {"calibration": 2 * apart, "evaluation": 200}
    with pytest.raises(InputError, match=f"together at most the {size} described functions"):
        tasks.get("code-search", minilm.tokenizer, pairs=101, calibration_pairs=size - 100)


def test_steps_that_train_get_the_functions_that_calibrate_and_more(minilm):
    options = {"pairs": 50, "calibration_pairs": 20}
    task = tasks.get("code-search", minilm.tokenizer, **options, training_pairs=60)
    trained = decoded(task.training_batches(), minilm.tokenizer)
    assert len(trained) == 120
    assert set(texts_of(task, "calibration", minilm.tokenizer)) < set(trained)
    assert not set(texts_of(task, "evaluation", minilm.tokenizer)) & set(trained)
    unsaid = tasks.get("code-search", minilm.tokenizer, **options)
    assert decoded(unsaid.training_batches(), minilm.tokenizer) == texts_of(unsaid, "calibration", minilm.tokenizer)
    size = len(described_functions())
    with pytest.raises(InputError, match=rf"{size - 49} training pairs are not usable: .* at most the {size} d"):
        tasks.get("code-search", minilm.tokenizer, **options, training_pairs=size - 49)


def test_another_seed_selects_other_functions(minilm):
    first, second = (
        set(texts_of(tasks.get("code-search", minilm.tokenizer, pairs=50, seed=seed), "evaluation", minilm.tokenizer))
        for seed in (0, 1)
    )
    assert len(first & second) < 20


def test_described_functions_are_usable_pairs():
    functions = described_functions()
    assert len(functions) > 1000
    assert len({f.description.lower() for f in functions}) == len({f.body for f in functions}) == len(functions)
    assert not any(f.body.startswith('"""') for f in functions)
    assert all(100 <= len(f.body) <= 1000 for f in functions)


def test_a_body_has_neither_its_definition_nor_its_docstring():
    (found,) = [f for f in described_functions() if f.description == inspect.getdoc(Counter.subtract).splitlines()[0]]
    source = textwrap.dedent(inspect.getsource(Counter.subtract))
    assert source.startswith("def subtract(")
    *_, after_docstring = source.split("'''")
    assert found.body == textwrap.dedent(after_docstring.strip("\n")).strip()


class Constant(torch.nn.Module):
    """Every token the same vector, or NaN."""

    def __init__(self, value):
        super().__init__()
        self.value = torch.nn.Parameter(torch.full((4,), value))

    def forward(self, input_ids, **_):
        hidden = self.value.expand(*input_ids.shape, 4)
        return type("Output", (), {"last_hidden_state": hidden})()


@pytest.mark.parametrize("value", [0.5, float("nan")])
@pytest.mark.parametrize(("name", "options"), TASKS)
def test_a_model_that_says_nothing_scores_nothing(minilm, name, options, value):
    metrics = tasks.get(name, minilm.tokenizer, **options).metrics(Constant(value))
    assert all(score == 0 for score in metrics.values())


def test_an_unknown_task_is_refused_with_a_list(minilm):
    with pytest.raises(
        InputError, match="task 'lea' does not exist: choose one of code-search, lee, wordsim, perplexity"
    ):
        tasks.get("lea", minilm.tokenizer)


def test_an_unknown_option_is_refused_with_a_list(minilm):
    with pytest.raises(InputError, match="no option 'pair': choose from pairs, calibration_pairs, training_pairs"):
        tasks.get("code-search", minilm.tokenizer, pair=50)
    with pytest.raises(InputError, match="no option 'pairs': leave it out, it takes none"):
        tasks.get("wordsim", minilm.tokenizer, pairs=50)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("code-search", {"pairs": 1}),
        ("code-search", {"calibration_pairs": 0}),
        ("lee", {"calibration_documents": 0}),
        ("lee", {"calibration_documents": 301}),
        ("lee", {"max_length": 513}),
    ],
)
def test_impossible_values_are_refused(minilm, name, options):
    with pytest.raises(InputError, match="not usable: give"):
        tasks.get(name, minilm.tokenizer, **options)


def test_missing_gensim_is_named_with_the_command_that_installs_it(minilm, monkeypatch):
    monkeypatch.setattr(util, "find_spec", lambda name: None)
    for name in ("lee", "wordsim", "perplexity"):
        with pytest.raises(InputError, match=r"'gensim'.* is not installed: run `pip install \"ohmformer\[demo\]\"`"):
            tasks.get(name, minilm.tokenizer)
