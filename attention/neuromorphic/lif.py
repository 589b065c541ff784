"""Leaky integrate-and-fire neurons: activations to spikes, with gradients for training.

Names, order of operations and surrogate gradients are snnTorch's (Eshraghian 2023, ``snntorch.Leaky``), so that either
can stand in for the other.
"""

from __future__ import annotations

import math
from typing import Any, Literal, get_args

import torch
from torch import Tensor, nn

from crossbar.errors import InputError, require_number, require_whole

ResetMechanism = Literal["subtract", "zero", "none"]
SpikeGrad = Literal["atan", "fast_sigmoid"]


class LIF(nn.Module):
    """One step: ``mem ← β mem + input``, less what the last spike resets; a spike where ``mem > threshold``.

    Args:
        beta: part of the potential that is left after a step, 0 to 1.
        threshold: above which it fires.
        reset_mechanism: a spike takes the threshold off (``subtract``), clears the potential (``zero``), or nothing.
        spike_grad: the spike's gradient: ``atan``, α/2 / (1 + (π/2 α u)²) with α = 2, or ``fast_sigmoid``,
            1 / (1 + 25 |u|)², u being how far the potential is above the threshold.
        learn_beta, learn_threshold: make them parameters.

    Raises:
        InputError: for an impossible value.
    """

    def __init__(
        self,
        beta: float,
        threshold: float = 1.0,
        reset_mechanism: ResetMechanism = "subtract",
        *,
        spike_grad: SpikeGrad = "atan",
        learn_beta: bool = False,
        learn_threshold: bool = False,
    ) -> None:
        super().__init__()
        require_number("beta", beta)
        require_number("threshold", threshold, above=0)
        if beta > 1:
            raise InputError(f"beta = {beta!r} is not allowed: give a part from 0 to 1")
        for name, value, allowed in (
            ("reset_mechanism", reset_mechanism, get_args(ResetMechanism)),
            ("spike_grad", spike_grad, get_args(SpikeGrad)),
        ):
            if value not in allowed:
                raise InputError(f"{name} = {value!r} is not allowed: choose one of {', '.join(allowed)}")
        self.reset_mechanism, self.spike_grad = reset_mechanism, spike_grad
        self.beta = nn.Parameter(torch.tensor(float(beta)), requires_grad=learn_beta)
        self.threshold = nn.Parameter(torch.tensor(float(threshold)), requires_grad=learn_threshold)

    def forward(self, input_: Tensor, mem: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Spikes (0 or 1) and potential after a step of input, both of its shape; ``mem`` before it, 0 unless given."""
        mem = torch.zeros_like(input_) if mem is None else mem
        reset = (mem > self.threshold).to(input_.dtype).detach()
        if self.reset_mechanism == "zero":
            mem = mem * (1 - reset)
        mem = self.beta.clamp(0, 1) * mem + input_
        if self.reset_mechanism == "subtract":
            mem = mem - reset * self.threshold
        spikes: Tensor = _Spike.apply(mem - self.threshold, self.spike_grad)  # type: ignore[no-untyped-call]  # torch's own
        return spikes, mem

    def encode(self, x: Tensor, steps: int) -> Tensor:
        """Spikes of a constant input, [steps, *x.shape]; with beta 1 and ``subtract`` their rate is x / threshold."""
        require_whole("steps", steps, least=1)
        mem, spikes = None, []
        for _ in range(steps):
            spike, mem = self(x, mem)
            spikes.append(spike)
        return torch.stack(spikes)

    def extra_repr(self) -> str:
        """Its parameters, for ``print(model)``."""
        return f"beta={self.beta.item():g}, threshold={self.threshold.item():g}, reset={self.reset_mechanism}"


class _Spike(torch.autograd.Function):
    """A step at 0 with the gradient of a smooth one."""

    @staticmethod
    def forward(ctx: Any, above: Tensor, kind: SpikeGrad) -> Tensor:
        ctx.save_for_backward(above)
        ctx.kind = kind
        return (above > 0).to(above.dtype)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        (above,) = ctx.saved_tensors
        if ctx.kind == "atan":
            return grad / (1 + (math.pi * above).square()), None
        return grad / (1 + 25 * above.abs()).square(), None
