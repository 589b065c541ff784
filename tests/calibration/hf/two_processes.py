"""Trains a model folder in the Trainer, alone or as one of several processes, which then say what they ended with."""

import json
import sys

import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from calibration.hf import AnalogConfig, AnalogTraining
from crossbar import analog_layers


def main(folder, out):
    model = AutoModelForCausalLM.from_pretrained(folder, quantization_config=AnalogConfig("pcm", seed=5))
    arguments = TrainingArguments(
        out, max_steps=3, learning_rate=5e-3, per_device_train_batch_size=2, use_cpu=True, seed=0, ddp_backend="gloo",
        logging_steps=1, report_to="none", disable_tqdm=True, lr_scheduler_type="constant", save_strategy="no",
    )  # fmt: skip
    rows = torch.randint(2, 30, (8, 12), generator=torch.Generator().manual_seed(7))
    samples = [{"input_ids": row, "labels": row} for row in rows]
    trainer = Trainer(model=model, args=arguments, train_dataset=samples, callbacks=[AnalogTraining(clip=2.5)])
    trainer.train()
    layer = next(iter(analog_layers(model).values()))
    own = torch.stack([parameter.detach().double().sum() for parameter in model.parameters()]).sum()
    weights = trainer.accelerator.gather(own.view(1)).tolist()
    chips = trainer.accelerator.gather(layer.cells.digits.double().sum().view(1)).tolist()
    if trainer.is_world_process_zero():
        losses = [entry["loss"] for entry in trainer.state.log_history if "loss" in entry]
        sys.stdout.write(json.dumps({"losses": losses, "weights": weights, "chips": chips}) + "\n")


if __name__ == "__main__":
    main(*sys.argv[1:])
