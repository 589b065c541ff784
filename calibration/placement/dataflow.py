"""Which layers a layer takes its inputs from, seen in the graph of a forward pass."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from crossbar.costs.digital_layers import BYTES
from crossbar.costs.floorplan import Edge


def dataflow(
    model: nn.Module, layers: Mapping[str, nn.Module], attention: Collection[str], inputs: Mapping[str, Tensor]
) -> list[Edge]:
    """What layers make for one another, bytes of 16-bit numbers a token, in the order of work.

    A sum of residuals is made where it is first read, and goes on from there. Attention is what stands between layers
    within a module that attends: what feeds its last layer, or those outside, goes by way of it.

    Args:
        model: run once, in digital or on tiles.
        layers: by name.
        attention: names of the modules that attend.
        inputs: tensors ``[1, N, ...]`` of one sequence, by keyword.
    """
    tokens = next(iter(inputs.values())).shape[1]
    trace = _Trace(tokens)
    hooks: list[RemovableHandle] = []
    for name, layer in layers.items():
        hooks.append(layer.register_forward_pre_hook(trace.before(name), with_kwargs=True))
        hooks.append(layer.register_forward_hook(trace.after(name)))
    try:
        with torch.enable_grad():
            model(**inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return _through_attention(trace.edges, attention)


class _Trace:
    """Looks back from a layer's inputs to the layers that made them.

    Args:
        tokens: of the sequence.
    """

    def __init__(self, tokens: int) -> None:
        self.edges: dict[tuple[str, str], int] = {}
        self._tokens = tokens
        self._made: dict[Any, tuple[str, int]] = {}  # by node of the graph: which layer has it, and how large it is

    def before(self, name: str) -> Any:
        """A hook that sees the layer's inputs."""

        def look(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
            for value in (*inputs, *options.values()):
                if isinstance(value, Tensor) and value.grad_fn is not None:
                    self._look_back(name, value)

        return look

    def after(self, name: str) -> Any:
        """A hook that marks the layer's output."""

        def mark(module: nn.Module, inputs: tuple[Any, ...], output: Any) -> Any:
            if not isinstance(output, Tensor) or not output.is_floating_point():
                return None
            known = output if output.requires_grad else output.detach().requires_grad_()
            marked = known.view_as(known)
            self._made[marked.grad_fn] = (name, self._bytes(marked))
            return marked

        return mark

    def _look_back(self, name: str, value: Tensor) -> None:
        seen, ahead = set[Any](), [value.grad_fn]
        while ahead:
            node = ahead.pop()
            if node is None or node in seen:
                continue
            seen.add(node)
            if node in self._made:
                source, size = self._made[node]
                if source != name:
                    self.edges[source, name] = max(size, self.edges.get((source, name), 0))
                continue
            ahead += [before for before, _ in node.next_functions]
        self._made.setdefault(value.grad_fn, (name, self._bytes(value)))

    def _bytes(self, value: Tensor) -> int:
        return BYTES * value.numel() // self._tokens


def _through_attention(edges: Mapping[tuple[str, str], int], attention: Collection[str]) -> list[Edge]:
    """Edges with what leads out of a module's inner layers, or to the last of them, by way of the module."""
    found: dict[tuple[str, str], int] = {}
    last: dict[str, str | None] = {}
    for outer in attention:
        inner = [target for source, target in edges if _within(source, outer) and _within(target, outer)]
        last[outer] = inner[-1] if inner else None
    for (source, target), size in edges.items():
        module = next((name for name in attention if _within(source, name)), None)
        if module is None or source == last[module] or (_within(target, module) and target != last[module]):
            found[source, target] = size
        else:
            found[source, module] = size
            found[module, target] = max(size, found.get((module, target), 0))
    return [Edge(source, target, size) for (source, target), size in found.items()]


def _within(name: str, outer: str) -> bool:
    return name.startswith(f"{outer}.")
