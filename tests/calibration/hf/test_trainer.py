"""AnalogTraining in the real Trainer: noise, clipping, ranges, the chip that is scored, checkpoints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from calibration import DriftCompensation
from calibration.hf import AnalogConfig, AnalogTraining
from crossbar import InputError, age, analog_layers, program, reset_reads

pytestmark = pytest.mark.filterwarnings("default")  # transformers' and accelerate's
HARDWARE = {"device": "pcm", "dac": {"bits": 8, "range": "static", "full_scale": 4.0}, "adc": {"bits": 8}}
DAY, HOUR = 86400.0, 3600.0


def samples(count=8):
    draw = torch.Generator().manual_seed(7)
    rows = torch.randint(2, 30, (count, 12), generator=draw)
    return [{"input_ids": row, "labels": row} for row in rows]


def trained(folder, out, *, steps=4, resume=None, callback=None, **options):
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=AnalogConfig(HARDWARE, seed=5))
    arguments = TrainingArguments(
        str(out), max_steps=steps, learning_rate=5e-3, per_device_train_batch_size=2, use_cpu=True, seed=0,
        logging_steps=1, report_to="none", disable_tqdm=True, lr_scheduler_type="constant",
        **{"save_strategy": "no", **options},
    )  # fmt: skip
    callbacks = [AnalogTraining(seed=5, clip=1.5) if callback is None else callback]
    trainer = Trainer(
        model=model, args=arguments, train_dataset=samples(), eval_dataset=samples(2), callbacks=callbacks
    )
    trainer.train(resume_from_checkpoint=resume)
    losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
    return trainer, losses


@torch.no_grad()
def outputs(model):
    reset_reads(model)
    return model.eval()(input_ids=torch.arange(2, 14).unsqueeze(0)).logits


@pytest.fixture(scope="module")
def whole(llama_folder, tmp_path_factory):
    """Four steps, with a checkpoint in the middle."""
    out = tmp_path_factory.mktemp("training")
    trainer, losses = trained(
        llama_folder, out, save_strategy="steps", save_steps=2, eval_strategy="steps", eval_steps=4
    )
    return trainer, losses, out


def test_weights_are_clipped_and_ranges_learned(whole):
    for name, layer in analog_layers(whole[0].model).items():
        weight = layer.digital.weight
        assert weight.abs().max() <= 1.5 * weight.square().mean().sqrt() * 1.3, (
            name
        )  # clipping makes deviations smaller
        assert layer.adc_range.shape == ()
        assert layer.adc_range > 0
        assert layer.adc_range != layer.hardware.adc.full_scale
        assert layer.input_range != 4.0
        assert not isinstance(layer.adc_range, nn.Parameter)


def test_the_model_ends_as_the_chip_that_was_scored(whole):
    trainer, _, _ = whole
    model = trainer.model
    (scored,) = [entry["eval_loss"] for entry in trainer.state.log_history if "eval_loss" in entry]
    for layer in analog_layers(model).values():
        assert (layer.seed, layer.seconds) == (5, DAY + HOUR)
    reset_reads(model)
    assert trainer.evaluate()["eval_loss"] == scored
    found = outputs(model)
    program(model, 5)
    age(model, DAY)
    DriftCompensation().apply(model, DriftCompensation().fit(model, []))
    age(model, DAY + HOUR)
    assert torch.equal(outputs(model), found)


def test_a_checkpoint_is_the_chip_as_it_was(whole):
    trainer, _, out = whole
    last = AutoModelForCausalLM.from_pretrained(out / "checkpoint-4")
    assert torch.equal(outputs(last), outputs(trainer.model))
    assert not torch.equal(outputs(AutoModelForCausalLM.from_pretrained(out / "checkpoint-2")), outputs(last))


def test_a_resumed_training_is_the_whole_one(whole, llama_folder):
    trainer, losses, out = whole
    again, rest = trained(llama_folder, out, resume=str(out / "checkpoint-2"))
    assert rest[-2:] == losses[2:]
    assert torch.equal(outputs(again.model), outputs(trainer.model))


def test_errors_of_cells_are_met(whole, llama_folder, tmp_path):
    younger = AnalogTraining(seed=5, clip=1.5, age=0.0, compensated=False, ranges=False)
    other, losses = trained(llama_folder, tmp_path, callback=younger, steps=1)
    assert losses[0] != whole[1][0]
    layer = next(iter(analog_layers(other.model).values()))
    assert (layer.seed, layer.seconds, layer.adc_range) == (5, 0.0, None)


@pytest.mark.parametrize(
    ("options", "said"), [({"clip": 0}, "clip = 0"), ({"seed": 0.5}, "seed = 0.5"), ({"wait": 0}, "wait of 0 s")]
)
def test_impossible_values(options, said):
    with pytest.raises(InputError, match=said):
        AnalogTraining(**options)


def test_a_digital_model_is_refused(tiny_llama, tmp_path):
    arguments = TrainingArguments(str(tmp_path), use_cpu=True, report_to="none")
    with pytest.raises(InputError, match="has no analog layers"):
        Trainer(model=tiny_llama, args=arguments, train_dataset=samples(), callbacks=[AnalogTraining()])


@pytest.mark.slow
def test_two_processes_train_one_model(llama_folder, tmp_path):
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    command += [str(Path(__file__).with_name("two_processes.py")), str(llama_folder), str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[3]), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment, timeout=600)
    found = json.loads(done.stdout.splitlines()[-1])
    for name in ("weights", "chips"):
        assert len(found[name]) == 2
        assert found[name][0] == found[name][1]
    assert found["losses"][-1] < found["losses"][0]
