"""transformers' Trainer on a model whose layers are analog: handwritten digits, a small vision transformer.

In train mode every step meets the converters and the errors of cells that nobody has seen; in eval mode a model does
what one chip does. As many steps in digital and through the tiles; then the same chips, with drift compensated.
"""

import argparse
import copy
import tempfile
from dataclasses import replace

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from transformers import Trainer, TrainingArguments, ViTConfig, ViTForImageClassification, set_seed

from calibration import DriftCompensation
from crossbar import Converter, age, convert, presets, program

HARDWARE = replace(presets.pcm(), dac=Converter(bits=3, range="per_token"), adc=Converter(bits=4))
TIMES = {"1 h": 3600, "1 d": 86_400, "30 d": 30 * 86_400, "1 y": 365 * 86_400}


def digits() -> tuple[list[dict[str, Tensor]], list[dict[str, Tensor]]]:
    """1,797 digits that come with scikit-learn, 8 x 8 pixels: what trains, and what is scored."""
    pixels, labels = (torch.tensor(part) for part in load_digits(return_X_y=True))
    pictures = pixels.float().view(-1, 1, 8, 8) / 16
    samples = [{"pixel_values": picture, "labels": label} for picture, label in zip(pictures, labels, strict=True)]
    return samples[:1000], samples[1000:]


def train(model: nn.Module, samples: list[dict[str, Tensor]], steps: int, rate: float) -> None:
    """The usual Trainer: an analog layer is a module like any other."""
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder, max_steps=steps, learning_rate=rate, per_device_train_batch_size=64, use_cpu=True, seed=0,
            save_strategy="no", logging_strategy="no", report_to="none",
        )  # fmt: skip
        Trainer(model=model, args=arguments, train_dataset=samples).train()
    model.eval()


@torch.no_grad()
def accuracy(model: nn.Module, samples: list[dict[str, Tensor]]) -> float:
    """Part of the pictures that are read correctly."""
    pixels, labels = (torch.stack([sample[name] for sample in samples]) for name in ("pixel_values", "labels"))
    return float((model(pixel_values=pixels).logits.argmax(-1) == labels).double().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=400, help="of each of the two trainings")
    parser.add_argument("--chips", type=int, default=5)
    options = parser.parse_args()
    set_seed(0)
    seen, scored = digits()
    shape = {"image_size": 8, "patch_size": 2, "num_channels": 1, "hidden_size": 64, "intermediate_size": 128}
    plain = ViTForImageClassification(ViTConfig(**shape, num_hidden_layers=2, num_attention_heads=4, num_labels=10))
    train(plain, seen, options.steps, 2e-3)
    aware = copy.deepcopy(plain)
    convert(aware, HARDWARE)  # from here on, training is through the tiles
    train(aware, seen, options.steps, 5e-4)
    train(plain, seen, options.steps, 5e-4)
    print(f"digital {accuracy(plain, scored):.3f}")
    convert(plain, HARDWARE)
    for name, model in (("trained in digital", plain), ("trained through the tiles", aware)):
        found = dict.fromkeys(TIMES, 0.0)
        for chip in range(options.chips):
            program(model, seed=chip)
            for time, seconds in TIMES.items():
                age(model, seconds)
                DriftCompensation().apply(model, DriftCompensation().fit(model, []))
                age(model, seconds + 3600)
                found[time] += accuracy(model, scored) / options.chips
        print(f"{name}, {options.chips} chips: " + ", ".join(f"{time} {mean:.3f}" for time, mean in found.items()))


if __name__ == "__main__":
    main()
