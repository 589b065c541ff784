"""Attention over a sparse pattern: the one function that models call."""

from __future__ import annotations

import math
from typing import Literal, get_args, overload

from torch import Tensor

from attention.controller.controller import Controller
from attention.controller.delivery import require_rows
from attention.inputs import require_tensors
from attention.kernel.blocks import Options
from attention.patterns.base import Pattern
from attention.patterns.rows import LARGEST
from attention.plan import Call, Impl, run
from crossbar.backends import dispatch
from crossbar.errors import InputError, require_number, require_whole
from crossbar.hardware import Hardware


@overload
def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    offset: int = 0,
    hardware: Hardware | None = None,
    controller: Controller | None = None,
    seconds: float = 0.0,
    layer: str = "attention",
    seed: int = 0,
    return_lse: Literal[False] = False,
    impl: str = "auto",
) -> Tensor: ...
@overload
def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    offset: int = 0,
    hardware: Hardware | None = None,
    controller: Controller | None = None,
    seconds: float = 0.0,
    layer: str = "attention",
    seed: int = 0,
    return_lse: Literal[True],
    impl: str = "auto",
) -> tuple[Tensor, Tensor]: ...
def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
    dropout: float = 0.0,
    offset: int = 0,
    hardware: Hardware | None = None,
    controller: Controller | None = None,
    seconds: float = 0.0,
    layer: str = "attention",
    seed: int = 0,
    return_lse: bool = False,
    impl: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over the pairs of ``pattern``, with work and memory that follow those pairs.

    Pairs outside the pattern get score −∞ before the softmax. A query that attends no real key gives exactly 0, and
    gradients of exactly 0. A pattern that depends on the length of the sequence takes the number of keys for it, and
    one that depends on queries and keys selects by these.

    With ``hardware``, keys and values are written into analog memory, one token a row, and both products are read from
    it with converters and noise (`attention.kernel.analog`); ``bias``, ``softcap`` and ``sinks`` are digital arithmetic
    behind the score's ADC. Without noise, converters and device error the result is
    the digital one. While a `crossbar.Ledger` is open, writes and reads are booked.

    With a ``controller``, every pair's events go to the memory's tiles on its platform, and attention is computed from
    delivered events only (`attention.controller.delivery`): a pair whose score event is dropped is not in the softmax,
    and one whose value event is dropped keeps its weight but brings no value. A platform that drops nothing gives the
    pattern itself; one that does warns with `attention.EventsDropped`. Counts are those of the events.

    Args:
        q: queries [B, H, N_queries, D]; float32, float64, bfloat16 or float16.
        k: keys [B, H_kv, N_keys, D]; H is a multiple of H_kv, and H / H_kv consecutive query heads share a key head.
        v: values [B, H_kv, N_keys, D_v].
        pattern: who attends to whom.
        scale: factor on the scores; 1/√D unless given (Vaswani 2017).
        mask: padding, bool [B, N_keys], True for a real key.
        bias: added to the scores, [B or 1, H or 1, N_queries, N_keys] of the queries' dtype or float32; finite.
        softcap: c; scores s become c tanh(s / c) before the bias is added (Gemma 2).
        sinks: a score of each head, [H], or of each query, [B or 1, H, N_queries or 1], that takes part in the softmax
            and has no value (gpt-oss).
        dropout: probability of dropping a weight after the softmax.
        offset: position of the first query; keys start at position 0.
        hardware: the tiles that hold keys and values; None: digital attention.
        controller: sends the events; None: every pair arrives.
        seconds: with ``hardware``, time since the keys and values were written.
        layer: with ``hardware``, the name that keys random draws and counts.
        seed: key of all draws: the same seed drops the same weights and gives the same analog errors, so training
            varies it from step to step.
        return_lse: also return the log-sum-exp of each query's attended scores, −∞ where there are none.
        impl: ``"blocks"`` computes blocks of queries with the keys that they need; ``"flex"`` is torch's FlexAttention,
            without dropout, and on a CPU for inference only; ``"reference"`` computes the whole matrix in float64,
            without dropout; ``"auto"`` is ``"flex"`` on CUDA for a pattern that does not choose by queries and keys,
            128 queries or more, heads of 16 to 256 dimensions and no dropout or float64, else ``"blocks"``. With
            ``hardware``, blocks only, and ``impl`` may name the backend that senses the rows
            (`crossbar.backends.dispatch`): ``"naive"`` is the float64 oracle, which has no gradients.

    Returns:
        Output [B, H, N_queries, D_v] in q's dtype, and with ``return_lse`` also [B, H, N_queries] (float32, or float64
        for float64 inputs), which leaves ``sinks`` out.

    Raises:
        InputError: for shapes, dtypes, devices or options that do not fit together, and for a causal pattern that
            depends on the length of the sequence where ``offset`` is not 0.
    """
    require_tensors(q, k, v, mask)
    _validate_scores(q, k, bias, softcap, sinks)
    _validate(pattern, scale, dropout, offset, hardware, controller, seconds, seed, impl)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    options = Options(scale, mask, dropout, seed, return_lse, bias=bias, softcap=softcap)
    output, lse = run(Call(q, k, v, pattern, options, offset, hardware, controller, seconds, layer, impl, sinks))
    return (output, lse) if return_lse and lse is not None else output


def _validate_scores(q: Tensor, k: Tensor, bias: Tensor | None, softcap: float | None, sinks: Tensor | None) -> None:
    """Refuse what is done to scores where it does not fit them."""
    batch, heads, queries, keys = *q.shape[:3], k.shape[2]
    if bias is not None:
        fits = bias.dim() == 4 and bias.shape[0] in (1, batch) and bias.shape[1] in (1, heads)
        if not fits or bias.shape[2:] != (queries, keys) or not bias.is_floating_point():
            raise InputError(
                f"bias {bias.dtype} {list(bias.shape)} does not fit: give numbers [{batch} or 1, {heads} or 1, "
                f"{queries}, {keys}]"
            )
    if softcap is not None and not 0 < softcap < math.inf:
        raise InputError(f"softcap {softcap!r} is not usable: give a positive number, or None for no cap")
    if sinks is not None and sinks.shape != (heads,):
        fits = sinks.dim() == 3 and sinks.shape[0] in (1, batch) and sinks.shape[1] == heads
        if not fits or sinks.shape[2] not in (1, queries):
            raise InputError(f"sinks {list(sinks.shape)} do not fit: give a score for each of {heads} heads")


def _validate(
    pattern: Pattern,
    scale: float | None,
    dropout: float,
    offset: int,
    hardware: Hardware | None,
    controller: Controller | None,
    seconds: float,
    seed: int,
    impl: str,
) -> None:
    if not isinstance(pattern, Pattern):
        raise InputError(f"pattern {pattern!r} is not a Pattern: make one, or parse a text with attention.parse")
    if scale is not None and not math.isfinite(scale):
        raise InputError(f"scale {scale!r} is not usable: give a finite factor, or None for 1/√D")
    if not 0 <= dropout < 1:
        raise InputError(f"dropout {dropout!r} is not usable: give a probability from 0 up to, not including, 1")
    require_whole("attention offset", offset, least=0, most=LARGEST)
    require_whole("attention seed", seed, least=0)
    _validate_impl(impl, dropout, hardware)
    if controller is not None and not isinstance(controller, Controller):
        raise InputError(f"controller {controller!r} is not a Controller: give attention.Controller(platform), or None")
    if hardware is None:
        return
    if not isinstance(hardware, Hardware):
        raise InputError(f"hardware {hardware!r} is not a Hardware: give one of crossbar.presets, or None")
    if controller is not None:
        require_rows(controller, hardware)
    require_number("attention seconds", seconds)


def _validate_impl(impl: str, dropout: float, hardware: Hardware | None) -> None:
    digital, backends = get_args(Impl), dispatch.backend_names()
    if impl not in (*digital, *backends):
        allowed = ", ".join((*digital, *(() if hardware is None else backends)))
        raise InputError(f"impl {impl!r} is not known: choose one of {allowed}")
    if impl in ("reference", "flex"):
        if hardware is not None:
            raise InputError(f"impl {impl!r} cannot have hardware: give impl='blocks', or a backend such as 'naive'")
        if dropout:
            raise InputError(f"impl {impl!r} cannot have dropout {dropout!r}: give dropout=0 or impl='blocks'")
    if impl in backends and hardware is None:
        raise InputError(f"impl {impl!r} reads analog memory: give hardware, or choose one of {', '.join(digital)}")
