"""What stands for a weight that is in cells: it says what it is, multiplies on tiles, and refuses everything else."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor

from crossbar.adapters.multihead import attend
from crossbar.adapters.protocol import Product
from crossbar.errors import InputError

_ANSWERED = {
    "shape", "dtype", "device", "ndim", "layout", "requires_grad", "is_cuda", "is_cpu", "is_xpu", "is_mps", "is_meta",
    "is_quantized", "is_sparse", "is_leaf", "itemsize", "nbytes", "names", "size", "dim", "numel", "nelement",
    "ndimension", "element_size", "is_floating_point", "is_complex", "is_contiguous", "get_device", "stride", "__len__",
    "__hash__",
}  # fmt: skip
"""Properties and methods of tensors that say something of a weight without its numbers."""


class StandIn(Tensor):
    """A weight without numbers.

    ``F.linear(x, w)``, ``x @ w.t()``, ``w @ x``, ``F.multi_head_attention_forward`` with separate weights and, of a
    weight of experts ``[E, ., .]``, ``w[e]`` and ``torch.bmm(x, w)`` are computed on tiles where it has products;
    anything else raises `InputError`.
    """

    of: str
    products: Sequence[Product]
    transposed: bool
    """Whether its last two dimensions are ``[I, O]``."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = getattr(func, "__name__", str(func))
        if name == "__get__":
            name = func.__self__.__name__
        if name in _ANSWERED:
            with torch._C.DisableTorchFunctionSubclass():
                return func(*args, **kwargs)
        made = _MADE.get(name)
        found = None if made is None else made(*args, **kwargs)
        if found is None:
            own = next(x for x in _flat(args, kwargs) if isinstance(x, StandIn))
            raise InputError(
                f"{own.of!r} is in cells, and {name!r} would compute past them with its numbers: exclude the layer "
                "from conversion, or register an adapter for what reads it"
            )
        return found

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]  # as torch's own documentation has it
        cls, func: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        own = next(x for x in _flat(args, kwargs or {}) if isinstance(x, StandIn))
        raise InputError(f"{own.of!r} is in cells, and {func} would compute past them: exclude it from conversion")

    def __repr__(self) -> str:  # type: ignore[override]  # without what torch passes to itself
        return f"{type(self).__name__}({self.of!r}, shape={list(self.shape)}, dtype={self.dtype})"


def stand_in(weight: Tensor, name: str, products: Sequence[Product] = (), transposed: bool = False) -> Tensor:
    """A stand-in for a weight.

    Args:
        weight: whose shape, dtype and device it has.
        name: for messages.
        products: of the matrix, or of the matrices of each expert; none: it refuses products too.
        transposed: its last two dimensions are ``[I, O]``.
    """
    return _made(weight.shape, weight.dtype, weight.device, name, products, transposed)


def _made(
    shape: Sequence[int],
    dtype: torch.dtype,
    device: torch.device,
    name: str,
    products: Sequence[Product],
    transposed: bool,
) -> Tensor:
    made = torch.Tensor._make_wrapper_subclass(  # torch's way to a tensor without memory
        StandIn, torch.Size(shape), dtype=dtype, device=device
    )
    made.of, made.products, made.transposed = name, products, transposed
    return cast(Tensor, made)


def _flat(args: Any, kwargs: Any) -> Any:
    for value in (*args, *kwargs.values()):
        if isinstance(value, (list, tuple)):
            yield from value
        else:
            yield value


def _swapped(w: StandIn) -> Tensor | None:
    if w.dim() < 2:
        return None
    shape = (*w.shape[:-2], w.shape[-1], w.shape[-2])
    return _made(shape, w.dtype, w.device, w.of, w.products, not w.transposed)


def _transpose(w: StandIn, first: int, second: int) -> Tensor | None:
    if {first % w.dim(), second % w.dim()} != {w.dim() - 2, w.dim() - 1}:
        return None
    return _swapped(w)


def _to(w: StandIn, *args: Any, **kwargs: Any) -> Tensor:
    plain: Any = torch.empty(0, dtype=w.dtype, device=w.device)
    others = [torch.empty(0, dtype=x.dtype, device=x.device) if isinstance(x, StandIn) else x for x in args]
    like = plain.to(*others, **kwargs)
    return _made(w.shape, like.dtype, like.device, w.of, w.products, w.transposed)


def _expert(w: StandIn, index: Any) -> Tensor | None:
    if w.dim() != 3 or not w.products or isinstance(index, (slice, tuple, list)) or index is None:
        return None
    if isinstance(index, Tensor) and index.numel() != 1:
        return None
    return _made(w.shape[1:], w.dtype, w.device, w.of, [w.products[int(index)]], w.transposed)


def _plain(*tensors: Any) -> bool:
    return not any(isinstance(tensor, StandIn) for tensor in tensors)


def _linear(x: Tensor, w: Tensor, bias: Tensor | None = None) -> Tensor | None:
    if not _plain(x, bias) or not isinstance(w, StandIn) or w.transposed or w.dim() != 2 or len(w.products) != 1:
        return None
    y = w.products[0](x)
    return y if bias is None else y + bias


def _matmul(x: Tensor, w: Tensor) -> Tensor | None:
    if isinstance(x, StandIn):
        if not _plain(w) or x.transposed or x.dim() != 2 or len(x.products) != 1 or w.dim() < 2:
            return None
        return x.products[0](w.transpose(-1, -2)).transpose(-1, -2)
    assert isinstance(w, StandIn)
    if not w.transposed or not w.products:
        return None
    if w.dim() == 2:
        return w.products[0](x)
    if x.dim() != 3 or len(x) != len(w):
        return None
    return torch.stack([product(vectors) for product, vectors in zip(w.products, x, strict=True)])


def _addmm(bias: Tensor, x: Tensor, w: Tensor) -> Tensor | None:
    y = _matmul(x, w) if _plain(bias) else None
    return None if y is None else y + bias


def _attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    embed_dim_to_check: int,
    num_heads: int,
    in_proj_weight: Tensor | None,
    in_proj_bias: Tensor | None,
    bias_k: Tensor | None,
    bias_v: Tensor | None,
    add_zero_attn: bool,
    dropout_p: float,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    training: bool = True,
    key_padding_mask: Tensor | None = None,
    need_weights: bool = True,
    attn_mask: Tensor | None = None,
    use_separate_proj_weight: bool = False,
    q_proj_weight: Tensor | None = None,
    k_proj_weight: Tensor | None = None,
    v_proj_weight: Tensor | None = None,
    static_k: Tensor | None = None,
    static_v: Tensor | None = None,
    average_attn_weights: bool = True,
    is_causal: bool = False,
) -> Any:
    """Torch's function of layers of their own (WavLM), with inputs ``[L, N, E]``."""
    weights = (q_proj_weight, k_proj_weight, v_proj_weight)
    if not use_separate_proj_weight or query.dim() != 3 or static_k is not None or static_v is not None:
        return None
    biases = (None,) * 3 if in_proj_bias is None else in_proj_bias.chunk(3)
    inputs = (x.transpose(0, 1) for x in (query, key, value))
    q, k, v = (F.linear(x, cast(Tensor, w), b) for x, w, b in zip(inputs, weights, biases, strict=True))
    values, attention = attend(
        q, k, v, num_heads, bias_k=bias_k, bias_v=bias_v, add_zero=add_zero_attn,
        dropout=dropout_p if training else 0.0, attn_mask=attn_mask, key_padding_mask=key_padding_mask,
        need_weights=need_weights, average=average_attn_weights,
    )  # fmt: skip
    return F.linear(values, out_proj_weight, out_proj_bias).transpose(0, 1), attention


def _itself(w: StandIn, *args: Any, **kwargs: Any) -> Tensor:
    return w


_MADE: dict[str, Callable[..., Any]] = {
    "linear": _linear,
    "matmul": _matmul,
    "__matmul__": _matmul,
    "__rmatmul__": lambda w, x: _matmul(x, w),
    "mm": _matmul,
    "bmm": _matmul,
    "addmm": _addmm,
    "multi_head_attention_forward": _attention,
    "t": _swapped,
    "T": _swapped,
    "mT": _swapped,
    "transpose": _transpose,
    "__getitem__": _expert,
    "to": _to,
    "type": _to,
    "float": lambda w: _to(w, torch.float32),
    "half": lambda w: _to(w, torch.float16),
    "bfloat16": lambda w: _to(w, torch.bfloat16),
    "double": lambda w: _to(w, torch.float64),
    "type_as": _to,
    "contiguous": _itself,
    "detach": _itself,
    "data": _itself,
}
assert F.linear.__name__ in _MADE
