"""One training step of an analog linear layer against `nn.Linear` and against aihwkit's tiles.

Forward, backward and a step of plain gradient descent on 512 vectors of 768, to 768 and to 3,072 outputs; float32;
tiles and converters as in linear.py, output noise 0.04, and noise of the cells drawn anew at each step: ours from the
statistics of PCM at 1 d, aihwkit's from a Gaussian of one width (its fit of PCM does not run on a CPU). Bar: 5 x
digital, goal 3.
"""

from collections.abc import Callable

import torch
from aihwkit.optim import AnalogSGD
from aihwkit.simulator.configs import WeightModifierParameter, WeightModifierType
from linear import INPUTS, PEERS, VECTORS, peer
from paired import Arms, judge, measure, options, print_setting, ratio, table
from rich.console import Console
from torch import Tensor, nn

from crossbar import AnalogLinear, presets

MODIFIER = WeightModifierParameter(type=WeightModifierType.ADD_NORMAL, std_dev=0.04)


def main() -> None:
    rounds = options(__doc__, rounds=9).rounds
    print_setting()
    for outputs in (768, 3072):
        torch.manual_seed(0)
        x, target = torch.randn(VECTORS, INPUTS), torch.randn(VECTORS, outputs)
        analog = AnalogLinear.from_digital(nn.Linear(INPUTS, outputs), presets.pcm())
        analog.program(0)
        analog.age(86400.0)
        arms: Arms = {
            "nn.Linear": step(nn.Linear(INPUTS, outputs), x, target),
            "ohmformer": step(analog.train(), x, target),
        }
        for name, kind in PEERS.items():
            model = peer(nn.Linear(INPUTS, outputs), kind, 0.04, modifier=MODIFIER).train()
            arms[f"aihwkit {name}"] = step(model, x, target)
        costs = measure(arms, rounds)
        title = f"training step, {VECTORS} x {INPUTS} -> {outputs}, {rounds} rounds"
        Console().print(table(title, costs, base="nn.Linear"))
        print(judge("training step / digital", ratio(costs["ohmformer"].seconds, costs["nn.Linear"].seconds), 5.0, 3.0))
        for name in PEERS:
            found = ratio(costs[f"aihwkit {name}"].seconds, costs["ohmformer"].seconds)
            print(f"aihwkit {name} / ours: {found:.2f}")


def step(model: nn.Module, x: Tensor, target: Tensor) -> Callable[[], None]:
    """A step that learns; gradients of the inputs too, as in the middle of a network."""
    compiled = any(type(module).__module__.startswith("aihwkit") for module in model.modules())
    kind = AnalogSGD if compiled else torch.optim.SGD
    optimizer = kind(model.parameters(), lr=1e-3)
    x = x.clone().requires_grad_()

    def run() -> None:
        optimizer.zero_grad()
        x.grad = None
        nn.functional.mse_loss(model(x), target).backward()
        optimizer.step()

    return run


if __name__ == "__main__":
    main()
