"""NeuroBench's workload metrics by its own keys, with the attention that its hooks do not see (Yik 2025)."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from attention.hf.attach import attached_pattern
from calibration.models.outputs import device_of
from crossbar.adapters import Part, adapter_of, digital_parts, is_convertible
from crossbar.costs.ledger import Ledger
from crossbar.errors import InputError
from crossbar.nn.chip import bypassed
from crossbar.nn.linear import AnalogLinear

_SPIKES = (-1.0, 0.0, 1.0)


@torch.inference_mode()
def neurobench_workload(model: nn.Module, batches: Iterable[Mapping[str, Tensor] | Tensor]) -> dict[str, Any]:
    """Workload of a model, a sample being a sequence (or a row of a plain batch).

    Synaptic operations of linear layers follow NeuroBench: without biases; *effective* ones have an input and a weight
    that are not 0, and are accumulates where a layer's inputs are all −1, 0 or 1. NeuroBench's hooks see layers only;
    here the products QKᵀ and AV of attention are added: effective for attended pairs, dense for all pairs of a
    sequence. A transformers model must be attached (`attention.attach`, with the pattern ``dense`` if nothing else).

    Args:
        model: digital, or with analog layers, whose digital weights are counted.
        batches: keyword inputs with ``input_ids`` of transformers models, or plain inputs.

    Returns:
        ``SynapticOperations`` (``Effective_MACs, Effective_ACs, Dense``) and ``Attention`` of them, both a sample;
        ``ActivationSparsity`` over ReLU and sigmoid layers; ``ConnectionSparsity``; ``Footprint``, bytes.

    Raises:
        InputError: for a transformers model that is not attached, and for no batch.
    """
    analog = any(isinstance(module, AnalogLinear) for module in model.modules())
    counts = {"mac": 0, "ac": 0, "dense": 0, "zero": 0, "activations": 0}
    products = [module for module in model.modules() if is_convertible(module)]
    hooks = [module.register_forward_pre_hook(_synapses(module, counts), with_kwargs=True) for module in products]
    hooks += [
        module.register_forward_hook(_activations(counts))
        for module in model.modules()
        if isinstance(module, nn.ReLU | nn.Sigmoid)
    ]
    samples, attended, dense_pairs = 0, 0, 0
    config = getattr(model, "config", None)  # plain modules have none
    heads = 0 if config is None else config.num_attention_heads * config.num_hidden_layers
    if heads and attached_pattern(model) is None:
        raise InputError("the attention of this model is not seen: attach it first, attention.attach(model, 'dense')")
    try:
        for batch in batches:
            inputs = {k: x.to(device_of(model)) for k, x in batch.items()} if isinstance(batch, Mapping) else batch
            with Ledger() as ledger, bypassed(model) if analog else nullcontext():
                model(**inputs) if isinstance(inputs, Mapping) else model(inputs.to(device_of(model)))
            first = next(iter(inputs.values())) if isinstance(inputs, Mapping) else inputs
            samples += len(first)
            if heads:
                attended += ledger.pairs
                dense_pairs += heads * len(first) * first.shape[1] ** 2
    finally:
        for hook in hooks:
            hook.remove()
    if not samples:
        raise InputError("there is no batch to measure: give one or more")
    size = (
        0 if config is None else getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    )
    attention = {"Effective_MACs": 2 * size * attended / samples, "Dense": 2 * size * dense_pairs / samples}
    weights = [part.weight for module in products for part in digital_parts(module).values()]
    zeros, connections = sum(int((w == 0).sum()) for w in weights), sum(w.numel() for w in weights)
    return {
        "SynapticOperations": {
            "Effective_MACs": counts["mac"] / samples + attention["Effective_MACs"],
            "Effective_ACs": counts["ac"] / samples,
            "Dense": counts["dense"] / samples + attention["Dense"],
        },
        "Attention": attention,
        "ActivationSparsity": counts["zero"] / counts["activations"] if counts["activations"] else 0.0,
        "ConnectionSparsity": round(zeros / connections, 4) if connections else 0.0,
        "Footprint": sum(x.numel() * x.element_size() for x in (*model.parameters(), *model.buffers())),
    }


def _synapses(layer: nn.Module, counts: dict[str, int]) -> Any:
    adapter = adapter_of(layer)

    def product(part: Part) -> Any:
        def counted(x: Tensor) -> Tensor:
            weight = part.matrix
            vectors = x.reshape(-1, x.shape[-1])
            used = (vectors != 0).sum(0)  # vectors in which an input is not 0
            effective = int((used * (weight != 0).sum(0)).sum())
            spiking = bool(torch.isin(vectors, vectors.new_tensor(_SPIKES)).all())
            counts["ac" if spiking else "mac"] += effective
            counts["dense"] += len(vectors) * part.weight.numel()
            return nn.functional.linear(x, weight, part.bias)

        return counted

    def count(module: nn.Module, inputs: tuple[Any, ...], options: dict[str, Any]) -> None:
        products = {name: product(part) for name, part in adapter.parts(layer).items()}
        adapter.compute(layer, products, *inputs, **options)

    return count


def _activations(counts: dict[str, int]) -> Any:
    def count(module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        counts["zero"] += int((output == 0).sum())
        counts["activations"] += output.numel()

    return count
