"""Finetuning: what it minimises, that it repeats, resumes and divides among processes, and that gradients are right."""

import copy
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from torch import nn

import calibration.steps.finetune as finetuning
from calibration import AdcRanges, Finetune, Recipe, calibrate, load_bundle
from calibration.recipe import get
from calibration.steps.distillation import distance
from calibration.steps.finetune import losses
from calibration.steps.protocol import Stage
from calibration.steps.sharding import Shards
from crossbar import Converter, Hardware, InputError, Tile, age, analog_layers, bypassed, convert, presets, program
from crossbar.devices import Ideal
from crossbar.tiles.weight_errors import weight_errors

ROUGH = Hardware(presets.pcm().device, tile=Tile(16, 16), output_noise=0.02)
SHORT = {
    "adapters": Finetune(steps=6, accumulate=2, rank=4),
    "weights": Finetune(train="weights", chip="any", steps=6, accumulate=2),
}
LONG = {name: replace(options, steps=100) for name, options in SHORT.items()}


class Blocks(nn.Module):
    """Blocks in a list, as decoders have them."""

    def __init__(self):
        super().__init__()
        self.blocks = nn.ModuleList(nn.Linear(24, 24) for _ in range(3))
        self.out = nn.Linear(24, 8)
        self.unused = nn.LayerNorm(8)  # as an encoder's pooler is where its tokens are read

    def forward(self, x, attention_mask=None):
        for block in self.blocks:
            x = x + torch.tanh(block(x))
        return self.out(x)


def batches(count=3, dtype=torch.float32):
    draw = torch.Generator().manual_seed(5)
    return [{"x": torch.randn(2, 6, 24, generator=draw).to(dtype)} for _ in range(count)]


def chip(hardware=ROUGH, dtype=torch.float32, seed=1, when="1d"):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = Blocks().eval().to(dtype)
    convert(model, hardware)
    if seed is not None:
        program(model, seed)
        age(model, when)
    return model


def unprogrammed_or_chip(options):
    return chip(seed=None if options.train == "weights" else 1)


def error(model):
    """Of the model's outputs on other inputs, as a part of the digital ones."""
    x = torch.randn(50, 24, generator=torch.Generator().manual_seed(9))
    with torch.no_grad():
        digital = x
        for block in model.blocks:
            digital = digital + torch.tanh(block.digital(digital))
        digital = model.out.digital(digital)
        return float((model(x) - digital).norm() / digital.norm())


def state(model):
    """Everything a training may touch."""
    layers = list(analog_layers(model).values())
    tensors = [p.detach().clone() for p in model.parameters()]
    tensors += [t.clone() for layer in layers for t in (layer.input_range, layer.adc_range) if t is not None]
    tensors += [layer.column_gain.clone() for layer in layers]
    return tensors, [(layer.seconds, layer.reads, layer.training, layer.adapter_up) for layer in layers]


@pytest.mark.parametrize("options", [
    Finetune(steps=60, rate=5e-3, rank=8),
    Finetune(steps=60, rate=5e-3, rank=8, chip="any"),
    Finetune(train="weights", chip="any", steps=60, rate=2e-3, clip=2.5, compensated=False),
], ids=["own chip", "any chip", "weights"])  # fmt: skip
def test_finetuning_brings_outputs_nearer_and_leaves_the_model_as_it_was(options):
    model = unprogrammed_or_chip(options)
    before = state(model)
    fitted = options.fit(model, batches(8))
    after = state(model)
    assert all(torch.equal(a, b) for a, b in zip(before[0], after[0], strict=True))
    assert before[1] == after[1]
    curve = losses(fitted)
    assert curve.shape == (60,)
    assert curve[-10:].mean() < 0.9 * curve[:5].mean()
    if options.train == "weights":
        options.apply(model, fitted)
        assert options.stage is Stage.BEFORE_PROGRAMMING
        changed = {name for name in fitted if name.startswith("weight of ")}
        assert len(changed) == len(list(model.parameters()))
        assert "blocks.0.adc_range" in fitted
    else:
        assert options.stage is Stage.IN_USE
        found = error(model)
        options.apply(model, fitted)
        assert error(model) < (0.9 if options.chip == "own" else 0.97) * found


def test_weights_that_were_trained_are_what_is_programmed():
    options = Finetune(train="weights", chip="any", steps=5, ranges=False)
    model = chip(presets.ideal(), seed=None)
    fitted = options.fit(model, batches())
    options.apply(model, fitted)
    program(model, 0)
    for name, layer in analog_layers(model).items():
        torch.testing.assert_close(layer.effective_weight(), fitted[f"weight of {name}.digital.weight"])


def test_weights_are_trained_with_the_errors_of_compensated_chips():
    """The loss of the first steps is that of chips of that age whose mean drift is taken back, or is not."""
    year = 365 * 86400.0
    hardware, given = replace(ROUGH, adc=None, tile=Tile(32, 32)), batches(4)
    for compensated in (True, False):
        options = Finetune("weights", "any", steps=160, rate=1e-12, age=year, compensated=compensated)
        curve = losses(options.fit(chip(hardware, seed=None), given))
        distances = []
        for seed in range(160):
            model = chip(hardware, seed=seed, when=year)
            for layer in analog_layers(model).values():
                layer.column_gain *= weight_errors(hardware, year).gain if compensated else 1.0
            x = given[seed % 4]
            with torch.no_grad(), bypassed(model):
                wanted = model(**x)
            with torch.no_grad():
                distances.append(float(distance(model(**x), wanted, None)))
        # One loss has a deviation of a third of the mean: the difference of means of 160 a standard error of 0.037.
        assert float(curve.mean()) == pytest.approx(sum(distances) / 160, rel=0.1)


def test_the_same_options_give_the_same_curve_with_and_without_checkpointing():
    first, again, kept = (Finetune(steps=4, checkpoint=c).fit(chip(), batches()) for c in (True, True, False))
    assert first.keys() == again.keys() == kept.keys()
    for name, value in first.items():
        assert torch.equal(value, again[name])
        torch.testing.assert_close(value, kept[name])


def test_steps_are_relative_to_the_size_of_activations():
    """A layer whose outputs are 128 times larger, before one with weights as much smaller, learns the same."""
    curves = []
    for factor in (1, 128):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 8)).eval()
        with torch.no_grad():
            model[0].weight *= factor
            model[0].bias *= factor
            model[1].weight /= factor
        convert(model, ROUGH)
        program(model, 1)
        age(model, "1d")
        inputs = [{"input": batch["x"]} for batch in batches()]
        curves.append(losses(Finetune(steps=12, rate=1e-2, rank=4).fit(model, inputs)))
    assert curves[0][-3:].mean() < 0.9 * curves[0][:3].mean()
    torch.testing.assert_close(curves[1], curves[0], rtol=1e-3, atol=0)


class StoppedError(Exception):
    pass


@pytest.mark.parametrize("last", [1, 4])
@pytest.mark.parametrize("options", SHORT.values(), ids=SHORT)
def test_a_stopped_training_goes_on_to_the_same_curve(options, last, tmp_path, monkeypatch):
    def stop(step, total, text):
        if step == last:
            raise StoppedError

    monkeypatch.setattr(finetuning, "_KEEP", -1.0)  # keeps every step
    whole = options.fit(unprogrammed_or_chip(options), batches())
    file = tmp_path / "state.safetensors"
    with pytest.raises(StoppedError):
        options.fit_long(unprogrammed_or_chip(options), batches(), file, stop)
    seen = []
    resumed = options.fit_long(unprogrammed_or_chip(options), batches(), file, lambda *at: seen.append(at))
    assert [at[0] for at in seen] == list(range(last, 6))
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items())
    assert "loss" in seen[-1][2]
    assert "left" in seen[-1][2]
    with pytest.raises(InputError, match="holds another training"):
        Finetune(steps=9).fit_long(chip(), batches(), file, None)


@pytest.mark.slow
@pytest.mark.parametrize("name", LONG)
@pytest.mark.parametrize("again", range(2))
def test_a_process_killed_at_a_random_instant_resumes_to_the_same_curve(name, again, tmp_path):
    """Killed from outside at whatever it was doing, such as writing its state, which it does after each step."""
    options, file, draw = LONG[name], tmp_path / "state.safetensors", random.Random(time.time_ns())
    step, part = draw.randrange(1, options.steps // 2), draw.random()
    instant = f"killed after {part:.3f} of step {step}"
    whole = options.fit(unprogrammed_or_chip(options), batches())
    with subprocess.Popen(command("killed", file, name), stdout=subprocess.PIPE, text=True, **SETTING) as process:
        for line in process.stdout:
            done, seconds = line.split()
            if int(done) == step:
                time.sleep(part * float(seconds))
                process.kill()
    assert process.returncode == -signal.SIGKILL, instant
    seen = []
    resumed = options.fit_long(unprogrammed_or_chip(options), batches(), file, lambda *at: seen.append(at[0]))
    assert step <= seen[0] < options.steps, instant
    assert seen == list(range(seen[0], options.steps)), instant
    assert all(torch.equal(value, resumed[name]) for name, value in whole.items()), instant


DIVIDED = [
    *SHORT.values(),
    replace(SHORT["adapters"], shards=True),
    replace(SHORT["weights"], shards=True, clip=1.5),
]
"""Trained by two processes: each with all parameters, or with a share of them."""


def test_two_processes_take_the_same_steps_as_one(tmp_path):
    alone = [options.fit(unprogrammed_or_chip(options), batches()) for options in DIVIDED]
    with subprocess.Popen(command("second", tmp_path / "meeting"), **SETTING) as other:
        first = divided(tmp_path / "meeting", 0)  # this process is the first
        assert other.wait(timeout=240) == 0
    second = torch.tensor([float(x) for x in (tmp_path / "meeting.txt").read_text().split()], dtype=torch.float64)
    assert torch.equal(torch.cat([losses(fitted) for fitted in first]), second)
    for one, two in zip(alone, first, strict=True):
        torch.testing.assert_close(losses(two), losses(one), rtol=1e-5, atol=0)
        assert one.keys() == two.keys()
        # AdamW divides by the size of a gradient, which may be nothing but rounding.
        assert all((value - two[name]).abs().mean() <= 1e-3 * value.abs().mean() for name, value in one.items())
    kept = DIVIDED[-1].fit_long(unprogrammed_or_chip(DIVIDED[-1]), batches(), tmp_path / "meeting.state", None)
    assert all(torch.equal(value, first[-1][name]) for name, value in kept.items())  # taken from what two wrote


def divided(meeting, rank):
    """What `DIVIDED` finds in one of two processes, which meet at a file."""
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{meeting}", rank=rank, world_size=2, timeout=timedelta(minutes=4)
    )
    try:
        model = unprogrammed_or_chip(DIVIDED[-1])
        shards = Shards(model, ["blocks.0.digital.weight", "out.digital.bias"], ["blocks.0"])
        assert {name: own.shape for name, own in shards.own.items()} == {
            "blocks.0.digital.weight": (12, 24),
            "out.digital.bias": (4,),
        }
        assert torch.equal(
            shards.own["blocks.0.digital.weight"], model.blocks[0].digital.weight[12 * rank : 12 * rank + 12]
        )
        state = [None] * (len(DIVIDED) - 1) + [meeting.with_suffix(".state")]
        fits = zip(DIVIDED, state, strict=True)
        return [options.fit_long(unprogrammed_or_chip(options), batches(), file, None) for options, file in fits]
    finally:
        torch.distributed.destroy_process_group()


ROOT = Path(__file__).resolve().parents[3]
SETTING = {"cwd": ROOT, "env": {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}}


def command(script, path, *arguments):
    """The command that runs a part of `main` in a process of its own."""
    return [sys.executable, __file__, script, str(path), *arguments]


def main(script, path, name=""):
    """What `command` runs; a training that will be killed says when a step begins, and how long the last one took."""
    if script == "killed":
        finetuning._KEEP = -1.0  # keeps every step
        began = [time.monotonic()]

        def tell(step, total, text):
            began.append(time.monotonic())
            sys.stdout.write(f"{step} {began[-1] - began[-2]}\n")
            sys.stdout.flush()

        LONG[name].fit_long(unprogrammed_or_chip(LONG[name]), batches(), Path(path), tell)
        return
    curves = torch.cat([losses(fitted) for fitted in divided(Path(path), 1)])
    Path(f"{path}.txt").write_text(" ".join(map(repr, curves.tolist())))


QUIET = Hardware(Ideal(), tile=Tile(16, 16), dac=None, adc=None, output_noise=0.02)


@pytest.mark.parametrize("part", ["adapter_down", "adapter_up", "bias"])
@pytest.mark.parametrize("training", [False, True])
def test_gradients_of_every_part_with_noise_frozen(part, training):
    """Through all layers, in float64, without converters, whose steps have no derivative."""
    model = chip(QUIET, torch.float64)
    draw = torch.Generator().manual_seed(2)
    layers = analog_layers(model)
    for layer in layers.values():
        down, up = (torch.randn(24, 3, generator=draw), torch.randn(3, layer.out_features, generator=draw))
        layer.set_adapter(nn.Parameter(down.double() / 5), nn.Parameter(up.double() / 5))
        layer.training = training
    inputs = batches(1, torch.float64)[0]
    parameters = [getattr(layer.digital if part == "bias" else layer, part) for layer in layers.values()]

    def loss(*values):
        names = [f"{name}.{'digital.' if part == 'bias' else ''}{part}" for name in layers]
        for layer in layers.values():
            layer.reads = 0
        out = torch.func.functional_call(model, dict(zip(names, values, strict=True)), kwargs=inputs)
        return distance(out, torch.ones_like(out))

    values = [p.detach()[..., :4].clone() for p in parameters]  # a part of each, to be quick
    whole = [p.detach() for p in parameters]

    def of_parts(*some):
        return loss(*(torch.cat([s, w[..., 4:]], -1) for s, w in zip(some, whole, strict=True)))

    assert torch.autograd.gradcheck(of_parts, [v.requires_grad_() for v in values])


def test_learned_ranges_have_the_gradient_of_what_they_clip():
    """Where converters are fine enough for the steps not to matter, the range's derivative is that of clipping."""
    fine = Converter(bits=16)
    model = chip(Hardware(Ideal(), tile=Tile(16, 16), dac=fine, adc=None, output_noise=0.02), torch.float64)
    layer = model.blocks[0]
    layer.input_range = torch.tensor(1.1, dtype=torch.float64)
    (learned,) = layer.learn_ranges()
    x = batches(1, torch.float64)[0]["x"]

    def loss():
        layer.reads = 0
        return layer(x).square().mean()

    (gradient,) = torch.autograd.grad(loss(), learned)
    step = 0.02  # many converter steps
    with torch.no_grad():
        learned += step
        above = loss()
        learned -= 2 * step
        numeric = (above - loss()) / (2 * step)
    torch.testing.assert_close(gradient, numeric, rtol=0.05, atol=0)


def test_a_recipe_trains_each_chip_and_a_bundle_keeps_it(net, task, tmp_path):
    recipe = Recipe("trained", (Finetune(steps=20, rate=5e-3, rank=4),))
    told = []
    result = calibrate(
        net,
        task,
        ROUGH,
        recipe,
        times=["1d"],
        chips=2,
        out=tmp_path / "bundle",
        progress=lambda *at: told.append(at[2]),
    )
    assert all(
        after > before for after, before in zip(result.values("calibrated"), result.values("analog"), strict=True)
    )
    assert any("finetuning, loss" in text for text in told)
    assert [path.name for path in tmp_path.iterdir()] == ["bundle"]
    bundle = load_bundle(tmp_path / "bundle", model=net)
    x = task.evaluation
    result.deployment.restore(0, 86400.0)
    with torch.no_grad():
        assert torch.equal(bundle.model(x), result.deployment.experiment.analog(x))


def test_ranges_learned_with_the_weights_are_every_chips(net, task):
    """Whatever was fitted on a chip before, and whichever chips were scored before training."""
    options = Finetune(train="weights", chip="any", steps=5, rate=5e-3)
    result = calibrate(net, task, ROUGH, Recipe("both", (options, AdcRanges())), times=["1h", "1d"], chips=2)
    model = copy.deepcopy(net)
    convert(model, ROUGH)
    learned = options.fit(model, task.batches("calibration"))
    result.deployment.climb.program(1)  # the chip at hand, without what steps in use put into it
    for name, layer in analog_layers(result.deployment.experiment.analog).items():
        assert torch.equal(layer.adc_range, learned[f"{name}.adc_range"])
    weights_alone = calibrate(net, task, ROUGH, Recipe("weights", (options,)), times=["1h", "1d"], chips=2)
    assert weights_alone.values("calibrated") == result.values("after Finetune")
    weights_alone.deployment.restore(1, 86400.0)
    for name, layer in analog_layers(weights_alone.deployment.experiment.analog).items():
        assert torch.equal(layer.adc_range, learned[f"{name}.adc_range"])


def test_the_recipe_thorough_is_fast_and_more():
    fast = get("fast").steps
    more = [step for step in get("thorough").steps if step not in fast]
    assert [step for step in get("thorough").steps if step in fast] == list(fast)
    assert [type(step).__name__ for step in more] == ["CompensatedProgramming", "LowRankAdapter", "Finetune"]


def test_the_recipe_foundation_is_fast_with_weights_trained_before_programming():
    fast = get("fast").steps
    assert [step for step in get("foundation").steps if step in fast] == list(fast)
    (training,) = (step for step in get("foundation").steps if step not in fast)
    assert (training.train, training.stage) == ("weights", Stage.BEFORE_PROGRAMMING)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: Finetune(train="all"), "train = 'all'"),
        (lambda: Finetune(chip="my"), "chip = 'my'"),
        (lambda: Finetune(steps=0), "Finetune steps = 0"),
        (lambda: Finetune(rate=0.0), "Finetune rate"),
        (lambda: Finetune(clip=-1.0), "Finetune clip"),
        (lambda: Finetune(train="weights"), "cannot train weights for one chip"),
        (lambda: Finetune(age=-1.0, train="weights", chip="any"), "Finetune age"),
        (lambda: SHORT["adapters"].fit(chip(), []), "no batches"),
        (lambda: Finetune(rate=1e9, steps=9).fit(chip(), batches()), "give a lower rate"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(InputError, match=named):
        make()


if __name__ == "__main__":
    main(*sys.argv[1:])
