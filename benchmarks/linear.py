"""One analog linear layer, forward, against `nn.Linear` and against aihwkit's tiles with the same converters.

512 input vectors of 768, to 768 and to 3,072 outputs; float32; tiles of 256 x 256; 8-bit converters, per-token input
range, with output noise 0.04 and without; no device noise, which is not part of a product's cost.
"""

from dataclasses import replace
from functools import partial

import torch
from aihwkit.nn.conversion import convert_to_analog
from aihwkit.simulator.configs import (
    BoundManagementType,
    InferenceRPUConfig,
    IOParameters,
    MappingParameter,
    NoiseManagementType,
    TorchInferenceRPUConfig,
)
from paired import Arms, measure, options, print_setting, table
from rich.console import Console
from torch import nn

from crossbar import AnalogLinear, presets

VECTORS, INPUTS = 512, 768


def main() -> None:
    rounds = options(__doc__, rounds=9).rounds
    print_setting()
    for outputs in (768, 3072):
        torch.manual_seed(0)
        digital, x = nn.Linear(INPUTS, outputs), torch.randn(VECTORS, INPUTS)
        arms: Arms = {"nn.Linear": partial(digital, x)}
        for noise in (0.04, 0.0):
            label = f"output noise {noise:g}"
            hardware = replace(presets.pcm(), output_noise=noise)
            arms[f"ohmformer, {label}"] = partial(AnalogLinear.from_digital(digital, hardware), x)
            for name, kind in (("torch tile", TorchInferenceRPUConfig), ("compiled tile", InferenceRPUConfig)):
                arms[f"aihwkit {name}, {label}"] = partial(peer(digital, kind, noise), x)
        with torch.inference_mode():
            costs = measure(arms, rounds)
        title = f"{VECTORS} x {INPUTS} -> {outputs}, {rounds} rounds"
        Console().print(table(title, costs, base="nn.Linear"))


def peer(digital: nn.Linear, kind: type[TorchInferenceRPUConfig] | type[InferenceRPUConfig], noise: float) -> nn.Module:
    """The layer on aihwkit's tiles, set to the converters, noise and tile size of `presets.pcm()`."""
    converters = IOParameters(
        inp_res=1 / 254,
        out_res=1 / 254,
        out_bound=10.0,
        out_noise=noise,
        noise_management=NoiseManagementType.ABS_MAX,
        bound_management=BoundManagementType.NONE,
    )
    mapping = MappingParameter(
        max_input_size=256, max_output_size=256, weight_scaling_omega=1.0, weight_scaling_columnwise=True
    )
    model: nn.Module = convert_to_analog(nn.Sequential(digital), kind(forward=converters, mapping=mapping))
    return model.eval()


if __name__ == "__main__":
    main()
