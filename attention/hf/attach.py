"""Sparse attention inside transformers models, on digital or analog keys and values.

A model is attached through transformers' AttentionInterface. What it needs lives on the model's own modules, so two
attached models never meet, and copies of a model stay attached.
"""

from __future__ import annotations

import copy
import inspect
from collections import Counter
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor, nn

from attention.controller.controller import Controller
from attention.controller.delivery import require_rows
from attention.controller.tally import count
from attention.counts import book_attention
from attention.gated import gated_attention
from attention.hf.masks import own_window, padding_mask, within
from attention.kernel.token_rows import require_supported
from attention.memory.description import Memory
from attention.memory.memory import AnalogMemory
from attention.patterns.base import Pattern
from attention.patterns.reach import causal_reach
from attention.patterns.text import parse
from crossbar.costs.ledger import counting
from crossbar.errors import InputError
from crossbar.hardware import Hardware
from crossbar.random.streams import seed

if TYPE_CHECKING:
    from attention.hf.cache import AnalogCache

_INTERFACE = "ohmformer"
_CACHE_NAMES = ("cache", "past_key_values")  # transformers 5 calls it by the first, and before by the second
_KEY = "_ohmformer_attachment"


@dataclass(frozen=True)
class Attachment:
    """What one module of an attached model needs to know.

    Attributes:
        pattern: who attends to whom.
        name: the module's path in the model, for the ledger.
        previous: the attention implementation that `detach` puts back.
        store: where keys and values are; None: in digital.
        controller: sends the events of attended pairs; None: every pair arrives.
    """

    pattern: Pattern
    name: str
    previous: str
    store: Store | None = None
    controller: Controller | None = None


@dataclass
class Store:
    """The analog memory of an attached model.

    Attributes:
        memory: its description.
        layers: the causal attention layers, in order, with capacity and sinks where a window of their own makes them
            others than the memory's; none in an encoder, which has no cache.
        opened: caches made so far: each has errors of its own.
        trained: calls of each layer with gradients so far: each stands for a chip that nobody has seen.
    """

    memory: Memory
    layers: dict[str, tuple[int, int] | None]
    opened: int = 0
    trained: Counter[str] = field(default_factory=Counter)

    def memories(self) -> dict[str, Memory]:
        """The description of each layer's memory."""
        return {
            name: self.memory if own is None else replace(self.memory, capacity=own[0], sinks=own[1])
            for name, own in self.layers.items()
        }


def attach(
    model: nn.Module,
    pattern: Pattern | str,
    memory: Memory | Hardware | None = None,
    *,
    controller: Controller | None = None,
) -> None:
    """Restrict every attention of a transformers model to ``pattern``, in place.

    A causal model gets the pattern's causal form, within the sliding windows that its layers have of their own. Padding
    is honoured. While a `crossbar.Ledger` is open, each attention books the events that open the rows of attended pairs
    in K and V tiles of 256 x 256 (one token a row).

    With ``memory``, keys and values are in analog memory. A causal model then has a cache whose rows are programmed as
    tokens arrive, whoever calls it: ``generate`` and a plain call alike, unless it is being trained. All rows are read
    at one time in a call, so feed tokens one by one where their ages matter. An encoder, and a model in training,
    writes the rows of all tokens at once and reads them then.

    With a ``controller``, each attention is computed from the events that its platform delivers: the pattern itself if
    nothing is dropped, less and an `attention.EventsDropped` warning if something is.

    Args:
        model: a transformers model whose attention goes through AttentionInterface; attaching again replaces pattern,
            memory and controller.
        pattern: a pattern or its text form.
        memory: a description, or hardware alone; None: keys and values stay digital. A memory without a capacity gets
            that of the pattern's window and sinks, or as many rows as the model has positions.
        controller: sends the events; None: every pair arrives. Not with the ``memory`` of a causal model, whose rows
            move as tokens are evicted.

    Raises:
        InputError: for a model of another kind, for hardware that cannot hold keys and values, for a pattern that
            chooses by keys where there is a memory, and for a controller that does not fit.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

    pattern = parse(pattern) if isinstance(pattern, str) else pattern
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"{type(model).__name__} is not a transformers model: attach takes a PreTrainedModel")
    if model.config.is_encoder_decoder and any(vars(module).get("is_decoder") for module in model.modules()):
        raise InputError(f"{type(model).__name__} has cross-attention, which no pattern fits: attach its encoder alone")
    if controller is not None and not isinstance(controller, Controller):
        raise InputError(f"controller {controller!r} is not a Controller: give attention.Controller(platform), or None")
    store = None if memory is None else _store(model, pattern, memory)
    if controller is not None and store is not None:
        if store.layers:
            raise InputError(
                f"{type(model).__name__} keeps a cache in analog memory, which a controller sends no events for: give "
                "memory or controller"
            )
        require_rows(controller, store.memory.hardware)
    attached = _attachment(model)
    previous = attached.previous if attached else model.config._attn_implementation
    if attached is None:
        _own_config(model)
    AttentionInterface.register(_INTERFACE, _attend)
    AttentionMaskInterface.register(_INTERFACE, padding_mask)
    if model._can_set_attn_implementation():
        model.set_attn_implementation(_INTERFACE)
    if model.config._attn_implementation != _INTERFACE:
        raise InputError(
            f"{type(model).__name__} computes attention in code of its own, not through transformers' "
            "AttentionInterface: run it without a pattern"
        )
    for name, module in model.named_modules():
        module.__dict__[_KEY] = Attachment(pattern, name, previous, store, controller)
        _unhook(module)
        if isinstance(module, PreTrainedModel) and store is not None and store.layers:
            module.register_forward_pre_hook(_with_memory, with_kwargs=True)


def detach(model: nn.Module) -> None:
    """Give an attached model its own attention back, in place; does nothing to a model that is not attached."""
    attached = _attachment(model)
    if attached is None:
        return
    cast(Any, model).set_attn_implementation(attached.previous)
    for module in model.modules():
        module.__dict__.pop(_KEY, None)
        _unhook(module)


def attached_pattern(model: nn.Module) -> Pattern | None:
    """The pattern that a model is attached with, None if it is not attached."""
    attached = _attachment(model)
    return attached.pattern if attached else None


def memory_cache(model: nn.Module) -> AnalogCache:
    """A fresh cache for an attached model, to give to ``generate`` or a call, and to look at afterwards.

    Raises:
        InputError: for a model without analog memory, and for one that has no cache.
    """
    from attention.hf.cache import AnalogCache

    attached = _attachment(model)
    if attached is None or attached.store is None or not attached.store.layers:
        raise InputError(f"{type(model).__name__} keeps no tokens in analog memory: attach a causal model with memory=")
    store = attached.store
    store.opened += 1
    return AnalogCache(store.memories(), (store.opened,))


def memory_of(model: nn.Module) -> Memory | None:
    """Where an attached model's keys and values are; None: in digital."""
    attached = _attachment(model)
    return None if attached is None or attached.store is None else attached.store.memory


def renew_memory(model: nn.Module, seed: int | None = None, **changes: Any) -> None:
    """Begin again with an attached model's memory, so that the next caches repeat the first ones bit for bit.

    Does nothing to a model whose keys and values are digital.

    Args:
        model: the model.
        seed: of all draws; None: as before.
        changes: other fields of `attention.Memory` to change.
    """
    attached = _attachment(model)
    if attached is not None and attached.store is not None:
        changes |= {} if seed is None else {"seed": seed}
        attached.store.memory, attached.store.opened = replace(attached.store.memory, **changes), 0
        attached.store.trained.clear()


def _store(model: nn.Module, pattern: Pattern, memory: Memory | Hardware) -> Store:
    memory = Memory(memory) if isinstance(memory, Hardware) else memory
    require_supported(memory.hardware)
    if not pattern.is_static:
        raise InputError(
            f"pattern {str(pattern)!r} cannot read a memory: give a pattern that does not choose by digital keys, or "
            "no memory"
        )
    found = {
        vars(module)["layer_idx"]: (name, own_window(module))
        for name, module in model.named_modules()
        if vars(module).get("layer_idx") is not None and vars(module).get("is_causal")
    }
    layers: dict[str, tuple[int, int] | None] = {name: None for _, (name, _) in sorted(found.items())}
    if layers and memory.capacity is None:
        positions = cast(Any, model).config.max_position_embeddings
        for name, window in found.values():
            if window is not None:
                layers[name] = _rows(within(pattern.causal(), window), memory.sinks, positions)
        capacity, sinks = _rows(pattern, memory.sinks, positions)
        memory = replace(memory, capacity=capacity, sinks=sinks)
    store = Store(memory, layers)
    for name, description in store.memories().items():
        AnalogMemory(description, name)  # refuses what it cannot hold before anything runs
    return store


def _rows(pattern: Pattern, sinks: int, positions: int) -> tuple[int, int]:
    """Capacity and sinks of a memory that a pattern reads, in a model of so many positions."""
    reach = causal_reach(pattern)
    if reach is None:
        return positions, sinks
    sinks = max(reach[1], sinks)
    return reach[0] + sinks, sinks


def _unhook(module: nn.Module) -> None:
    for key in [key for key, hook in module._forward_pre_hooks.items() if hook is _with_memory]:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)


def _with_memory(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Give a model that is called the cache that its keys and values go to."""
    from attention.hf.cache import AnalogCache

    if module.training and torch.is_grad_enabled():
        return None
    names = [name for name in _CACHE_NAMES if name in inspect.signature(module.forward).parameters]
    if not names:
        return None
    given = next((kwargs.pop(name) for name in _CACHE_NAMES if kwargs.get(name) is not None), None)
    if given is not None and not isinstance(given, AnalogCache) and given.get_seq_length():
        raise InputError(
            f"{type(given).__name__} holds {given.get_seq_length()} tokens in digital, which analog memory cannot take "
            "over: begin with an empty cache, or with attention.memory_cache(model)"
        )
    cache = given if isinstance(given, AnalogCache) else memory_cache(module)
    mask = kwargs.get("attention_mask")
    cache.expect(mask if isinstance(mask, Tensor) and mask.dim() == 2 else None)
    return args, {**kwargs, names[0]: cache}


def _own_config(model: nn.Module) -> None:
    """Give a model its own configuration, since the attention implementation is part of it and it may be shared."""
    copies: dict[int, Any] = {}
    copy.deepcopy(cast(Any, model).config, copies)
    for module in model.modules():
        config = vars(module).get("config")
        if id(config) in copies:
            cast(Any, module).config = copies[id(config)]


def _attachment(module: nn.Module) -> Attachment | None:
    return cast("Attachment | None", module.__dict__.get(_KEY))


def _attend(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, None]:
    """One attention as AttentionInterface calls it: q ``[B, H, N_q, D]``, k and v ``[B, H_kv, N_k, D]``."""
    attached = _attachment(module)
    if attached is None:
        raise InputError(f"{type(module).__name__} has no pattern: call attention.attach on the whole model")
    for option in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(option) is not None:
            raise InputError(
                f"{attached.name} changes its scores by {option!r}, which sparse attention does not have: "
                "detach the model"
            )
    if attention_mask is not None and attention_mask.shape[1:3] != (1, 1):
        raise InputError(
            f"{attached.name} got a mask of shape {list(attention_mask.shape)}: give padding as [batch, keys]"
        )
    padding = None if attention_mask is None else attention_mask[:, 0, 0].bool()
    if padding is not None and not attached.pattern.shift_invariant and not bool(padding[:, 0].all()):
        raise InputError(
            f"{attached.name} got padding on the left, where sinks and global tokens stand: pad on the right"
        )
    causal = bool(vars(module).get("is_causal", False)) if is_causal is None else is_causal
    n_queries, n_keys = query.shape[2], key.shape[2]
    pattern, offset = attached.pattern, 0
    if causal:
        pattern, offset = within(pattern.causal(), kwargs.get("sliding_window")), n_keys - n_queries
    elif kwargs.get("sliding_window") is not None:
        raise InputError(
            f"{attached.name} has a window of its own on both sides, which no pattern meets: detach the model"
        )
    if attached.store is not None:
        output = _from_memory(attached, attached.store, query, key, value, pattern, scaling, padding, dropout)
        return output.transpose(1, 2).contiguous(), None
    if counting() and attached.controller is None:
        chosen = pattern.at(n_keys).select(query, key, mask=padding, offset=offset)
        _book(attached.name, chosen, query, key, padding, offset)
    # Drawn as torch's own dropout draws, so that torch.manual_seed repeats a training run.
    drawn = int(torch.randint(2**31, (), device="cpu")) if dropout else 0
    output = gated_attention(
        query, key, value, pattern, scale=scaling, mask=padding, dropout=dropout, offset=offset, seed=drawn,
        controller=attached.controller, layer=attached.name,
    )  # fmt: skip
    return output.transpose(1, 2).contiguous(), None


def _from_memory(
    attached: Attachment,
    store: Store,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    pattern: Pattern,
    scaling: float | None,
    padding: Tensor | None,
    dropout: float,
) -> Tensor:
    """Attention on rows that a cache programmed, or on rows that are written now."""
    from attention.hf.cache import MemoryView

    if isinstance(key, MemoryView):
        return key.memory.read(query, pattern, scale=scaling, mask=padding)[0]
    memory, drawn = store.memory, store.memory.seed
    if torch.is_grad_enabled() and query.requires_grad:
        if torch._C._current_graph_task_id() != -1:
            raise InputError(
                f"{attached.name} writes its keys and values again in the backward pass, on another chip: train "
                "without gradient checkpointing"
            )
        drawn = seed((memory.seed, attached.name, "training", store.trained[attached.name]))
        store.trained[attached.name] += 1
    return gated_attention(
        query, key, value, pattern, scale=scaling, mask=padding, dropout=dropout, hardware=memory.hardware,
        layer=attached.name, seed=drawn, controller=attached.controller,
    )  # fmt: skip


def _book(name: str, pattern: Pattern, query: Tensor, key: Tensor, padding: Tensor | None, offset: int) -> None:
    """Book the events that the attended pairs of each sequence make; padding has no place in memory."""
    n_queries, n_keys = query.shape[2], key.shape[2]
    lengths = [n_keys] * query.shape[0] if padding is None else padding.sum(1).tolist()
    alike = Counter((pattern.sequence(index), length) for index, length in enumerate(lengths))
    for (own, length), sequences in alike.items():
        first = max(0, length - n_queries) if offset else 0
        opened = sequences * count(own, length, first=first, head_dim=query.shape[3], heads=query.shape[1])
        queries = sequences * query.shape[1] * (length - first)
        book_attention(name, opened, head_dim=query.shape[3], queries=queries)
