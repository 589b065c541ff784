"""What jobs will take: that it follows blocks, data, chips and times, and is told before anything starts."""

import copy
import json
import mmap
from itertools import count
from types import SimpleNamespace

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from calibration import AdcRanges, DriftCompensation, Finetune, InputRanges, Recipe, emulate, estimate
from calibration.runs import estimating, one_block
from calibration.runs.estimating import kind_of
from calibration.runs.one_block import Call, Piece
from crossbar import InputError, convert, presets
from tests.calibration.command import assert_one_sentence, run
from tests.calibration.random_llama import texts, write_llama

SIZES = {"windows": 4, "window_length": 16, "calibration_windows": 3, **texts()}
TINY = {
    "vocab_size": 32,
    "hidden_size": 16,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "intermediate_size": 24,
    "max_position_embeddings": 64,
}
MB = 2**20


@pytest.fixture(scope="module")
def llamas(tmp_path_factory):
    """Folders of models with 2 and with 5 blocks."""
    folder = tmp_path_factory.mktemp("models")
    for blocks in (2, 5):
        write_llama(folder / f"{blocks}", num_hidden_layers=blocks, tie_word_embeddings=False, **TINY)
    return {blocks: folder / f"{blocks}" for blocks in (2, 5)}


@pytest.fixture
def ticks(monkeypatch):
    """A clock that moves by one whenever somebody looks."""
    clock = count()
    monkeypatch.setattr("calibration.runs.estimating.time.process_time", lambda: float(next(clock)))


# What is measured


class Part:
    """A task of 7 batches of 10 tokens to calibrate on, and 100 tokens that are scored."""

    sizes = (10, 10)
    tokens = {"calibration": 70, "evaluation": 100}  # noqa: RUF012 - nobody changes it
    share = one_block.Beginning.share

    def __len__(self):
        return 2


@pytest.mark.parametrize(
    ("key", "seconds"),
    [
        ("score analog chip 0 at 0.0 fitted None", 3 * 2 + (1 + 4 * 2) + 5 * (2 + 4 * 6)),
        ("fit 0", 3 * 2 + (1 + 4 * 2) + 6 * (2 + 4 * 6)),
        ("fit 1", 50 * (3 * 2 + (1 + 4 * 2) + (2 + 4 * 6))),
        ("fit 2", 3 * 2 + (1 + 4 * 2) + 3 * (2 + 4 * 6)),  # four batches have the vectors
    ],
)
def test_pieces_grow_with_blocks_weights_and_tokens(key, seconds):
    """Four blocks, and three times the weights on tiles: few tokens are no part of the task, 20 of its 100 are."""
    piece = Piece(seconds=13, calls=[Call(2, 1, 8), Call(6, 2, 20)])
    recipe = Recipe("three", (InputRanges(), Finetune(steps=50), AdcRanges(vectors=35)))
    assert estimating._scaled(key, piece, Part(), 4, 3.0, recipe) == seconds


def test_tensors_that_are_alive_are_counted_once():
    before = one_block.alive()
    kept = torch.zeros(3 * MB // 4)
    view = kept.view(3, -1)[1:]
    assert one_block.alive() - before == 3 * MB
    del kept
    assert one_block.alive() - before == 3 * MB
    del view
    assert one_block.alive() == before


def test_the_peak_of_memory_is_that_since_it_was_reset():
    """Pages are mapped here by hand: `malloc` may give a tensor memory that the process has already."""

    def take(size: int) -> None:
        with mmap.mmap(-1, size) as pages:
            pages.write(bytes(1) * size)

    take(256 * MB)
    one_block.reset_peak()
    low = one_block.peak() - one_block.resident()
    take(64 * MB)
    assert low < 16 * MB
    assert one_block.peak() - one_block.resident() > 60 * MB


def test_memory_of_no_tensor_is_held():
    """Pages mapped by hand stand for compiled code and for what the C library keeps, and lie under the tensor:
    `malloc` may give it memory that the process has already."""
    network = torch.nn.Linear(4, 4)
    base = one_block.resident() - one_block.alive()
    watch = one_block.Watch(network, base)
    tensor = torch.frombuffer(mmap.mmap(-1, 32 * MB), dtype=torch.float32).fill_(1.0)
    with mmap.mmap(-1, 64 * MB) as pages:
        for _ in range(0, 64 * MB, MB):
            pages.write(bytes(MB))
        watch.of("score", lambda: network(torch.ones(1, 4)))
    piece = watch.pieces["score"]
    assert 63 * MB <= piece.held < 80 * MB  # small tensors lie in memory that is there already
    assert piece.alive >= tensor.nbytes


@pytest.mark.parametrize("tied", [True, False])
def test_parts_of_a_stream(tied):
    """A block with the embeddings, and the head, which is on tiles where it is a matrix of its own."""
    network = LlamaForCausalLM(LlamaConfig(**TINY, num_hidden_layers=1, tie_word_embeddings=tied))
    one = SimpleNamespace(conversion=convert(copy.deepcopy(network), presets.ideal()))
    block, head = 16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24, 32 * 16
    digital = 4 * (block + head * (1 if tied else 2) + 3 * 16)
    share = 0 if tied else head / (block + head)
    first = 4 * (block + head + 3 * 16)
    assert estimating._parts(network, digital, one) == [(first, 1 - share), (4 * head, share)]
    assert estimating._parts(torch.nn.Linear(2, 2), 24, one) == [(24, 1.0)]


@pytest.mark.parametrize("recipe", [None, Recipe("two", (InputRanges(), DriftCompensation(reads=4)))])
def test_every_piece_of_a_job_is_measured_on_one_block(llamas, recipe, monkeypatch):
    found = []
    measure = estimating.measure

    def noted(*arguments, **options):
        found.append(measure(*arguments, **options))
        return found[0]

    monkeypatch.setattr(estimating, "measure", noted)
    estimate(llamas[5], perplexity(llamas[5]), recipe=recipe, times=["1h", "1d"], chips=2)
    kinds = {"score digital", "score analog"}
    if recipe is not None:
        kinds |= {"score quantised", "fit 0", "score after InputRanges", "fit 1", "score calibrated"}
    (measured,) = found
    assert measured.seconds.keys() == kinds
    assert all(measured.seconds[kind] >= 0 for kind in kinds)
    assert sum("layers.0" in layer.name for layer in measured.experiment.conversion.analog) == 7
    assert not any("layers.1" in layer.name for layer in measured.experiment.conversion.analog)
    digital = 4 * (2 * 32 * 16 + 16 + 5 * (16 * 16 * 2 + 16 * 8 * 2 + 3 * 16 * 24 + 2 * 16))
    assert all(digital <= size for size in measured.bytes.values())
    assert all(measured.streamed[kind] < size for kind, size in measured.bytes.items())


def perplexity(folder):
    from calibration import load_model, tasks

    return tasks.get("perplexity", load_model(folder).tokenizer, **SIZES)


def test_kinds():
    keys = ["score digital", "score after DriftCompensation chip 1 at 3600.0 fitted 0.0", "fit 3", "fit 2 chip 7"]
    keys += ["fit 3 population chip 10000 at 0.0"]
    assert [kind_of(key) for key in keys] == [
        "score digital",
        "score after DriftCompensation",
        "fit 3",
        "fit 2",
        "fit 3 population",
    ]


# Estimates


def test_chips_and_times(llamas, ticks):
    task = perplexity(llamas[2])
    chips = [estimate(llamas[2], task, times=["1h"], chips=k).seconds for k in (1, 2, 4)]
    assert chips[2] - chips[1] == pytest.approx(2 * (chips[1] - chips[0]))
    assert chips[1] > chips[0]
    times = estimate(llamas[2], task, times=["1h", "1d"], chips=1).seconds
    assert 0 < times - chips[0] < chips[1] - chips[0] + 1


def test_blocks(llamas, ticks):
    two, five = (estimate(llamas[k], perplexity(llamas[k]), times=["1h"], chips=1) for k in (2, 5))
    assert five.seconds > two.seconds + 3
    assert five.streamed_seconds > five.seconds  # what blocks hand on


def test_an_estimate_changes_nothing(net, task):
    before = {name: value.clone() for name, value in net.state_dict().items()}
    found = estimate(net, task, recipe=Recipe("two", (InputRanges(), DriftCompensation(reads=4))), chips=2)
    assert (found.model, found.streamed_seconds, found.streamed_bytes) == ("TinyNet", None, None)
    assert all(torch.equal(before[name], value) for name, value in net.state_dict().items())
    assert emulate(net, task, chips=1, times=["1h"]).values("digital") == [1.0]


def test_layers_by_name_that_one_block_does_not_have(llamas):
    task = perplexity(llamas[5])
    assert estimate(llamas[5], task, chips=1, times=["1h"], include="model.layers.3.*").seconds > 0
    with pytest.raises(InputError, match="'nothing' matches none"):
        estimate(llamas[5], task, chips=1, times=["1h"], include="nothing")


# The command


def test_dry_run(capsys, llamas, tmp_path):
    job = ["--model", llamas[2], "--task", "perplexity", "--windows", 2, "--window-length", 16, "--chips", 1]
    code, out, err = run(capsys, "calibrate", *job, "--times", "1h", "--out", tmp_path / "chip", "--dry-run")
    assert (code, err) == (0, "")
    first, second, third = (line for line in out.splitlines() if "│" in line)
    assert "at once" in first
    assert "of processor time and" in first
    assert "GiB of memory" in first
    assert "block by block (--stream true)" in second
    assert "at once: " in third
    assert not list(tmp_path.iterdir())
    code, out, err = run(capsys, "emulate", *job, "--times", "1h", "--dry-run", "--json")
    told = json.loads(out)
    assert (code, err) == (0, "")
    assert told["model"] == "2"
    assert told["streams"] is False
    assert told["seconds"] < told["streamed_seconds"] < told["seconds"] + 5
    assert 0.2 < told["streamed_bytes"] / told["bytes"] <= 1.01


def test_dry_run_of_an_encoder_and_of_a_mistake(capsys, job):
    code, out, err = run(capsys, "emulate", *job, "--dry-run")
    assert (code, err) == (0, "")
    assert "block by block" not in out
    assert_one_sentence(*run(capsys, "emulate", *job, "--dry-run", "--task", "perplexity"), "perplexity")
