"""Layers on tiles against their digital forward: convolutions of a ResNet, patch embedding, and a small Mixtral.

PCM at 1 d with 8-bit converters and output noise 0.04; float32. Digital convolutions are torch's (oneDNN), digital
experts transformers' own default. Bars: a convolution at most 3 x digital, the Mixtral at most 4 x. On a machine that
is busy with other work, ``--threads 1 --processor-time``.
"""

import copy
import time
from collections.abc import Callable
from functools import partial

import torch
from paired import Arms, judge, measure, option_parser, print_setting, ratio, table, use
from rich.console import Console
from torch import nn
from transformers import AutoModelForCausalLM, MixtralConfig

from crossbar import age, convert, presets, program

Clock = Callable[[], float]
CONVOLUTIONS = {
    "3x3, 64 to 64, 56x56": (nn.Conv2d(64, 64, 3, padding=1), (4, 64, 56, 56)),
    "3x3, 256 to 256, 14x14": (nn.Conv2d(256, 256, 3, padding=1), (4, 256, 14, 14)),
    "1x1, 256 to 64, 56x56": (nn.Conv2d(256, 64, 1), (4, 256, 56, 56)),
    "7x7 at stride 2, 3 to 64, 224x224": (nn.Conv2d(3, 64, 7, 2, 3), (4, 3, 224, 224)),
    "patches of 16x16, 3 to 768": (nn.Conv2d(3, 768, 16, 16), (4, 3, 224, 224)),
}


def main() -> None:
    parser = option_parser(__doc__, rounds=7)
    parser.add_argument("--processor-time", action="store_true", help="instead of time by the clock")
    chosen = use(parser)
    clock, rounds = time.process_time if chosen.processor_time else time.perf_counter, chosen.rounds
    print_setting()
    torch.manual_seed(0)
    lines = []
    for name, (layer, shape) in CONVOLUTIONS.items():
        x = torch.randn(shape)
        found = compare(name, nn.Sequential(layer), {"input": x}, rounds, clock)
        lines.append(judge(f"convolution {name}", found, 3.0))
    config = MixtralConfig(
        vocab_size=512, hidden_size=128, intermediate_size=256, num_hidden_layers=4, num_attention_heads=4,
        num_key_value_heads=2, num_local_experts=8, max_position_embeddings=256,
    )  # fmt: skip
    ids = torch.randint(0, 512, (4, 128))
    found = compare(
        "Mixtral, 4 layers of 8 experts", AutoModelForCausalLM.from_config(config), {"input_ids": ids}, rounds, clock
    )
    lines.append(judge("Mixtral", found, 4.0))
    for line in lines:
        Console().print(line)


def compare(name: str, digital: nn.Module, inputs: dict[str, torch.Tensor], rounds: int, clock: Clock) -> float:
    digital = digital.eval()
    analog = copy.deepcopy(digital)
    convert(analog, presets.pcm())
    program(analog, 0)
    age(analog, "1d")
    arms: Arms = {"digital": partial(digital, **inputs), "tiles": partial(analog, **inputs)}
    with torch.inference_mode():
        analog(**inputs)  # cells are brought into the form that products need once an age
        costs = measure(arms, rounds, twice=True, clock=clock)
    Console().print(table(name, costs, "digital"))
    return ratio(costs["tiles"].seconds, costs["digital"].seconds)


if __name__ == "__main__":
    main()
