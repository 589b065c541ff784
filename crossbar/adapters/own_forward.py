"""Layers that compute with their own ``forward``, whose weights are replaced by stand-ins that multiply on tiles."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from crossbar.adapters.protocol import Part, Product
from crossbar.adapters.stand_in import stand_in


class OwnForward:
    """Classes of a user's own, or of other software, whose ``forward`` multiplies inputs with their weights.

    ``forward`` runs as it is, on the module with stand-ins in the place of its matrices
    (`crossbar.adapters.stand_in.StandIn`): ``F.linear(x, self.weight)`` and its kin are computed on tiles, anything
    else that reads a weight raises `InputError`. So a router, or a class made from ``nn.Linear`` that scales its
    outputs, becomes analog by one line::

        register_adapter(OwnForward(ScaledLinear))

    Every parameter of 2 dimensions ``[O, I]`` becomes a matrix, and every one of 3, ``[E, O, I]``, a matrix an expert.

    Args:
        kind: the class; classes made from it count if they keep its ``forward``.
        transposed: weights are ``[I, O]``, or ``[E, I, O]``.
    """

    def __init__(self, kind: type[nn.Module], transposed: bool = False) -> None:
        self.kind, self.transposed = kind, transposed
        self.name = f"a {kind.__name__}"

    def matches(self, module: nn.Module) -> bool:
        """Whether it is of the class, or of one made from it that keeps its ``forward``."""
        if not isinstance(module, self.kind) or "forward" in vars(module):
            return False
        return type(module).forward is self.kind.forward

    def parts(self, module: nn.Module) -> dict[str, Part]:
        """Its matrices by the names of its parameters, those of experts with their number."""
        return {
            name: Part(weight.t() if self.is_transposed(module) else weight)
            for names, parameter in self._weights(module).values()
            for name, weight in zip(names, [parameter] if parameter.dim() == 2 else parameter, strict=True)
        }

    def part(self, module: nn.Module, name: str) -> Part:
        """One of its matrices, without a look at the others."""
        owner, _, expert = name.rpartition("_")
        parameter = module._parameters.get(name)
        weight = module.get_parameter(owner)[int(expert)] if parameter is None else parameter
        return Part(weight.t() if self.is_transposed(module) else weight)

    def compute(self, module: nn.Module, products: Mapping[str, Product], *inputs: Any, **options: Any) -> Any:
        """What its ``forward`` gives."""
        weights = {
            parameter_name: stand_in(
                parameter, parameter_name, [products[name] for name in names], self.is_transposed(module)
            )
            for parameter_name, (names, parameter) in self._weights(module).items()
        }
        twin: nn.Module = object.__new__(type(module))
        state = dict(vars(module))
        state["_parameters"] = {name: p for name, p in module._parameters.items() if name not in weights}
        vars(twin).update(state, **weights)
        return self.forward(module)(twin, *inputs, **options)

    def forward(self, module: nn.Module) -> Callable[..., Any]:
        """The function that computes."""
        return type(module).forward

    def is_transposed(self, module: nn.Module) -> bool:
        """Whether weights are ``[I, O]``."""
        return self.transposed

    def _weights(self, module: nn.Module) -> dict[str, tuple[list[str], Tensor]]:
        """Its parameters that are matrices: the names of these, and the parameter."""
        return {
            name: (
                [name] if parameter.dim() == 2 else [f"{name}_{expert}" for expert in range(len(parameter))],
                parameter,
            )
            for name, parameter in module._parameters.items()
            if parameter is not None and self.is_matrix(name, parameter)
        }

    def is_matrix(self, name: str, parameter: Tensor) -> bool:
        """Whether a parameter is one matrix or more."""
        return parameter.dim() in (2, 3)


class Experts(OwnForward):
    """Experts of transformers, held as parameters ``[E, ., .]``, each matrix of each expert on tiles of its own.

    Only the tokens that are routed to an expert drive its word lines, and experts without a token stay closed.
    """

    name = "experts of transformers"

    def __init__(self) -> None:
        super().__init__(nn.Module)
        self.name = type(self).name

    def matches(self, module: nn.Module) -> bool:
        """Whether its class is one of transformers' that ends with Experts, and has matrices of 3 dimensions."""
        kind = type(module)
        ours = kind.__module__.startswith("transformers.") and "Experts" in kind.__name__
        return ours and "forward" not in vars(module) and bool(self._weights(module))

    def is_matrix(self, name: str, parameter: Tensor) -> bool:
        """Of 3 dimensions: those of 2 are biases of experts."""
        return parameter.dim() == 3

    def is_transposed(self, module: nn.Module) -> bool:
        """As transformers says of the class, or as is known of it."""
        known: bool = getattr(module, "is_transposed", type(module).__name__ in _TRANSPOSED)
        return known

    def forward(self, module: nn.Module) -> Callable[..., Any]:
        """The class's own, expert by expert, before transformers chooses another implementation of it."""
        forward: Any = type(module).forward
        interface = sys.modules.get("transformers.integrations.moe")
        decorated = interface is not None and hasattr(module, "has_gate")
        chosen: Callable[..., Any] = forward.__wrapped__ if decorated else forward
        return chosen

    def shapes(self, module: nn.Module, hidden: Tensor, *inputs: Any, **options: Any) -> list[int] | None:
        """See `crossbar.adapters.Shaped`: that of the hidden states; None where experts are given lists (JetMoE)."""
        return [*hidden.shape] if all(isinstance(x, Tensor) for x in inputs) else None


_TRANSPOSED = ("Llama4TextExperts",)
"""Classes of experts whose weights are ``[E, I, O]``, and which do not say so."""
