"""A transformers cache whose keys and values are in analog memory: `update` programs a row a token."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import (
    Cache,
    CacheLayerMixin,
    DynamicCache,
    DynamicIndexedLayer,
    DynamicLayer,
    DynamicSlidingWindowLayer,
    LinearAttentionLayer,
)

from attention.memory.description import Memory
from attention.memory.memory import AnalogMemory
from attention.memory.report import MemoryReport
from crossbar.errors import InputError
from crossbar.random.streams import Key


class MemoryView(torch.Tensor):
    """What `update` returns in the place of keys and values: their shape, and the memory that holds them.

    Attention of an attached model reads the memory; whatever else computes with it is refused, for the numbers are not
    here.
    """

    memory: AnalogMemory

    @staticmethod
    def of(memory: AnalogMemory, like: Tensor) -> MemoryView:
        """A view [B, H_kv, tokens, D] that holds no numbers."""
        shape = (like.shape[0], like.shape[1], memory.tokens, like.shape[3])
        view: MemoryView = torch.Tensor._make_subclass(MemoryView, like.new_empty(()).expand(shape))
        view.memory = memory
        return view

    @staticmethod
    def _name(args: Any) -> str:
        """The layer whose keys and values are among the arguments of a function."""
        flat = [x for arg in args for x in (arg if isinstance(arg, list | tuple) else (arg,))]
        return next((x.memory.name for x in flat if isinstance(x, MemoryView)), "a layer")

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        """Let shape, dtype and device through."""
        if func.__name__ not in ("__get__", "numel", "size", "dim"):
            raise InputError(
                f"{cls._name(args)} has its keys and values in analog memory, where {func.__name__} cannot have them: "
                "attention alone reads them, in a model that attention.attach has attached"
            )
        with torch._C.DisableTorchFunctionSubclass():
            return func(*args, **(kwargs or {}))


class AnalogCacheLayer(CacheLayerMixin):  # type: ignore[misc]  # transformers is not typed for mypy here
    """One layer's memory as transformers calls it."""

    is_sliding = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, memory: AnalogMemory) -> None:
        super().__init__()
        self.memory = memory
        self.padding: Tensor | None = None

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Nothing: tiles are taken into use as tokens arrive."""

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Program a row of K and of V for each new token and head."""
        first, n = self.memory.tokens, key_states.shape[2]
        padding = None if self.padding is None else self.padding[:, first : first + n]
        self.memory.append(key_states, value_states, padding=padding)
        self.is_initialized = True
        self.keys, self.values = (MemoryView.of(self.memory, x) for x in (key_states, value_states))
        return self.keys, self.values

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """Keys that a mask is for, all positions so far, and where they begin."""
        return self.memory.tokens + query_length, 0

    def get_seq_length(self) -> int:
        """Tokens appended so far, evicted ones among them."""
        return self.memory.tokens

    def get_max_length(self) -> int:
        """−1: what happens to more tokens than there are rows is the memory's eviction policy."""
        return -1

    def reset(self) -> None:
        """Forget all tokens."""
        self.memory.reset()

    def reorder_cache(self, beam_idx: Tensor) -> None:
        """Beams take over the rows of the beams that they continue; no row is written."""
        self.memory.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence several times."""
        batch = self.memory.batch
        self.memory.select(torch.arange(batch, device="cpu").repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Some sequences."""
        self.memory.select(torch.arange(self.memory.batch, device="cpu")[indices.cpu()])

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse to take tokens back: rows of evicted ones are gone."""
        if tokens_to_remove:
            raise InputError("analog memory cannot take tokens back: generate without an assistant model")


class AnalogExpandedLayer(CacheLayerMixin):  # type: ignore[misc]  # as above
    """A layer that computes keys and values from what its cache keeps, which stays in digital (latent attention, MLA).

    Attention of an attached model writes a row of K and of V for each new token when it has them.

    Args:
        memory: the rows.
        kept: the cache that the layer has without analog memory.
    """

    is_sliding = False
    is_croppable = False
    supports_early_init = False

    def __init__(self, memory: AnalogMemory, kept: Any) -> None:
        super().__init__()
        self.memory, self.kept = memory, kept
        self.padding: Tensor | None = None

    def __getattr__(self, name: str) -> Any:
        """What its kind of cache keeps beside, such as the keys of an indexer."""
        if name in ("kept", "memory"):  # while it is being copied
            raise AttributeError(name)
        return getattr(self.kept, name)

    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """As without analog memory."""
        self.kept.lazy_initialization(key_states, value_states)

    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """As without analog memory."""
        self.is_initialized = True
        kept: tuple[Tensor, Tensor] = self.kept.update(key_states, value_states, *args, **kwargs)
        return kept

    def write(self, key: Tensor, value: Tensor) -> AnalogMemory:
        """Program rows for the tokens that have none yet, of the keys and values [B, H, tokens, ·] of all."""
        first = self.memory.tokens
        padding = None if self.padding is None else self.padding[:, first : key.shape[2]]
        self.memory.append(key[:, :, first:], value[:, :, first:], padding=padding)
        return self.memory

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        """As without analog memory."""
        sizes: tuple[int, int] = self.kept.get_mask_sizes(query_length)
        return sizes

    def get_seq_length(self) -> int:
        """As without analog memory."""
        return int(self.kept.get_seq_length())

    def get_max_length(self) -> int:
        """−1, as `AnalogCacheLayer`."""
        return -1

    def reset(self) -> None:
        """Forget all tokens."""
        self.kept.reset()
        self.memory.reset()

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beams take over rows and what is kept."""
        self.kept.reorder_cache(beam_idx)
        self.memory.select(beam_idx)

    def batch_repeat_interleave(self, repeats: int) -> None:
        """Every sequence several times."""
        self.kept.batch_repeat_interleave(repeats)
        self.memory.select(torch.arange(self.memory.batch, device="cpu").repeat_interleave(repeats))

    def batch_select_indices(self, indices: Tensor) -> None:
        """Some sequences."""
        self.kept.batch_select_indices(indices)
        self.memory.select(torch.arange(self.memory.batch, device="cpu")[indices.cpu()])

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse, as `AnalogCacheLayer`."""
        AnalogCacheLayer.crop(self, tokens_to_remove)  # which needs nothing of the layer


class AnalogHybridLayer(LinearAttentionLayer, AnalogCacheLayer):  # type: ignore[misc]  # as above
    """A layer that attends and keeps the states of a convolution or a recurrence beside (Falcon-H1, Zamba 2)."""

    is_compileable = False

    def __init__(self, memory: AnalogMemory, number_of_states: int) -> None:
        AnalogCacheLayer.__init__(self, memory)
        LinearAttentionLayer.__init__(self, number_of_states=number_of_states)

    def lazy_initialization(self, *args: Any, **kwargs: Any) -> None:
        """Of states alone: tiles are taken into use as tokens arrive."""
        if kwargs:
            LinearAttentionLayer.lazy_initialization(self, **kwargs)

    def reset(self) -> None:
        """Forget all tokens and states."""
        LinearAttentionLayer.reset(self)
        AnalogCacheLayer.reset(self)

    def reorder_cache(self, beam_idx: torch.Tensor) -> None:
        """Beams take over rows and states."""
        LinearAttentionLayer.reorder_cache(self, beam_idx)
        AnalogCacheLayer.reorder_cache(self, beam_idx)

    def crop(self, tokens_to_remove: int) -> None:
        """Refuse, as rows do."""
        AnalogCacheLayer.crop(self, tokens_to_remove)


def unknown_layer(module: Any, config: Any, index: int) -> str | None:
    """The kind of a layer's cache, if that keeps more than keys, values, their indices and recurrent states."""
    origin = vars(sys.modules[type(module).__module__])
    for kind in origin.values():
        if isinstance(kind, type) and issubclass(kind, Cache) and kind.__module__ == type(module).__module__:
            return kind.__name__
    layers = DynamicCache(config=config).layers
    if index >= len(layers):
        return None
    kind = type(layers[index])
    known = kind.__module__ == "transformers.cache_utils" and issubclass(
        kind, DynamicLayer | DynamicIndexedLayer | LinearAttentionLayer
    )
    return None if known else kind.__name__


class AnalogCache(Cache):  # type: ignore[misc]  # as above
    """The memories of a model's layers; `attention.memory_cache` makes one for an attached model.

    What else a model's cache keeps, such as the states of convolutions and linear attention, stays beside them in
    digital.

    Args:
        memories: what the memory of each attention layer is, by name, in order.
        stream: which of a model's caches this is: it keys the draws.
        places: names of the layers by their index in the model's cache; None: in order.
        config: of the model, which says what its other layers keep; None: there are no others.
        expanded: names of layers that compute keys and values from what they keep.
    """

    def __init__(
        self,
        memories: Mapping[str, Memory],
        stream: Key = (),
        places: Mapping[int, str] | None = None,
        config: Any = None,
        expanded: frozenset[str] = frozenset(),
    ) -> None:
        places = dict(enumerate(memories)) if places is None else places
        own = [] if config is None else DynamicCache(config=config).layers
        layers: list[Any] = []
        for index in range(max(len(own), *(place + 1 for place in places))):
            kept = own[index] if index < len(own) else None
            if index not in places:
                layers.append(DynamicLayer() if kept is None else kept)
                continue
            memory = AnalogMemory(memories[places[index]], places[index], stream)
            if places[index] in expanded:
                whole = kept is None or isinstance(kept, DynamicSlidingWindowLayer)
                layers.append(AnalogExpandedLayer(memory, DynamicLayer() if whole else kept))
            elif isinstance(kept, LinearAttentionLayer):
                layers.append(AnalogHybridLayer(memory, kept.number_of_states))
            else:
                layers.append(AnalogCacheLayer(memory))
        super().__init__(layers=layers)

    @property
    def memories(self) -> list[AnalogMemory]:
        """The layers' memories."""
        return [layer.memory for layer in self._analog]

    @property
    def _analog(self) -> list[AnalogCacheLayer | AnalogExpandedLayer]:
        return [layer for layer in self.layers if isinstance(layer, AnalogCacheLayer | AnalogExpandedLayer)]

    def expect(self, padding: Tensor | None) -> None:
        """Take note of a padding mask [B, all positions] before tokens arrive, for padding has no row."""
        for layer in self._analog:
            layer.padding = None if padding is None or bool(padding.all()) else padding.bool()

    def age(self, seconds: float) -> None:
        """Let time pass."""
        for memory in self.memories:
            memory.age(seconds)

    def report(self) -> dict[str, MemoryReport]:
        """What became of each layer's rows."""
        return {memory.name: memory.report() for memory in self.memories}
