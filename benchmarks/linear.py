"""One analog linear layer, forward, against `nn.Linear` and against aihwkit's tiles with the same converters.

512 input vectors of 768, to 768 and to 3,072 outputs; float32; tiles of 256 x 256; 8-bit converters, per-token input
range; without noise, with output noise 0.04, and with white noise of each weight too (0.0175, as in aihwkit's
`StandardHWATrainingPreset`; its torch tile has none). Our cells are PCM at 1 d, aihwkit's hold their targets: that is
no part of a product's cost.

Bars: 1.8 x digital without noise and 3.0 with output noise; 2 x faster than aihwkit's torch tile and 10 x than its
compiled tile; working set (parameters, cells as columns see them, and what the forward adds) 2.5 x the digital layer's;
state from programming, not part of it, 16 bytes a weight.
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
    WeightModifierParameter,
    WeightNoiseType,
)
from paired import Arms, Cost, judge, measure, options, print_setting, ratio, table
from rich.console import Console
from torch import nn

from crossbar import AnalogLinear, CellNoise, presets

VECTORS, INPUTS = 512, 768
PEERS = {"torch tile": TorchInferenceRPUConfig, "compiled tile": InferenceRPUConfig}
NOISE = {"no noise": (0.0, 0.0), "output noise": (0.04, 0.0), "output and weight noise": (0.04, 0.0175)}  # unit outputs


def main() -> None:
    rounds = options(__doc__, rounds=9).rounds
    print_setting()
    for outputs in (768, 3072):
        torch.manual_seed(0)
        digital, x = nn.Linear(INPUTS, outputs), torch.randn(VECTORS, INPUTS)
        arms: Arms = {"nn.Linear": partial(digital, x)}
        layers: dict[str, AnalogLinear] = {}
        for name, (output, weight) in NOISE.items():
            # the two cells of a weight share its variance
            cells = CellNoise(constant=weight * 25 / 2**0.5) if weight else None
            layer = AnalogLinear.from_digital(digital, replace(presets.pcm(), output_noise=output, read_noise=cells))
            layer.program(0)
            layer.age(86400.0)
            layers[name] = layer
            arms[f"ohmformer, {name}"] = partial(layer, x)
            for tile, kind in PEERS.items():
                if not weight or tile == "compiled tile":
                    arms[f"aihwkit {tile}, {name}"] = partial(peer(digital, kind, output, weight).eval(), x)
        with torch.inference_mode():
            for layer in layers.values():
                layer(x)  # cells are brought into the form that products need once an age, which is not part of a read
            costs = measure(arms, rounds, twice=True)
        title = f"{VECTORS} x {INPUTS} -> {outputs}, {rounds} rounds"
        Console().print(table(title, costs, base="nn.Linear"))
        print_bars(costs, layers["output noise"])


def print_bars(costs: dict[str, Cost], layer: AnalogLinear) -> None:
    def over(slow: str, fast: str) -> float:
        return ratio(costs[slow].seconds, costs[fast].seconds)

    print(judge("no noise / digital", over("ohmformer, no noise", "nn.Linear"), 1.8, 1.3))
    print(judge("output noise / digital", over("ohmformer, output noise", "nn.Linear"), 3.0, 1.8))
    for tile, name, bar in (
        ("torch tile", "output noise", 2.0),
        ("compiled tile", "output noise", 10.0),
        ("compiled tile", "output and weight noise", 10.0),
    ):
        found = over(f"aihwkit {tile}, {name}", f"ohmformer, {name}")
        print(judge(f"aihwkit {tile} / ours, {name}", found, bar, least=True))
    state = mebibytes(*layer.state().values())
    held = mebibytes(*layer.parameters(), *layer.buffers()) - state
    ours = held + costs["ohmformer, output noise"].memory
    plain = mebibytes(*layer.digital.parameters()) + costs["nn.Linear"].memory
    print(judge(f"working set in eval / digital ({ours:.1f} / {plain:.1f} MiB)", ours / plain, 2.5))
    print(judge("state, bytes a weight", state * 2**20 / (layer.in_features * layer.out_features), 16))


def mebibytes(*tensors: torch.Tensor) -> float:
    return sum(tensor.nbytes for tensor in tensors) / 2**20


def peer(
    digital: nn.Linear,
    kind: type[TorchInferenceRPUConfig] | type[InferenceRPUConfig],
    output_noise: float,
    weight_noise: float = 0.0,
    modifier: WeightModifierParameter | None = None,
) -> nn.Module:
    """The layer on aihwkit's tiles, set to the converters and tile size of `presets.pcm()`.

    ``weight_noise`` is white noise of each weight at each read, ``modifier`` the noise of the weights in training.
    """
    converters = IOParameters(
        inp_res=1 / 254,
        out_res=1 / 254,
        out_bound=10.0,
        out_noise=output_noise,
        w_noise=weight_noise,
        w_noise_type=WeightNoiseType.ADDITIVE_CONSTANT if weight_noise else WeightNoiseType.NONE,
        noise_management=NoiseManagementType.ABS_MAX,
        bound_management=BoundManagementType.NONE,
    )
    mapping = MappingParameter(
        max_input_size=256, max_output_size=256, weight_scaling_omega=1.0, weight_scaling_columnwise=True
    )
    config = kind(forward=converters, mapping=mapping, modifier=modifier or WeightModifierParameter())
    config.drift_compensation = None
    model: nn.Module = convert_to_analog(nn.Sequential(digital), config)
    return model


if __name__ == "__main__":
    main()
