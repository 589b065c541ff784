"""lm-eval, the real one: its tasks on a chip, and its tasks as ours."""

import copy
import json
import logging
import sys

import pytest
import torch

pytest.importorskip("lm_eval", reason="the harness is lm-eval's")
from calibration import calibrate, emulate, load_model, tasks
from calibration.commands.lm_eval import main
from calibration.hf import AnalogConfig
from calibration.hf.harness import AnalogLM
from crossbar import InputError

pytestmark = pytest.mark.filterwarnings("default")  # lm-eval's and those of its data sets
QUIET = {"device": "pcm", "output_noise": 0.0}
WORDS = [
    "every chip keeps its own errors b",
    "what a cell has lost is lost for b",
    "a row opens and a column adds up b",
]
ROLLING = """
task: letters
dataset_path: json
dataset_kwargs: {{data_files: {{test: {folder}/test.jsonl, train: {folder}/train.jsonl}}, cache_dir: {folder}/cache}}
output_type: loglikelihood_rolling
test_split: test
training_split: train
doc_to_text: ""
doc_to_target: "{{{{text}}}}"
metric_list:
  - metric: byte_perplexity
  - metric: bits_per_byte
"""
CHOICE = """
task: choosing
dataset_path: json
dataset_kwargs: {{data_files: {{validation: {folder}/choice.jsonl}}, cache_dir: {folder}/cache}}
output_type: multiple_choice
validation_split: validation
doc_to_text: "{{{{text}}}}"
doc_to_target: label
doc_to_choice: ["yes", "no"]
metric_list:
  - metric: acc
"""


def windows(count=4, length=31, first=0):
    """Texts of letters, none of which is like another; with an `a` before each they are windows of `Perplexity`."""
    draw = torch.Generator().manual_seed(first)
    return ["".join(chr(98 + int(k)) for k in torch.randint(0, 24, (length,), generator=draw)) for _ in range(count)]


@pytest.fixture(scope="module")
def yaml(tmp_path_factory):
    """Local tasks of lm-eval."""
    folder = tmp_path_factory.mktemp("tasks")
    for name, texts in (("test", windows()), ("train", windows(first=9))):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    choices = [{"text": text, "label": k % 2} for k, text in enumerate(WORDS)]
    (folder / "choice.jsonl").write_text("".join(json.dumps(choice) + "\n" for choice in choices))
    for name, text in (("letters", ROLLING), ("choosing", CHOICE)):
        (folder / f"{name}.yaml").write_text(text.format(folder=folder))
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    return folder


@pytest.fixture(scope="module")
def perplexity(letters):
    texts, others = ["".join(f"a{text}" for text in own) for own in (windows(), windows(first=9))]
    return tasks.Perplexity(letters, texts=texts, calibration_texts=others, windows=4, window_length=32)


def harness_perplexity(yaml, folder, **model_args):
    from lm_eval import simple_evaluate
    from lm_eval.tasks import TaskManager

    found = simple_evaluate(
        model="ohmformer",
        model_args={"pretrained": str(folder), "prefix_token_id": 2, **model_args},
        tasks=[str(yaml / "letters.yaml")],
        task_manager=TaskManager(include_defaults=False),
        bootstrap_iters=0,
    )
    return found["results"]["letters"]["byte_perplexity,none"]


def test_perplexity_of_a_yaml_is_ours(yaml, perplexity, llama_folder, letters):
    assert letters("a")["input_ids"] == [2]
    scored = emulate(llama_folder, perplexity, QUIET, times="1d", chips=1)
    found = harness_perplexity(yaml, llama_folder, hardware=QUIET, age="1d")
    assert found == pytest.approx(scored.values("analog")[0], rel=1e-5)
    assert abs(found / scored.values("digital")[0] - 1) > 1e-3
    digital = harness_perplexity(yaml, llama_folder, hardware="ideal")
    assert digital == pytest.approx(scored.values("digital")[0], rel=1e-5)


def test_a_folder_that_is_a_chip_is_that_chip(yaml, llama_folder, letters, tmp_path):
    from transformers import AutoModelForCausalLM

    chip = AnalogConfig(QUIET, seed=1, age="1y")
    AutoModelForCausalLM.from_pretrained(llama_folder, quantization_config=chip).save_pretrained(tmp_path)
    letters.save_pretrained(tmp_path)
    found = harness_perplexity(yaml, tmp_path)
    assert found == harness_perplexity(yaml, llama_folder, hardware=QUIET, seed=1, age="1y")
    with pytest.raises(InputError, match="is a chip or quantised already: leave hardware"):
        harness_perplexity(yaml, tmp_path, age="1d")


@pytest.fixture(scope="module")
def reader(letters):
    """A tokenizer with a first token, which lm-eval has texts begin with."""
    reader = copy.deepcopy(letters)
    reader.bos_token = "a"
    return reader


def test_a_task_of_lm_eval_is_a_task(yaml, perplexity, llama_folder, reader, caplog):
    task = tasks.get(f"lm_eval:{yaml / 'letters.yaml'}", reader)
    assert (task.name, task.primary) == ("lm_eval:letters", "byte_perplexity")
    result = calibrate(llama_folder, task, QUIET, "quick", times="1d", chips=1, staircase=False)
    direct = task.metrics(AnalogLM(str(llama_folder), prefix_token_id=2, hardware=QUIET, age=86400.0 + 3600).model)
    assert result.values("analog")[0] == pytest.approx(direct["byte_perplexity"], rel=1e-6)
    assert result.values("digital")[0] == pytest.approx(
        emulate(llama_folder, perplexity, QUIET, times="1d", chips=1).values("digital")[0], rel=1e-5
    )
    assert set(direct) == {"byte_perplexity"}  # less is better for bits_per_byte, which says the same
    caplog.set_level(logging.WARNING, "lm_eval")
    task.metrics(load_model(llama_folder).model)
    assert not [record for record in caplog.records if record.name.startswith("lm_eval")]


def test_choices_and_limits(yaml, llama_folder, reader):
    task = tasks.get(f"lm_eval:{yaml / 'choosing.yaml'}", reader, limit=2)
    result = emulate(llama_folder, task, "ideal", times="0s", chips=1)
    assert result.primary == "acc"
    assert result.values("digital")[0] in (0.0, 0.5, 1.0)
    texts = [reader.decode(batch["input_ids"][0]) for batch in task.batches("evaluation")]
    assert [text.replace(" ", "")[-3:] for text in texts] == ["yes", "]no"]
    with pytest.raises(InputError, match="has no documents beside those that it scores"):
        calibrate(llama_folder, task, "ideal", "quick", times="0s", chips=1)


@pytest.mark.slow
def test_the_command(yaml, llama_folder, monkeypatch, capsys):
    arguments = ["lm-eval", "run", "--model", "ohmformer", "--tasks", str(yaml / "letters.yaml"), "--limit", "2"]
    chip = f"pretrained={llama_folder},prefix_token_id=2,hardware"
    monkeypatch.setattr(sys, "argv", [*arguments, "--model_args", f"{chip}=pcm,age=1d"])
    main()
    assert "byte_perplexity" in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", [*arguments, "--model_args", f"{chip}=pmc"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "'pmc'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("lm_eval:nowhere.yaml", {}, "task file 'nowhere.yaml' does not exist"),
        ("lm_eval:", {}, "does not exist: choose one of code-search"),
        ("lm_eval:x.yaml", {"limit": 0}, "limit = 0 is not allowed"),
        ("lm_eval:x.yaml", {"windows": 4}, "has no option 'windows': choose from limit"),
    ],
)
def test_refused(reader, name, options, said):
    with pytest.raises(InputError, match=said):
        tasks.get(name, reader, **options)


def test_without_lm_eval(reader, monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "lm_eval.__main__", None)
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 2
    assert "pip install 'ohmformer[lm-eval]'" in capsys.readouterr().err
    monkeypatch.setitem(sys.modules, "lm_eval.tasks", None)
    with pytest.raises(InputError, match="needs lm-eval, which is not installed: pip install"):
        tasks.get("lm_eval:letters", reader)


def test_what_lm_eval_cannot_read_is_refused(yaml, reader, letters, folder):
    with pytest.raises(InputError, match="needs a tokenizer with a first or a last token"):
        tasks.get("lm_eval:x.yaml", letters)
    task = tasks.get(f"lm_eval:{yaml / 'letters.yaml'}", reader)
    with pytest.raises(InputError, match="is no causal language model"):
        task.metrics(load_model(folder).model)
