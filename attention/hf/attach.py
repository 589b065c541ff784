"""Sparse attention inside transformers models, on digital or analog keys and values.

A model is attached through transformers' AttentionInterface. What it needs lives on the model's own modules, so two
attached models never meet, and copies of a model stay attached.
"""

from __future__ import annotations

import copy
import inspect
import weakref
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import torch
from torch import Tensor, nn

from attention.controller.controller import Controller
from attention.controller.delivery import deliver, require_rows
from attention.controller.platforms import ideal
from attention.controller.tally import count
from attention.counts import Counts, book_attention
from attention.gated import gated_attention
from attention.hf.masks import ModelMask, Rule, Split, model_mask, own_window, split, within
from attention.hf.sites import Sites, attends_other, sites
from attention.kernel.analog_booking import real_queries
from attention.kernel.coarse import book_screening
from attention.kernel.token_rows import require_supported
from attention.memory.description import Memory
from attention.memory.memory import AnalogMemory
from attention.patterns.base import Pattern
from attention.patterns.given import behind, given
from attention.patterns.on_device import is_chosen
from attention.patterns.reach import causal_reach
from attention.patterns.screening import Lines, by_rows, is_screening, screen, spikes, thresholds_of, with_thresholds
from attention.patterns.text import parse
from attention.patterns.tokens import Dense
from attention.plan import beside_sinks
from crossbar.costs.ledger import book_later, counting
from crossbar.errors import InputError
from crossbar.hardware import Hardware
from crossbar.random.streams import seed

if TYPE_CHECKING:
    from attention.hf.cache import AnalogCache

_INTERFACE = "ohmformer"
_CACHE_NAMES = ("cache", "past_key_values")  # transformers 5 calls it by the first, and before by the second
_KEY = "_ohmformer_attachment"
_THRESHOLDS = "ohmformer_thresholds"
"""A buffer of modules whose rows spike: a threshold of each head, so that what saves a model has them."""
_SEEN = "_ohmformer_seen"  # what is shown the queries and keys of a module, in `scores_seen`
_PLACE = "_ohmformer_place"  # position of the first query of a module that attends another sequence, in a call
_POSITIONS = ("max_position_embeddings", "max_target_positions")
"""What configurations call the positions that a model has."""
_EXPANDING = ("kv_b_proj", "experts")
"""What layers have that compute keys and values from what their cache keeps: latent attention, and JetMoE's experts."""
_PLATFORM = Controller(ideal())
"""Counts the events of pairs that models choose by masks of their own."""


@dataclass(frozen=True)
class Attachment:
    """What one module of an attached model needs to know.

    Attributes:
        pattern: who attends to whom.
        name: the module's path in the model, for the ledger.
        previous: the attention implementation that `detach` puts back.
        crosses: whether the module attends another sequence; ``pattern`` is then the one for that.
        cross: the pattern for another sequence, where the module may be given one.
        store: where keys and values are; None: in digital.
        controller: sends the events of attended pairs; None: every pair arrives.
    """

    pattern: Pattern
    name: str
    previous: str
    crosses: bool = False
    cross: Pattern = field(default_factory=Dense)
    store: Store | None = None
    controller: Controller | None = None


@dataclass
class Store:
    """The analog memory of an attached model.

    Attributes:
        memory: its description.
        layers: the causal attention layers, in order, with capacity and sinks where a window of their own makes them
            others than the memory's; none in an encoder, which has no cache.
        windows: the windows that capacities were made for, of the layers that have one.
        places: the layers by their index in the model's cache.
        config: of the model's text part, which says what else its cache keeps.
        expanded: layers that compute keys and values from what their cache keeps.
        current: the cache of the call that is running; None: there is none.
        opened: caches made so far: each has errors of its own.
        trained: calls of each layer with gradients so far: each stands for a chip that nobody has seen.
    """

    memory: Memory
    layers: dict[str, tuple[int, int] | None]
    windows: dict[str, int] = field(default_factory=dict)
    places: dict[int, str] = field(default_factory=dict)
    config: Any = None
    expanded: frozenset[str] = frozenset()
    current: Any = None
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
    cross: Pattern | str = "dense",
) -> None:
    """Restrict every attention of a transformers model to ``pattern``, in place.

    A causal model gets the pattern's causal form. Each layer attends the pattern's pairs within its own mask: padding,
    sliding windows, chunks, packed documents, prefixes. Soft caps, sinks and biases of scores are the model's own. A
    module that attends another sequence, such as a decoder's on its encoder, gets ``cross`` instead. While a
    `crossbar.Ledger` is open, each attention books the events that open the rows of attended pairs in K and V tiles of
    256 x 256 (one token a row).

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
        cross: for modules that attend another sequence; query i and key j are the i-th and the j-th of theirs.

    Raises:
        InputError: for a model of another kind, for one that attends in code of its own or not at all, for hardware
            that cannot hold keys and values, for a pattern that chooses by keys where there is a memory, for a cache
            that analog memory cannot hold, and for a controller that does not fit.
    """
    from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel

    pattern = parse(pattern) if isinstance(pattern, str) else pattern
    if not isinstance(model, PreTrainedModel):
        raise InputError(f"{type(model).__name__} is not a transformers model: attach takes a PreTrainedModel")
    cross = parse(cross) if isinstance(cross, str) else cross
    found = sites(model)
    if found.fixed and not isinstance(cross, Dense):
        raise InputError(
            f"{type(model).__name__} attends another sequence in code of its own in {found.fixed[0]}, where "
            f"{str(cross)!r} does not reach: give cross='dense'"
        )
    if controller is not None and not isinstance(controller, Controller):
        raise InputError(f"controller {controller!r} is not a Controller: give attention.Controller(platform), or None")
    store = None if memory is None else _store(model, pattern, memory, found)
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
    AttentionMaskInterface.register(_INTERFACE, model_mask)
    _set_implementation(model, found, previous)
    for name, module in model.named_modules():
        crosses = name in found.cross
        own = cross if crosses else pattern
        module.__dict__[_KEY] = Attachment(own, name, previous, crosses, cross, store, controller)
        _unhook(module)
        if crosses or name in found.own:
            module.register_forward_pre_hook(_note_place, with_kwargs=True)
            _keep_thresholds(module, own)
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
        module.__dict__.pop(_PLACE, None)
        module._buffers.pop(_THRESHOLDS, None)
        _unhook(module)


def attached_pattern(model: nn.Module) -> Pattern | None:
    """The pattern that a model is attached with, None if it is not attached."""
    attached = _attachment(model)
    return attached.pattern if attached else None


See = Callable[[str, Pattern, Tensor, Tensor, Tensor | None, int], None]
"""Called with a layer's name, pattern, queries [B, H, N_queries, D], keys [B, H_kv, N_keys, D], padding and offset."""


@contextmanager
def scores_seen(model: nn.Module, see: See) -> Iterator[None]:
    """Attend every pair with keys and values as numbers for a while, and show what attached patterns would choose from.

    Args:
        model: a model that is attached, or has attached parts.
        see: called at each attention whose rows spike; its name is that of the module in ``model``.
    """
    before = {module: _attachment(module) for module in model.modules()}
    names = {module: name for name, module in model.named_modules()}
    try:
        for module, attached in before.items():
            if attached is None:
                continue
            pattern = attached.pattern
            every = replace(attached, pattern=Dense(), cross=Dense(), store=None, controller=None)
            module.__dict__[_KEY] = every
            if _THRESHOLDS in module._buffers:
                module.__dict__[_SEEN] = partial(see, names[module]), pattern
        yield
    finally:
        for module, attached in before.items():
            module.__dict__.pop(_SEEN, None)
            if attached is not None:
                module.__dict__[_KEY] = attached


def thresholds(model: nn.Module) -> dict[str, Tensor]:
    """Thresholds of each attention whose rows spike, float32 [H], by the module's name."""
    found = ((name, module._buffers.get(_THRESHOLDS)) for name, module in model.named_modules())
    return {name: values for name, values in found if values is not None}


def set_thresholds(model: nn.Module, values: Mapping[str, Tensor]) -> None:
    """Give attentions whose rows spike other thresholds, float32 [H], in units of q · k / √D.

    Raises:
        InputError: for a layer that has none, another number of heads, and numbers that are not finite.
    """
    own = thresholds(model)
    for name, new in values.items():
        if name not in own or own[name].shape != new.shape or not bool(new.isfinite().all()):
            wanted = "no thresholds" if name not in own else f"{len(own[name])} finite ones"
            raise InputError(f"thresholds {list(new.shape)} do not fit {name}, which has {wanted}: attach spiking")
    for name, new in values.items():
        own[name].copy_(new)


def _keep_thresholds(module: nn.Module, pattern: Pattern) -> None:
    """Give a module whose rows spike a buffer with what the pattern says."""
    module._buffers.pop(_THRESHOLDS, None)
    config = vars(module).get("config")
    heads = getattr(config, "num_attention_heads", None)
    if heads is None or not spikes(pattern):
        return
    module.register_buffer(_THRESHOLDS, torch.tensor(thresholds_of(pattern, heads), device=_device_of(module)))


def _device_of(module: nn.Module) -> torch.device:
    return next((parameter.device for parameter in module.parameters()), torch.device("cpu"))


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
    return AnalogCache(store.memories(), (store.opened,), store.places, store.config, store.expanded)


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


def _set_implementation(model: Any, found: Sites, previous: str) -> None:
    """Send every attention of a model through this module.

    Raises:
        InputError: for one that does not go there; the model is then as before.
    """
    from transformers.utils import logging

    verbosity = logging.get_verbosity()
    logging.set_verbosity_error()  # parts that cannot be set are looked for below
    try:
        model.set_attn_implementation(_INTERFACE)
    finally:
        logging.set_verbosity(verbosity)
    modules = dict(model.named_modules())
    for name in found.own + found.cross:
        chosen = getattr(vars(modules[name]).get("config"), "_attn_implementation", _INTERFACE)
        if chosen != _INTERFACE:
            model.set_attn_implementation(previous)
            raise InputError(
                f"{type(model).__name__} does not let {name} ({type(modules[name]).__name__}) choose its attention: "
                "run it without a pattern"
            )


def _store(model: nn.Module, pattern: Pattern, memory: Memory | Hardware, sites_of: Sites) -> Store:
    from attention.hf.cache import unknown_layer

    memory = Memory(memory) if isinstance(memory, Hardware) else memory
    require_supported(memory.hardware)
    if not by_rows(pattern):
        raise InputError(
            f"pattern {str(pattern)!r} cannot read a memory: give a pattern that does not choose by digital keys, such "
            "as screened(64) or spiking(1), or no memory"
        )
    modules = dict(model.named_modules())
    causal = {name: _place_in_cache(name, modules[name]) for name in sites_of.own if _is_causal(modules[name])}
    found = {place: (name, own_window(modules[name])) for name, place in causal.items() if place is not None}
    title, config = type(model).__name__, cast(Any, model).config
    if found and config.is_encoder_decoder:
        raise InputError(
            f"{title} keeps what its decoder attends in two caches, of its own tokens and of the encoder's, which "
            "analog memory does not hold: attach its encoder alone, or without memory"
        )
    for index, (name, _) in found.items():
        if (kind := unknown_layer(modules[name], config, index)) is not None:
            raise InputError(
                f"{title} keeps more in {name} than keys and values of tokens ({kind}), which analog memory does not "
                "hold: attach it without memory"
            )
        if hasattr(modules[name], "lambda_q1"):
            raise InputError(
                f"{title} has differential attention: {name} attends its keys twice, with other values, which rows of "
                "one key and one value do not hold: attach it without memory"
            )
    expanded = frozenset(name for name, _ in found.values() if any(hasattr(modules[name], own) for own in _EXPANDING))
    layers: dict[str, tuple[int, int] | None] = {name: None for _, (name, _) in sorted(found.items())}
    windows: dict[str, int] = {}
    text = config.get_text_config(decoder=True)
    if layers and memory.capacity is None:
        positions = next((getattr(text, name) for name in _POSITIONS if hasattr(text, name)), None)
        for name, window in found.values():
            if window is not None:
                windows[name] = window
                layers[name] = _rows(title, within(pattern.causal(), window), memory.sinks, positions)
        full = [name for name in layers if name not in windows]
        some = pattern if full or not windows else within(pattern.causal(), max(windows.values()))
        capacity, sinks = _rows(title, some, memory.sinks, positions)
        memory = replace(memory, capacity=capacity, sinks=sinks)
    store = Store(memory, layers, windows, {index: name for index, (name, _) in found.items()}, text, expanded)
    for name, description in store.memories().items():
        AnalogMemory(description, name)  # refuses what it cannot hold before anything runs
    return store


def _is_causal(module: nn.Module) -> bool:
    return bool(vars(module).get("is_causal"))


def _place_in_cache(name: str, module: nn.Module) -> int | None:
    """The index of a layer in its model's cache; None: it has none.

    Blocks whose weights several layers share (Zamba) hold -1 and are told their layer when they are called: the last
    number on the way to them.
    """
    index: int | None = vars(module).get("layer_idx")
    if index is None or index >= 0:
        return index
    return int(next(part for part in reversed(name.split(".")) if part.isdecimal()))


def _rows(title: str, pattern: Pattern, sinks: int, positions: int | None) -> tuple[int, int]:
    """Capacity and sinks of a memory that a pattern reads, in a model of so many positions."""
    reach = causal_reach(pattern)
    if reach is None:
        if positions is None:
            raise InputError(
                f"{title} does not say how many positions it has, nor the pattern how far it looks: give the memory a "
                "capacity"
            )
        return positions, sinks
    sinks = max(reach[1], sinks)
    return reach[0] + sinks, sinks


def _unhook(module: nn.Module) -> None:
    for key in [key for key, hook in module._forward_pre_hooks.items() if hook in (_with_memory, _note_place)]:
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)


def _with_memory(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> tuple[Any, dict[str, Any]] | None:
    """Give a model that is called the cache that its keys and values go to."""
    from attention.hf.cache import AnalogCache

    attached = _attachment(module)
    assert attached is not None
    if attached.store is None:  # for a while, in `scores_seen`
        return None
    attached.store.current = None
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
    attached.store.current = weakref.ref(cache)
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


class _Asked(NamedTuple):
    """What a call of a module asks for, of its pattern and of its model's own mask and scores.

    Attributes:
        pattern: the pairs.
        offset: position of the first query.
        padding: bool [B, N_keys], True for a real key; None: all are.
        bias: added to the scores; None: nothing.
        softcap: of the scores; None: none.
        sinks: scores that bring no value, [H] or [B or 1, H, N_queries or 1]; None: none.
        chosen: whether the model's mask took a part in the pairs.
    """

    pattern: Pattern
    offset: int
    padding: Tensor | None
    bias: Tensor | None
    softcap: float | None
    sinks: Tensor | None
    chosen: bool


def _note_place(module: nn.Module, args: Any, kwargs: dict[str, Any]) -> None:
    """Note where the queries of a module stand that attends another sequence, of whose tokens its keys are."""
    attached = _attachment(module)
    assert attached is not None
    module.__dict__.pop(_PLACE, None)
    if not attached.crosses and not attends_other(module, args, kwargs):
        return
    cache, place = next((kwargs[name] for name in _CACHE_NAMES if kwargs.get(name) is not None), None), 0
    states = kwargs.get("hidden_states", args[0] if args else None)
    if cache is not None and isinstance(states, Tensor) and hasattr(cache, "self_attention_cache"):
        index = vars(module).get("layer_idx") or 0
        place = max(0, int(cache.self_attention_cache.get_seq_length(index)) - states.shape[1])
    module.__dict__[_PLACE] = place


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
    asked = _asked(attached, module, query, key, attention_mask, is_causal, kwargs)
    if (found := vars(module).get(_SEEN)) is not None:
        see, pattern = found
        see(pattern.causal() if asked.pattern.is_causal else pattern, query, key, asked.padding, asked.offset)
    elif (levels := module._buffers.get(_THRESHOLDS)) is not None:
        asked = asked._replace(pattern=with_thresholds(asked.pattern, tuple(levels.tolist())))
    if attached.store is not None:
        output = _from_memory(attached, attached.store, query, key, value, asked, scaling, dropout)
        return output.transpose(1, 2).contiguous(), None
    if counting() and attached.controller is None:
        _book(attached.name, asked, query, key, value)
    # Drawn as torch's own dropout draws, so that torch.manual_seed repeats a training run.
    drawn = int(torch.randint(2**31, (), device="cpu")) if dropout else 0
    output = gated_attention(
        query, key, value, asked.pattern, scale=scaling, mask=asked.padding, bias=asked.bias, softcap=asked.softcap,
        sinks=asked.sinks, dropout=dropout, offset=asked.offset, seed=drawn, controller=attached.controller,
        layer=attached.name,
    )  # fmt: skip
    return output.transpose(1, 2).contiguous(), None


def _asked(
    attached: Attachment,
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    mask: Tensor | None,
    is_causal: bool | None,
    given_options: dict[str, Any],
) -> _Asked:
    """The pattern's pairs within the model's own mask, and what the model does to scores."""
    batch, heads, n_queries, n_keys = *query.shape[:3], key.shape[2]
    rule, parts = mask.rule if isinstance(mask, ModelMask) else None, Split(None, None, None)
    if isinstance(mask, ModelMask) and mask.shape[2:] != (n_queries, n_keys):
        mask = mask.make()
        rule = None
    if mask is not None and rule is None:
        _require_mask(attached.name, mask, batch, heads, n_queries, n_keys)
        parts = split(mask.make() if isinstance(mask, ModelMask) else mask, batch, n_queries, n_keys)
    bias, sinks = _scores(module, given_options, parts.bias, n_queries, n_keys)
    padding = rule.padding if rule else parts.padding
    place = vars(module).get(_PLACE)
    if place is not None:
        pattern, offset = attached.pattern if attached.crosses else attached.cross, place
    else:
        masked = mask is not None
        pattern, offset = _own_pairs(attached, module, rule, parts, masked, is_causal, given_options, n_queries, n_keys)
        several = rule is not None or n_queries > 1  # else it may be pairs of the one query
        if several and padding is not None and not attached.pattern.shift_invariant and not bool(padding[:, 0].all()):
            raise InputError(
                f"{attached.name} got padding on the left, where sinks and global tokens stand: pad on the right"
            )
    if parts.pairs is not None:
        own = given(parts.pairs, offset)
        pattern = pattern & (own.causal() if pattern.is_causal else own)
    return _Asked(pattern, offset, padding, bias, given_options.get("softcap"), sinks, parts.pairs is not None)


def _own_pairs(
    attached: Attachment,
    module: nn.Module,
    rule: Rule | None,
    parts: Split,
    masked: bool,
    is_causal: bool | None,
    given_options: dict[str, Any],
    n_queries: int,
    n_keys: int,
) -> tuple[Pattern, int]:
    """The pattern for tokens that attend each other, and the position of the first query.

    What a model masks decides, as in its own attention: only where it gives no mask does its word for causality count.
    A mask that lets tokens attend later ones gets the pattern's form of both sides.
    """
    said, window = vars(module).get("is_causal") if is_causal is None else is_causal, None
    offset, first = n_keys - n_queries, 0
    if rule is not None:
        causal, window, first = rule.causal, rule.window, rule.first
        if first and not attached.pattern.is_static:
            raise InputError(
                f"{attached.name} has a cache that dropped its first {first} keys, among which "
                f"{str(attached.pattern)!r} would choose: use transformers' DynamicCache() without a config"
            )
        offset = rule.query - rule.first if causal else offset
    elif parts.pairs is not None:
        causal = said is not False and not bool(parts.pairs.triu(offset + 1).any())
    elif masked:
        causal = said is not False and n_queries == 1
    else:
        causal = bool(said)
        window = given_options.get("sliding_window")
        if window is not None and not causal:
            raise InputError(
                f"{attached.name} has a window of its own on both sides and gives no mask for it, which no pattern "
                "meets: detach the model"
            )
    if not causal and offset:
        raise InputError(
            f"{attached.name} ({type(module).__name__}) attends {n_keys} keys with {n_queries} queries that are other "
            "tokens (pooled, of another sequence, or of an encoder's cache), on which no pattern of one sequence can "
            "be laid: detach the model"
        )
    return behind(within(attached.pattern.causal(), window) if causal else attached.pattern, first), offset


def _require_mask(name: str, mask: Tensor, batch: int, heads: int, n_queries: int, n_keys: int) -> None:
    fits = mask.dim() == 4 and all(
        size in (1, wanted) for size, wanted in zip(mask.shape, (batch, heads, n_queries, n_keys), strict=True)
    )
    if not fits:
        raise InputError(
            f"{name} got a mask of shape {list(mask.shape)}: give padding as [batch, keys], or a mask of pairs as "
            f"[{batch}, 1, {n_queries}, {n_keys}]"
        )


def _scores(
    module: nn.Module, given_options: dict[str, Any], bias: Tensor | None, n_queries: int, n_keys: int
) -> tuple[Tensor | None, Tensor | None]:
    """What a model adds to its scores, [B or 1, H or 1, N_queries, N_keys], and its sinks."""
    more = given_options.get("position_bias")
    if more is not None and (more.requires_grad or bool(more.any())):
        more = more if more.dim() == 4 else more[None]
        more = more.expand(*more.shape[:2], n_queries, n_keys)
        bias = more if bias is None else bias + more
    sinks = next((given_options[name] for name in ("s_aux", "sinks") if given_options.get(name) is not None), None)
    sinks = getattr(module, "sinks", None) if sinks is None else sinks
    if not isinstance(sinks, Tensor):
        return bias, None
    return bias, sinks.flatten() if sinks.dim() < 4 else sinks[..., 0]


def _from_memory(
    attached: Attachment,
    store: Store,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    asked: _Asked,
    scaling: float | None,
    dropout: float,
) -> Tensor:
    """Attention on rows that a cache programmed, or on rows that are written now."""
    from attention.hf.cache import MemoryView

    if isinstance(key, MemoryView):
        return _read(attached, store, query, key.memory, asked, scaling)
    cache = store.current() if store.current is not None and attached.name in store.expanded else None
    if cache is not None:
        index = next(index for index, name in store.places.items() if name == attached.name)
        return _read(attached, store, query, cache.layers[index].write(key, value), asked, scaling)
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
        query, key, value, asked.pattern, scale=scaling, mask=asked.padding, bias=asked.bias, softcap=asked.softcap,
        sinks=asked.sinks, dropout=dropout, offset=asked.offset, hardware=memory.hardware, layer=attached.name,
        seed=drawn, controller=attached.controller,
    )  # fmt: skip


def _read(
    attached: Attachment, store: Store, query: Tensor, memory: AnalogMemory, asked: _Asked, scaling: float | None
) -> Tensor:
    """Attention on the rows of a cache."""
    if asked.pattern.n_sequences is not None:
        raise InputError(
            f"{attached.name} masks each sequence of the batch in its own way, which rows in analog memory cannot "
            "follow: give one sequence at a time"
        )
    pattern, made_for = asked.pattern, store.windows.get(attached.name)
    if made_for is not None and memory.tokens > memory.addresses.capacity:
        reach = causal_reach(pattern)
        if query.shape[2] == 1:
            pattern = within(pattern, made_for)  # as the model's own cache drops keys, whatever its mask says
        elif not asked.chosen and (reach is None or sum(reach) > memory.addresses.capacity):
            raise InputError(
                f"{attached.name} attends more keys at once than the {made_for} of the sliding window that its cache "
                "keeps: give the memory a capacity, or feed fewer tokens at a time"
            )
    output, lse = memory.read(
        query, pattern, scale=scaling, mask=asked.padding, bias=asked.bias, softcap=asked.softcap,
        return_lse=asked.sinks is not None,
    )  # fmt: skip
    if asked.sinks is None or lse is None:
        return output
    return beside_sinks(attached.name, output, lse, asked.sinks)


def _book(name: str, asked: _Asked, query: Tensor, key: Tensor, value: Tensor) -> None:
    """Book the events that the attended pairs of each sequence make; padding has no place in memory."""
    n_queries, n_keys, offset, padding = query.shape[2], key.shape[2], asked.offset, asked.padding
    (batch, heads), sizes = query.shape[:2], (query.shape[3], value.shape[3])
    capped, biased = asked.softcap is not None, asked.bias is not None
    pattern = asked.pattern.at(n_keys)
    if is_screening(pattern):
        asking = real_queries(padding, n_queries, n_keys, offset)
        lines = Lines(query, key, offset, padding, asking, key=(0, name), numbers=(query, key))
        pattern, taken = screen(pattern, lines)
        book_screening(name, taken, sizes[0], None)
    else:
        pattern = pattern.select(query, key, mask=padding, offset=offset)

    def booked(counts: Counts, queries: int) -> None:
        book_attention(
            name,
            counts.of_head(sizes[0], value_dim=sizes[1]),
            head_dim=sizes[0],
            value_dim=sizes[1],
            queries=queries,
            capped=capped,
            biased=biased,
        )

    if asked.chosen or is_chosen(pattern) or offset + n_queries != n_keys:
        delivery = deliver(_PLATFORM, pattern, query, n_keys, offset, padding, asked.pattern.is_static)
        delivery.count(name, lambda totals: booked(totals.counts, totals.queries))
        return

    def of_lengths(lengths: list[int]) -> None:
        alike = Counter((pattern.sequence(index), length) for index, length in enumerate(lengths))
        for (own, length), sequences in alike.items():
            first = max(0, length - n_queries) if offset else 0
            counts = sequences * count(own, length, first=first, head_dim=1, heads=heads)
            booked(counts, sequences * heads * (length - first))

    if padding is None:
        of_lengths([n_keys] * batch)
    else:
        book_later(name, padding.sum(1), of_lengths)
