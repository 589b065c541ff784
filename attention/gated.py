"""Attention over a sparse pattern: the one function that models call."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple, cast, get_args, overload

import torch
from torch import Tensor

from attention.controller.controller import Controller
from attention.controller.delivery import deliver, require_rows
from attention.inputs import require_tensors
from attention.kernel.analog import attend_analog
from attention.kernel.analog_booking import book_reads, book_writes, real_queries
from attention.kernel.blocks import Options, attend_blocks, exact_dtype, merge, shared_heads
from attention.kernel.flex import attend_flex
from attention.kernel.hierarchical import attend_hierarchical, require_own_queries
from attention.kernel.hierarchical_reference import hierarchical_reference
from attention.kernel.reference import attention_reference
from attention.kernel.schedule import make, schedule
from attention.kernel.stacked import apart, make_stacked
from attention.kernel.straight_through import straight_through
from attention.kernel.token_rows import TokenRows, write
from attention.patterns.base import Pattern
from attention.patterns.hierarchical import Hierarchical
from attention.patterns.rows import LARGEST
from crossbar.errors import InputError, require_number, require_whole
from crossbar.hardware import Hardware
from crossbar.random.streams import seed as derived_seed

Impl = Literal["auto", "blocks", "flex", "reference"]


@overload
def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    offset: int = 0,
    hardware: Hardware | None = None,
    controller: Controller | None = None,
    seconds: float = 0.0,
    layer: str = "attention",
    seed: int = 0,
    return_lse: Literal[False] = False,
    impl: Impl = "auto",
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
    dropout: float = 0.0,
    offset: int = 0,
    hardware: Hardware | None = None,
    controller: Controller | None = None,
    seconds: float = 0.0,
    layer: str = "attention",
    seed: int = 0,
    return_lse: Literal[True],
    impl: Impl = "auto",
) -> tuple[Tensor, Tensor]: ...
def gated_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    pattern: Pattern,
    *,
    scale: float | None = None,
    mask: Tensor | None = None,
    dropout: float = 0.0,
    offset: int = 0,
    hardware: Hardware | None = None,
    controller: Controller | None = None,
    seconds: float = 0.0,
    layer: str = "attention",
    seed: int = 0,
    return_lse: bool = False,
    impl: Impl = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Softmax attention over the pairs of ``pattern``, with work and memory that follow those pairs.

    Pairs outside the pattern get score −∞ before the softmax. A query that attends no real key gives exactly 0, and
    gradients of exactly 0. A pattern that depends on the length of the sequence takes the number of keys for it, and
    one that depends on queries and keys selects by these.

    With ``hardware``, keys and values are written into analog memory, one token a row, and both products are read from
    it with converters and noise (`attention.kernel.analog`). Without noise, converters and device error the result is
    the digital one. While a `crossbar.Ledger` is open, writes and reads are booked.

    With a ``controller``, every pair's events go to the memory's tiles on its platform, and attention is computed from
    delivered events only (`attention.controller.delivery`): a pair whose score event is dropped is not in the softmax,
    and one whose value event is dropped keeps its weight but brings no value. A platform that drops nothing gives the
    pattern itself; one that does warns with `attention.EventsDropped`. Counts are those of the events.

    Args:
        q: queries [B, H, N_queries, D]; float32, float64, bfloat16 or float16.
        k: keys [B, H_kv, N_keys, D]; H is a multiple of H_kv, and H / H_kv consecutive query heads share a key head.
        v: values, shaped like k.
        pattern: who attends to whom.
        scale: factor on the scores; 1/√D unless given (Vaswani 2017).
        mask: padding, bool [B, N_keys], True for a real key.
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
            without dropout; ``"auto"`` is ``"blocks"``. With ``hardware``, blocks only.

    Returns:
        Output [B, H, N_queries, D] in q's dtype, and with ``return_lse`` also [B, H, N_queries] (float32, or float64
        for float64 inputs).

    Raises:
        InputError: for shapes, dtypes, devices or options that do not fit together, and for a causal pattern that
            depends on the length of the sequence where ``offset`` is not 0.
    """
    require_tensors(q, k, v, mask)
    _validate(pattern, scale, dropout, offset, hardware, controller, seconds, seed, impl)
    scale = 1 / math.sqrt(q.shape[-1]) if scale is None else float(scale)
    pattern.require_decodable(offset)
    fixed, soft = pattern.is_static, None
    trained = torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v))
    if trained and not fixed and (relaxed := pattern.relaxed()) != pattern:
        soft = gated_attention(
            q, k, v, relaxed, scale=scale, mask=mask, dropout=dropout, offset=offset, seed=seed, return_lse=True
        )
    pattern = pattern.at(k.shape[2]).select(q, k, mask=mask, offset=offset)
    _validate_parts(pattern, q)
    delivery = None
    if controller is not None:
        delivery = deliver(controller, pattern, q, k.shape[2], offset, mask, fixed)
        delivery.book(layer, q, hardware)
        delivery.warn()
        pattern = delivery.scored
    options = Options(scale, mask, dropout, seed, return_lse or (delivery is not None and delivery.lossy))
    if hardware is not None:
        book_writes(layer, k, mask, hardware)
        keys, values = (write(x, hardware, (seed, layer, role), seconds) for x, role in ((k, "keys"), (v, "values")))

    def attend(pattern: Pattern) -> tuple[Tensor, Tensor | None]:
        if impl == "reference":
            if isinstance(pattern, Hierarchical):
                require_own_queries(pattern, q, k, offset)
                parts = pattern.block, pattern.levels, pattern.is_causal, scale, mask, offset
                found, sums = hierarchical_reference(q, k, v, *parts)
                return found.to(q.dtype), sums.to(exact_dtype(q.dtype))
            allowed = _allowed(pattern, q, k, offset)
            allowed = allowed if mask is None else allowed & mask[:, None, None]
            found, sums = attention_reference(q, k, v, allowed, scale)
            return found.to(q.dtype), sums.to(exact_dtype(q.dtype))
        if impl == "flex":
            lse = options.return_lse
            return attend_flex(q, k, v, pattern, scale=scale, padding=mask, offset=offset, return_lse=lse)
        work = _Work(pattern, options, offset, fixed, counted=controller is None)
        if hardware is None:
            return _digital(q, k, v, work)
        return _analog(q, keys, values, work, hardware, layer)

    output, lse = attend(pattern)
    if delivery is not None and delivery.lossy:
        # Softmax over the scores that arrived, values of the pairs whose value events arrived.
        output, reached = attend(delivery.valued)
        assert lse is not None
        assert reached is not None
        share = (reached - lse).exp().masked_fill(reached == -torch.inf, 0.0)
        output = (output * share[..., None]).to(q.dtype)
    if soft is not None:
        output = straight_through(output, soft[0])
        lse = lse if lse is None else straight_through(lse, soft[1])
    return (output, lse) if return_lse and lse is not None else output


class _Work(NamedTuple):
    """What to do to one part of the batch and heads.

    Attributes:
        fixed: whether it will be asked for again.
        counted: whether reads of analog memory are booked from the schedule; if not, they were from events.
    """

    pattern: Pattern
    options: Options
    offset: int
    fixed: bool
    counted: bool = True

    def sequence(self, b: int) -> _Work:
        mask = self.options.mask
        options = self.options._replace(
            mask=None if mask is None else mask[b : b + 1], seed=derived_seed((self.options.seed, "sequence", b))
        )
        return self._replace(pattern=self.pattern.sequence(b), options=options)

    def heads(self) -> dict[Pattern, list[int]]:
        """The different patterns of the heads, with the heads that have each."""
        found: dict[Pattern, list[int]] = {}
        for h in range(self.pattern.n_heads or 0):
            found.setdefault(self.pattern.head(h), []).append(h)
        return found

    def of_heads(self, pattern: Pattern, heads: list[int]) -> _Work:
        options = self.options._replace(seed=derived_seed((self.options.seed, "head", heads[0])))
        return self._replace(pattern=pattern, options=options)


def _digital(q: Tensor, k: Tensor, v: Tensor, work: _Work) -> tuple[Tensor, Tensor | None]:
    if not work.fixed and (work.pattern.n_heads is not None or work.pattern.n_sequences is not None):
        return _stacked(q, k, v, work)
    if work.pattern.n_sequences is not None:
        return _joined(
            [_digital(q[b : b + 1], k[b : b + 1], v[b : b + 1], work.sequence(b)) for b in range(len(q))], 0, None
        )
    if work.pattern.n_heads is not None:
        found, order = [], []
        for pattern, heads in work.heads().items():
            own, shared = _indices(q, k.shape[1], heads)
            parts = (q.index_select(1, own), k.index_select(1, shared), v.index_select(1, shared))
            found.append(_digital(*parts, work.of_heads(pattern, heads)))
            order += heads
        return _joined(found, 1, order)
    if isinstance(work.pattern, Hierarchical):
        if work.options.dropout:
            raise InputError(f"pattern {str(work.pattern)!r} cannot have dropout: give dropout=0")
        options = work.options
        output, lse = attend_hierarchical(q, k, v, work.pattern, options.scale, options.mask, work.offset)
        return output, lse if options.return_lse else None
    plan = (schedule if work.fixed else make)(work.pattern, q.shape[2], k.shape[2], work.offset, q.device)
    return attend_blocks(q, k, v, plan, work.options)


def _stacked(q: Tensor, k: Tensor, v: Tensor, work: _Work) -> tuple[Tensor, Tensor | None]:
    """Each head's own pairs with all heads laid end to end, merged with the pairs that all heads have."""
    (batch, heads, n_queries, size), (_, kv_heads, n_keys, _) = q.shape, k.shape
    own, common = apart(work.pattern)
    plan = make_stacked(own, common, (batch, heads, kv_heads, n_queries, n_keys), work.offset, q.device)
    options = work.options._replace(
        mask=None if work.options.mask is None else work.options.mask.repeat_interleave(kv_heads, 0).view(1, -1),
        return_lse=work.options.return_lse or common is not None,
    )
    rows, keys, values = (x.reshape(1, 1, -1, size) for x in (q, k, v))
    output, lse = attend_blocks(rows, keys, values, plan, options)
    output, lse = output.view(q.shape), None if lse is None else lse.view(q.shape[:3])
    if common is None or lse is None:
        return output, lse
    plan = schedule(common, n_queries, n_keys, work.offset, q.device)
    seed = derived_seed((work.options.seed, "common"))
    more, more_lse = attend_blocks(q, k, v, plan, work.options._replace(return_lse=True, seed=seed))
    assert more_lse is not None
    output, lse = merge(output, lse[..., None], more, more_lse[..., None])
    return output.to(q.dtype), lse[..., 0]


def _analog(
    q: Tensor,
    keys: TokenRows,
    values: TokenRows,
    work: _Work,
    hardware: Hardware,
    layer: str,
    place: tuple[int, ...] = (),
) -> tuple[Tensor, Tensor | None]:
    """`_digital` on analog memory; ``place`` tells parts of the batch and heads apart in the draws."""
    if work.pattern.n_sequences is not None:
        return _joined(
            [
                _analog(
                    q[b : b + 1], keys.sequence(b), values.sequence(b), work.sequence(b), hardware, layer, (*place, b)
                )
                for b in range(len(q))
            ],
            0,
            None,
        )
    if work.pattern.n_heads is not None:
        found, order = [], []
        for pattern, heads in work.heads().items():
            own, shared = _indices(q, keys.digits.shape[1], heads)
            parts = (q.index_select(1, own), keys.heads(shared), values.heads(shared))
            found.append(_analog(*parts, work.of_heads(pattern, heads), hardware, layer, (*place, heads[0])))
            order += heads
        return _joined(found, 1, order)
    n_keys, tile = keys.digits.shape[2], hardware.tile.rows
    plan = (schedule if work.fixed else make)(work.pattern, q.shape[2], n_keys, work.offset, q.device, tile)
    if work.counted:
        mask = work.options.mask
        asking = real_queries(mask, q.shape[2], n_keys, work.offset)
        book_reads(layer, q, keys.digits, plan, mask, hardware, asking=asking)
    return attend_analog(q, keys, values, plan, work.options, hardware, (work.options.seed, layer, *place))


def _indices(q: Tensor, kv_heads: int, heads: list[int]) -> tuple[Tensor, Tensor]:
    """Query heads to take, and the key heads that go with them."""
    return torch.tensor(heads, device=q.device), shared_heads(heads, q.shape[1] // kv_heads).to(q.device)


def _joined(
    parts: list[tuple[Tensor, Tensor | None]], dim: int, order: list[int] | None
) -> tuple[Tensor, Tensor | None]:
    """Parts along a dimension as one; ``order`` says where each slice belongs, None: they are in order."""
    outputs, lses = (list(x) for x in zip(*parts, strict=True))
    back = None if order is None else torch.tensor(order).argsort()

    def join(tensors: list[Tensor]) -> Tensor:
        whole = torch.cat(tensors, dim)
        return whole if back is None else whole.index_select(dim, back.to(whole.device))

    return join(outputs), None if lses[0] is None else join(cast(list[Tensor], lses))


def _allowed(pattern: Pattern, q: Tensor, k: Tensor, offset: int) -> Tensor:
    """All pairs of a pattern, bool [B or 1, H or 1, N_queries, N_keys]."""
    query = torch.arange(offset, offset + q.shape[2], device=q.device)[:, None]
    positions = torch.broadcast_tensors(query, torch.arange(k.shape[2], device=q.device)[None, :])
    return torch.stack(
        [
            torch.stack([pattern.sequence(b).head(h).allowed(*positions) for h in range(pattern.n_heads or 1)])
            for b in range(pattern.n_sequences or 1)
        ]
    )


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
    if impl not in get_args(Impl):
        raise InputError(f"impl {impl!r} is not known: choose one of {', '.join(get_args(Impl))}")
    if impl in ("reference", "flex") and dropout:
        raise InputError(f"impl {impl!r} cannot have dropout {dropout!r}: give dropout=0 or impl='blocks'")
    if controller is not None and not isinstance(controller, Controller):
        raise InputError(f"controller {controller!r} is not a Controller: give attention.Controller(platform), or None")
    if hardware is None:
        return
    if not isinstance(hardware, Hardware):
        raise InputError(f"hardware {hardware!r} is not a Hardware: give one of crossbar.presets, or None")
    if controller is not None:
        require_rows(controller, hardware)
    if impl not in ("auto", "blocks"):
        raise InputError(f"impl {impl!r} cannot have hardware: give impl='blocks'")
    require_number("attention seconds", seconds)


def _validate_parts(pattern: Pattern, q: Tensor) -> None:
    for what, found, wanted in (
        ("sequences", pattern.n_sequences, q.shape[0]),
        ("heads", pattern.n_heads, q.shape[1]),
    ):
        if found not in (None, wanted):
            raise InputError(f"patterns for {found} {what} do not fit queries of {wanted}: give one for each")
