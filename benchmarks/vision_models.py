"""Vision models of torchvision on tiles: how much of each becomes analog, and how near to digital ideal cells are.

Random weights (a head that starts from zeros is drawn), two images of 224x224. Bar: 1e-5 of the largest output.
`python benchmarks/vision_models.py` takes minutes; it needs torchvision.
"""

import copy
import time

import torch
from paired import judge, options, print_setting
from rich.console import Console
from rich.table import Table
from torch import nn
from torchvision import models

from crossbar import convert, presets

MODELS = {
    "ResNet-18": models.resnet18,
    "ViT-B/16": models.vit_b_16,
    "ConvNeXt-tiny": models.convnext_tiny,
    "Swin-T": models.swin_t,
}


def main() -> None:
    options(__doc__, rounds=1)
    print_setting()
    view = Table(title="torchvision models in ideal cells", title_justify="left")
    for column in ("model", "parameters", "analog", "matrices", "largest difference", "digital s", "tiles s"):
        view.add_column(column, justify="left" if column == "model" else "right")
    lines = []
    for name, build in MODELS.items():
        torch.manual_seed(0)
        digital = build(weights=None).eval()
        for layer in digital.modules():
            if isinstance(layer, nn.Linear) and not layer.weight.any():
                nn.init.normal_(layer.weight, std=0.02)
        analog, x = copy.deepcopy(digital), torch.randn(2, 3, 224, 224)
        report = convert(analog, presets.ideal())
        (expected, before), (found, after) = computed(digital, x), computed(analog, x)
        difference = float((found - expected).abs().max() / expected.abs().max())
        share = report.analog_parameters / report.parameters
        view.add_row(
            name, f"{report.parameters:,}", f"{share:.1%}", str(len(report.analog)), f"{difference:.1e}",
            f"{before:.1f}", f"{after:.1f}",
        )  # fmt: skip
        lines.append(judge(f"{name}, difference in units of 1e-5", difference * 1e5, 1.0))
    Console(width=120).print(view)
    for line in lines:
        Console().print(line)


@torch.inference_mode()
def computed(model: nn.Module, x: torch.Tensor) -> tuple[torch.Tensor, float]:
    start = time.process_time()
    return model(x), time.process_time() - start


if __name__ == "__main__":
    main()
