"""Where a transformers model attends: which modules a pattern reaches, and what keeps a model from being attached.

A module is read, not run: its class is gated if its code asks transformers' AttentionInterface for a function, and has
attention of its own if it is called attention and takes a softmax itself.
"""

from __future__ import annotations

import inspect
import re
from dataclasses import dataclass
from functools import lru_cache
from types import CodeType, FunctionType
from typing import Any, cast

from torch import nn

from crossbar.errors import InputError

_SOFTMAX = {"softmax", "Softmax", "XSoftmax", "scaled_dot_product_attention", "multi_head_attention_forward"}
_CROSS = re.compile(r"cross|enc_?dec_?att|encoder_attn|perceiver|poolinghead|AttentionResidual", re.IGNORECASE)
"""Names on the way to modules that attend another sequence than their queries', or the states of other layers."""
_ATTENTION = re.compile(r"attention|attn", re.IGNORECASE)
_STATES = ("key_value_states", "encoder_hidden_states", "cross_attention_states")
"""Arguments that bring another sequence's states."""


@dataclass(frozen=True)
class Sites:
    """The attention of a model.

    Attributes:
        own: names of the modules whose tokens attend each other.
        cross: names of those that attend another sequence, which no pattern of one sequence fits.
        fixed: of these, the ones in code of their own, which attend everything.
    """

    own: tuple[str, ...]
    cross: tuple[str, ...]
    fixed: tuple[str, ...] = ()


def sites(model: nn.Module) -> Sites:
    """Where a model attends.

    Raises:
        InputError: for a model of which a pattern would reach nothing, or only a part.
    """
    title = type(model).__name__
    fixed: list[str] = []
    gated: dict[str, nn.Module] = {}
    free: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        kind = cast(Any, type(module))
        if _asks_interface(kind):
            gated[name] = module
        elif _attends_itself(kind):
            if _CROSS.search(_path(model, name)):
                fixed.append(name)
            else:
                free[name] = module
    if not gated and not free:  # attention without a softmax, such as that of MRA
        free = {name: module for name, module in model.named_modules() if type(module).__name__.endswith("Attention")}
    if free:
        name, module = next(iter(free.items()))
        raise InputError(
            f"{title} computes attention in code of its own in {name or 'itself'} ({type(module).__name__}), not "
            "through transformers' AttentionInterface: run it without a pattern, or attach a part without such layers"
        )
    if not gated:
        raise InputError(f"{title} has no softmax attention that a pattern could restrict: run it without a pattern")
    for name, module in gated.items():
        _require_tokens(title, name, module)
    cross = tuple(name for name in gated if _CROSS.search(_path(model, name)))
    return Sites(tuple(name for name in gated if name not in cross), cross, tuple(fixed))


def attends_other(module: nn.Module, args: Any, kwargs: Any) -> bool:
    """Whether a call of a gated module brings states of another sequence."""
    given = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
    return any(given.get(name) is not None for name in _STATES)


def _path(model: nn.Module, name: str) -> str:
    """A module's name with the names of the classes on its way, the model's own left out."""
    found, module = [], model
    for part in name.split(".") if name else []:
        module = getattr(module, part)
        found.append(f"{part} {type(module).__name__}")
    return " ".join(found)


def _require_tokens(title: str, name: str, module: nn.Module) -> None:
    """Refuse a module whose keys are no tokens of a sequence."""
    pooled = max((getattr(module, field, 1) or 1) for field in ("sr_ratio", "sequence_reduction_ratio"))
    if isinstance(pooled, int) and pooled > 1:
        raise InputError(
            f"{title} attends pooled keys in {name} ({type(module).__name__}), one for {pooled} x {pooled} tokens, on "
            "which no pattern of tokens can be laid: run it without a pattern"
        )
    if "merged_attention_mask" in inspect.signature(module.forward).parameters:
        raise InputError(
            f"{title} attends its own and another sequence in one softmax in {name} ({type(module).__name__}), where "
            "no pattern of one sequence fits: run it without a pattern"
        )


@lru_cache(maxsize=4096)
def _asks_interface(kind: Any) -> bool:
    return bool(_names(kind) & {"ALL_ATTENTION_FUNCTIONS"})


@lru_cache(maxsize=4096)
def _attends_itself(kind: Any) -> bool:
    if issubclass(kind, nn.MultiheadAttention):
        return True
    return bool(_ATTENTION.search(kind.__name__)) and bool(_names(kind) & _SOFTMAX)


def _names(kind: type) -> set[str]:
    """What the code of a class and of its bases of the same origin refers to."""
    found: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch.") or base is object or base.__name__ == "PreTrainedModel":
            continue
        for member in vars(base).values():
            function = inspect.unwrap(member) if callable(member) else member
            if isinstance(function, FunctionType):
                found |= _referred(function.__code__)
    return found


def _referred(code: CodeType) -> set[str]:
    found = set(code.co_names)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            found |= _referred(constant)
    return found
