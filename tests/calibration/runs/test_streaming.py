"""Language models that go through jobs block by block: the same bits as at once, in less memory, after any kill."""

import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch

from calibration import (
    AdcRanges,
    AffineCorrection,
    DriftCompensation,
    Finetune,
    InputRanges,
    Recipe,
    WeightRanges,
    calibrate,
    emulate,
    load_bundle,
    load_model,
)
from calibration.calibrate import run_calibration
from calibration.emulate import run_emulation
from calibration.models.blocks import BlockModel
from calibration.runs import parts, streaming
from calibration.runs.request import Request
from crossbar import InputError, analog_layers
from tests.calibration.random_llama import TINY, texts, write_llama

SIZES = {"window_length": 16, "windows": 2, "calibration_windows": 3, **texts()}
FAST = Recipe(
    "fast",
    (
        InputRanges(),
        WeightRanges(),
        DriftCompensation(reads=16),
        AdcRanges(vectors=20),  # of two batches
        AffineCorrection(instants=2),
    ),
)


@pytest.fixture(scope="module")
def tied(tmp_path_factory):
    """Shards in float32, whose head is its embeddings."""
    path = tmp_path_factory.mktemp("models") / "tied"
    write_llama(path, spread=0.3, tie_word_embeddings=True, **TINY)
    return path


def request(folder, stream, **options):
    given = {"times": ["1h"], "chips": 1, "options": SIZES, **options}
    return Request.of(str(folder), "perplexity", stream=stream, **given)


# Parts


def test_parts_one_after_another_compute_what_the_model_does(llama):
    model, ids = BlockModel(llama), torch.arange(30).view(2, 15)
    states = None
    with torch.inference_mode():
        for part in range(len(model)):
            handed_on = []
            scores = model.part(part, lambda given=states: given, handed_on.append)(input_ids=ids).logits
            (states,) = handed_on
        assert torch.equal(scores, load_model(llama).model(input_ids=ids).logits)


def test_a_part_has_the_weights_of_its_block_alone(llama):
    model = BlockModel(llama)
    held = [
        {name for name, p in model.part(part, lambda: None, print).named_parameters() if not p.is_meta}
        for part in range(len(model))
    ]
    assert len(model) == 4
    for part, names in enumerate(held[:3]):
        assert {name for name in names if ".layers." in name} == {
            name for name in load_model(llama).model.state_dict() if f".layers.{part}." in name
        }
        assert ("model.embed_tokens.weight" in names) == (part == 0)
        assert "lm_head.weight" not in names
    assert held[3] == {"model.norm.weight", "lm_head.weight"}


# The same bits


def test_emulation(llama):
    options = {"pattern": "window(6) | sinks(2)", "times": ["1h", "1d"]}
    once, streamed = (run_emulation(request(llama, stream, **options)) for stream in (False, True))
    assert streamed == once
    assert streamed.to_dict() == once.to_dict()
    assert once.values("analog")[0] != once.values("digital")[0]


@pytest.mark.parametrize(
    "options",
    [
        {"exclude": ["model.layers.1.*"]},
        pytest.param({"chips": 2, "times": ["1h", "1d"]}, marks=pytest.mark.slow),
        pytest.param(
            {"pattern": "window(6) | sinks(2)", "exclude": ["*.mlp.*"], "tied_heads": True}, marks=pytest.mark.slow
        ),
        pytest.param({"population": 2, "hardware": "reram"}, marks=pytest.mark.slow),
    ],
)
def test_calibration_and_its_bundle(tied, tmp_path, options):
    once, streamed = (
        run_calibration(
            request(tied, stream, recipe=FAST, wait="1h", **options), out=tmp_path / f"{stream}", cells=cells
        )
        for stream, cells in ((False, "conductances"), (True, "seeds"))
    )
    assert streamed == once
    assert streamed.to_dict() == once.to_dict()
    assert sorted(path.name for path in tmp_path.iterdir()) == ["False", "True"]
    ids = torch.arange(20).view(1, 20)
    one, other = (load_bundle(tmp_path / f"{stream}") for stream in (False, True))
    assert (one.files.cells, other.files.cells) == ("conductances", "seeds")
    assert "samples.safetensors" in other.files.entries
    with torch.inference_mode():
        assert torch.equal(one.model(input_ids=ids).logits, other.model(input_ids=ids).logits)
    other.refit("1d").save(tmp_path / "refit")
    refits = one.refit("1d"), load_bundle(tmp_path / "refit")
    gains = [analog_layers(refit.model)["model.layers.0.self_attn.q_proj"].column_gain for refit in refits]
    assert torch.equal(*gains)


@pytest.mark.slow
def test_smollm2(tmp_path):
    sizes = {"window_length": 128, "windows": 2, "calibration_windows": 2}
    once, streamed = (
        run_calibration(
            Request.of(
                "smollm2", "perplexity", recipe="fast", wait="1h", times=["1d"], chips=1, options=sizes, stream=s
            )
        )
        for s in (False, True)
    )
    assert streamed == once
    assert streamed.to_dict() == once.to_dict()


# Interrupted


def killed(command, place, through, after):
    """Run a command and kill it once so many parts are through and some seconds more; the code it ended with."""
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, **SETTING)
    while process.poll() is None and len(list(place.glob(".*.progress/part-*/done.json"))) < through:
        time.sleep(0.01)
    time.sleep(after)
    process.send_signal(signal.SIGKILL)
    return process.wait()


SHORT = Recipe("short", (InputRanges(), DriftCompensation()))


def job(folder, out):
    """The command that calibrates a model in a process of its own."""
    return [sys.executable, __file__, str(folder), str(out)]


ROOT = Path(__file__).resolve().parents[3]
SETTING = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT)}}


def same(first, second):
    one, other = load_bundle(first), load_bundle(second)
    assert one.report == other.report
    for name in one.files.entries:
        if name.startswith("states/"):
            assert all(torch.equal(x, other.files.tensors(name)[key]) for key, x in one.files.tensors(name).items())


class StoppedError(Exception):
    """As a kill, but that it can be timed."""


def test_a_stop_behind_a_block(llama, tmp_path):
    asked = request(llama, True, recipe=SHORT, wait="1h")
    run_calibration(asked, out=tmp_path / "whole")

    def stop(done, total, text):
        if text.startswith("block 3 of 3: analog"):
            raise StoppedError

    with pytest.raises(StoppedError):
        run_calibration(asked, out=tmp_path / "bundle", progress=stop)
    assert len(list(tmp_path.glob(".*.progress/part-*/done.json"))) == 2
    told = []
    run_calibration(asked, out=tmp_path / "bundle", notify=told.append)
    assert told == [told[0]]
    assert told[0].startswith("goes on behind the 2 of 4 parts in ")
    same(tmp_path / "bundle", tmp_path / "whole")


@pytest.mark.slow
def test_ten_kills(llama, tmp_path):
    """At random moments; what blocks were through stays so."""
    place, whole, draw = tmp_path / "place", tmp_path / "whole", random.Random(time.time_ns())
    place.mkdir()
    subprocess.run(job(llama, whole), check=True, capture_output=True, **SETTING)
    kills = 0
    while kills < 10:
        through = len(list(place.glob(".*.progress/part-*/done.json")))
        code = killed(job(llama, place / "bundle"), place, draw.randint(0, 4), draw.uniform(0, 0.5))
        kills += code != 0
        if (place / "bundle").exists():
            same(place / "bundle", whole)
            subprocess.run(["rm", "-r", str(place / "bundle")], check=True)
        else:
            assert len(list(place.glob(".*.progress/part-*/done.json"))) >= through
    subprocess.run(job(llama, place / "bundle"), check=True, capture_output=True, **SETTING)
    same(place / "bundle", whole)


def test_a_damaged_block_begins_again(llama, tmp_path):
    asked = request(llama, True)
    told, folder = [], tmp_path / "job"
    stream = streaming.Stream(asked, notify=told.append)

    def rise(climb, request):
        climb.score_digital()

    way = streaming.Way(folder, rise)
    first, _ = parts.run(stream, way)
    assert stream.through(folder) == 4
    (folder / "part-0001" / "done.json").write_text("{}")
    again, _ = parts.run(stream, way)
    assert told == [f"a block in {str(folder)!r} is damaged, and the job begins again"]
    assert again.measurements == first.measurements


# Where, and where not


def test_it_streams_where_memory_does_not_hold_the_model(llama, monkeypatch):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not streaming.is_streamed(request(llama, None), unmeasured)
    assert streaming.available() is not None
    monkeypatch.setattr(streaming, "available", lambda: 100_000)
    with pytest.warns(UserWarning, match=r"0\.1 GiB, measured on one of its blocks, and 0\.0 GiB of memory are free"):
        assert streaming.is_streamed(request(llama, None), lambda: 2**27)
    assert not streaming.is_streamed(request(llama, None), lambda: 100_000)
    assert not streaming.is_streamed(request(llama, None), lambda: None)
    assert not streaming.is_streamed(request(llama, False), unmeasured)
    assert not streaming.is_streamed(request(llama, None, memory="gain_cell"), unmeasured)


def unmeasured():
    raise AssertionError("nobody has to know")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"memory": "gain_cell"}, "no analog memory for keys and values"),
        ({"recipe": Recipe("long", (Finetune(),)), "wait": "1h"}, "Finetune looks at the whole model"),
    ],
)
def test_what_cannot_be_streamed_is_a_sentence(llama, change, said):
    with pytest.raises(InputError, match=said):
        streaming.require_streamable(request(llama, True, **change))


def test_a_model_in_memory_is_no_stream(net, task):
    with pytest.raises(InputError, match="a TinyNet is in memory already"):
        emulate(net, task, stream=True)


def test_an_encoder_is_no_stream(folder):
    with pytest.raises(InputError, match=r"cannot be streamed by blocks \(it is no causal language model\)"):
        emulate(folder, "wordsim", stream=True)


def test_a_stream_saves_no_chip_afterwards(llama, tmp_path):
    recipe = Recipe("short", (DriftCompensation(reads=16),))
    result = run_calibration(request(llama, True, recipe=recipe, wait="1h"), staircase=False)
    with pytest.raises(InputError, match="keeps no chip in memory to save: give calibrate its folder"):
        result.save(tmp_path / "bundle")


class Curious:
    """A task that asks again what the model said."""

    name, primary = "curious", "sum"

    def batches(self, split):
        return [{"input_ids": torch.arange(8).view(1, 8) + (split == "evaluation")}]

    @torch.no_grad()
    def metrics(self, model):
        first = model(input_ids=torch.arange(8).view(1, 8)).logits.argmax(-1)
        return {"sum": float(model(input_ids=first).logits.sum())}


def test_a_task_that_asks_back_is_refused(llama):
    with pytest.raises(InputError, match="inputs that depend on its outputs"):
        emulate(llama, Curious(), times=["1h"], chips=1, stream=True)


def test_calibrate_takes_stream_and_engine(llama):
    with pytest.raises(InputError, match="stream = 'yes' is not allowed"):
        calibrate(llama, "perplexity", stream="yes")
    with pytest.raises(InputError, match="engine 'slurm' is unknown: choose one of local, ray"):
        calibrate(llama, "perplexity", stream=True, engine="slurm")


@pytest.mark.parametrize("stream", [False, None])
def test_an_engine_is_of_streams(llama, stream, monkeypatch):
    monkeypatch.setattr("calibration.runs.engines.util.find_spec", lambda name: name)
    with pytest.raises(InputError, match="engine 'ray' shares out the blocks of a stream: give stream true too"):
        calibrate(llama, "perplexity", stream=stream, engine="ray")


if __name__ == "__main__":
    run_calibration(request(sys.argv[1], True, recipe=SHORT, wait="1h"), out=Path(sys.argv[2]))
