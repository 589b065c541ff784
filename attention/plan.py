"""What runs for a call of attention: events first, then the implementation for each part of batch and heads.

`run` selects pairs, sends events where there is a controller, and writes keys and values where there is hardware.
`decide` says which implementation computes a part, and is the only place that does. On analog memory `impl`
names the backend that senses (`crossbar.backends.dispatch`), since the schedule and the softmax are the same for all.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, NamedTuple, cast

import torch
from torch import Tensor

from attention.controller.controller import Controller
from attention.controller.delivery import deliver
from attention.kernel.analog import ReadNoise, attend_analog
from attention.kernel.analog_booking import book_reads, book_writes, real_queries
from attention.kernel.blocks import Options, attend_blocks, exact_dtype, merge, shared_heads
from attention.kernel.coarse import book_screening, lines_of_rows
from attention.kernel.flex import attend_flex, suits
from attention.kernel.fused import Kernels, asked_for, why_not
from attention.kernel.hierarchical import attend_hierarchical, require_own_queries
from attention.kernel.hierarchical_reference import hierarchical_reference
from attention.kernel.masked import make_masked
from attention.kernel.reference import attention_reference
from attention.kernel.schedule import Schedule, make, schedule
from attention.kernel.stacked import make_stacked, split_shared
from attention.kernel.straight_through import straight_through
from attention.kernel.token_rows import TokenRows, write
from attention.patterns.base import Pattern
from attention.patterns.hierarchical import Hierarchical
from attention.patterns.on_device import is_chosen
from attention.patterns.screening import Lines, is_screening, screen
from crossbar.costs.ledger import book, counting
from crossbar.errors import InputError
from crossbar.hardware import Hardware
from crossbar.native import gpu
from crossbar.random.streams import seed as derived_seed

Impl = Literal["auto", "blocks", "flex", "reference"]
"""Implementations of digital attention; ``auto`` is ``flex`` on CUDA where that suits, else ``blocks``."""

Way = Literal["reference", "flex", "masked", "stacked", "sequences", "heads", "analog", "hierarchical", "blocks"]
"""How a part is computed: by an implementation, or (``sequences``, ``heads``) as parts of its own."""

Attended = tuple[Tensor, Tensor | None]
"""Output [B, H, N_queries, D] and, if asked for, log-sum-exp [B, H, N_queries]."""


@dataclass(frozen=True, eq=False)
class Call:
    """A call of `attention.gated_attention` whose arguments fit together; fields as there, and in `Options`."""

    q: Tensor
    k: Tensor
    v: Tensor
    pattern: Pattern
    options: Options
    offset: int = 0
    hardware: Hardware | None = None
    controller: Controller | None = None
    seconds: float = 0.0
    layer: str = "attention"
    impl: str = "auto"
    sinks: Tensor | None = None


class Digital(NamedTuple):
    """Keys and values as numbers, [B, H_kv, N_keys, D] and [B, H_kv, N_keys, D_v]."""

    keys: Tensor
    values: Tensor

    @property
    def shape(self) -> torch.Size:
        """B, H_kv, N_keys and D."""
        return self.keys.shape

    @property
    def value_size(self) -> int:
        """D of the values."""
        return self.values.shape[3]

    def sequence(self, index: int) -> Digital:
        """Those of one sequence of the batch."""
        return Digital(*(x[index : index + 1] for x in self))

    def heads(self, index: Tensor, queries: list[int]) -> Digital:
        """Those of some key heads, which these query heads read."""
        return Digital(*(x.index_select(1, index) for x in self))


@dataclass(frozen=True, eq=False)
class Analog:
    """Keys and values in rows of cells.

    Attributes:
        keys, values: the rows.
        hardware: what they are on.
        layer: keys the counts.
        noise: of the reads, with what part of batch and heads this is.
        backend: that senses, by name; None: as dispatched.
        counted: whether reads are booked from the schedule; if not, they were from events.
    """

    keys: TokenRows
    values: TokenRows
    hardware: Hardware
    layer: str
    noise: ReadNoise
    backend: str | None
    counted: bool

    @property
    def shape(self) -> torch.Size:
        """B, H_kv, N_keys and D."""
        return self.keys.digits.shape

    def sequence(self, index: int) -> Analog:
        """Those of one sequence of the batch."""
        keys, values = self.keys.sequence(index), self.values.sequence(index)
        return replace(self, keys=keys, values=values, noise=self.noise._replace(sequences=(index,)))

    def heads(self, index: Tensor, queries: list[int]) -> Analog:
        """Those of some key heads, which these query heads read."""
        keys, values = self.keys.heads(index), self.values.heads(index)
        return replace(self, keys=keys, values=values, noise=self.noise._replace(heads=tuple(queries)))


class Part(NamedTuple):
    """Queries on keys and values by a static pattern: all of a call, or a part of its batch and heads.

    Attributes:
        q: queries [B, H, N_queries, D].
        memory: keys and values.
        pattern: who attends to whom.
        options: scale, padding, dropout, and whether log-sum-exps are asked for.
        offset: position of the first query.
        fixed: whether the same pattern will be asked for again, so that its schedule is kept.
        impl: the implementation of digital attention.
    """

    q: Tensor
    memory: Digital | Analog
    pattern: Pattern
    options: Options
    offset: int
    fixed: bool
    impl: str

    def sequence(self, b: int) -> Part:
        """What is one sequence's of the batch."""
        options = self.options.sequence(b)._replace(seed=derived_seed((self.options.seed, "sequence", b)))
        q, memory, pattern = self.q[b : b + 1], self.memory.sequence(b), self.pattern.sequence(b)
        return self._replace(q=q, memory=memory, pattern=pattern, options=options)

    def heads(self, pattern: Pattern, heads: list[int]) -> Part:
        """What is that of query heads that have one pattern, with the key heads that go with them."""
        own = gpu.sent(torch.tensor(heads, device="cpu"), self.q.device)
        shared = gpu.sent(shared_heads(heads, self.q.shape[1] // self.memory.shape[1]), self.q.device)
        options = self.options.heads(own)._replace(seed=derived_seed((self.options.seed, "head", heads[0])))
        q, memory = self.q.index_select(1, own), self.memory.heads(shared, heads)
        return self._replace(q=q, memory=memory, pattern=pattern, options=options)

    def schedule(self, tile: int | None = None) -> Schedule:
        """The pattern's schedule, cut at the bounds of tiles where these are given."""
        n_queries, n_keys = self.q.shape[2], self.memory.shape[2]
        return (schedule if self.fixed else make)(self.pattern, n_queries, n_keys, self.offset, self.q.device, tile)


def run(call: Call) -> Attended:
    """The attention that a call asks for.

    Raises:
        InputError: for a pattern that does not fit the queries' heads and sequences or cannot decode from the offset,
            and for what an implementation or the hardware does not have.
    """
    q, k, options, offset = call.q, call.k, call.options, call.offset
    call.pattern.require_decodable(offset)
    fixed, relaxed = call.pattern.is_static, None
    if not fixed and torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, call.v)):
        soft = call.pattern.relaxed()
        if soft != call.pattern:
            plain = Call(q, k, call.v, soft, options._replace(return_lse=True), offset, sinks=call.sinks)
            relaxed = run(plain)
    memory = _memory(call)
    pattern = _selected(call, memory)
    _require_parts(pattern, q)
    delivery = None
    if call.controller is not None:
        delivery = deliver(call.controller, pattern, q, k.shape[2], offset, options.mask, fixed)
        delivery.book(call.layer, q, call.v, call.hardware, options.softcap is not None, options.bias is not None)
        delivery.warn()
        pattern = delivery.scored
    lossy = delivery is not None and delivery.lossy
    options = options._replace(return_lse=options.return_lse or lossy or call.sinks is not None)
    part = Part(q, memory, pattern, options, offset, fixed, call.impl)
    output, lse = attend(part)
    if delivery is not None and lossy:
        # Softmax over the scores that arrived, values of the pairs whose value events arrived.
        output, reached = attend(part._replace(pattern=delivery.valued))
        assert lse is not None
        assert reached is not None
        share = (reached - lse).exp().masked_fill(reached == -torch.inf, 0.0)
        output = (output * share[..., None]).to(q.dtype)
    if call.sinks is not None:
        assert lse is not None
        output = beside_sinks(call.layer, output, lse, call.sinks)
    if relaxed is not None:
        output = straight_through(output, relaxed[0])
        lse = lse if lse is None or relaxed[1] is None else straight_through(lse, relaxed[1])
    return output, lse


def beside_sinks(layer: str, output: Tensor, lse: Tensor, sinks: Tensor) -> Tensor:
    """Outputs [B, H, N_queries, D] of a softmax in which each head has one score more, which has no value (gpt-oss).

    Args:
        layer: whose exponentials are booked, one a query.
        output: of the softmax without it.
        lse: log-sum-exp of the scores [B, H, N_queries].
        sinks: the score of each head, [H], or of each query, [B or 1, H, N_queries or 1].
    """
    if counting():
        book(layer, "special_functions", lse.numel())
    sinks = sinks[:, None] if sinks.dim() == 1 else sinks
    share = (lse - sinks.to(lse.dtype)).sigmoid()
    return (output * share[..., None]).to(output.dtype)


def decide(part: Part) -> Way:
    """How a part is computed.

    Selections are new at every call, so schedules of heads and sequences that differ are made for all at once
    (``stacked``; on a GPU, where the host does not know them, ``masked``); fixed patterns go part by part, whose
    schedules are kept.
    """
    digital, pattern = isinstance(part.memory, Digital), part.pattern
    if digital and part.impl in ("reference", "flex"):
        return cast(Way, part.impl)
    if digital and part.impl == "auto" and part.fixed:
        n_keys, dropout = part.memory.shape[2], part.options.dropout
        plain = part.options.plain and _digital(part).value_size == part.q.shape[3]
        if plain and suits(part.q, n_keys, pattern, part.offset, dropout):
            return "flex"
    if not part.fixed and is_chosen(pattern):
        return "masked"
    own = pattern.n_heads is not None or pattern.n_sequences is not None
    if digital and not part.fixed and own and part.options.bias is None:
        return "stacked"
    if pattern.n_sequences is not None:
        return "sequences"
    if pattern.n_heads is not None:
        return "heads"
    if not digital:
        return "analog"
    return "hierarchical" if isinstance(pattern, Hierarchical) else "blocks"


def attend(part: Part) -> Attended:
    """Compute a part, the way that `decide` gives."""
    return _WAYS[decide(part)](part)


def _selected(call: Call, memory: Digital | Analog) -> Pattern:
    """The static pattern of a call, by the numbers of queries and keys, or by what rows show of them."""
    q, k, mask, offset = call.q, call.k, call.options.mask, call.offset
    pattern = call.pattern.at(k.shape[2])
    if not is_screening(pattern):
        return pattern.select(q, k, mask=mask, offset=offset)
    asking, numbers = real_queries(mask, q.shape[2], k.shape[2], offset), (q, k)
    key = (call.options.seed, call.layer)
    if isinstance(memory, Analog):
        given = q, memory.keys, memory.hardware, key, memory.noise.key
        lines = lines_of_rows(*given, offset=offset, real=mask, asking=asking, numbers=numbers)
    else:
        lines = Lines(q, k, offset, mask, asking, key=key, numbers=numbers)
    chosen, taken = screen(pattern, lines)
    if call.hardware is not None or call.controller is not None:
        book_screening(call.layer, taken, q.shape[3], call.hardware)
    return chosen


def _memory(call: Call) -> Digital | Analog:
    """Keys and values where a call has them: as numbers, or in rows that are written now."""
    hardware = call.hardware
    if hardware is None:
        return Digital(call.k, call.v)
    book_writes(call.layer, call.k, call.v, call.options.mask, hardware)
    keys, values = (
        write(x, hardware, (call.options.seed, call.layer, role), call.seconds)
        for x, role in ((call.k, "keys"), (call.v, "values"))
    )
    backend = None if call.impl in ("auto", "blocks") else call.impl
    noise = ReadNoise((call.options.seed, call.layer, "read"))
    return Analog(keys, values, hardware, call.layer, noise, backend, counted=call.controller is None)


def _reference(part: Part) -> Attended:
    q, pattern, options, (k, v) = part.q, part.pattern, part.options, _digital(part)
    if isinstance(pattern, Hierarchical):
        require_own_queries(pattern, q, k, part.offset)
        require_products(part)
        numbers = pattern.block, pattern.levels, pattern.is_causal, options.scale, options.mask, part.offset
        output, lse = hierarchical_reference(q, k, v, *numbers)
    else:
        allowed = _allowed(pattern, q, k, part.offset)
        allowed = allowed if options.mask is None else allowed & options.mask[:, None, None]
        output, lse = attention_reference(q, k, v, allowed, options.scale, options.bias, options.softcap)
    return output.to(q.dtype), lse.to(exact_dtype(q.dtype))


def _flex(part: Part) -> Attended:
    require_products(part)
    scale, mask, lse = part.options.scale, part.options.mask, part.options.return_lse
    return attend_flex(
        part.q, *_digital(part), part.pattern, scale=scale, padding=mask, offset=part.offset, return_lse=lse
    )


def _stacked(part: Part) -> Attended:
    """Each head's own pairs with all heads laid end to end, merged with the pairs that all heads have."""
    q, (k, v) = part.q, _digital(part)
    (batch, heads, n_queries, _), (_, kv_heads, n_keys, _) = q.shape, k.shape
    own, common = split_shared(part.pattern)
    blocks = make_stacked(own, common, (batch, heads, kv_heads, n_queries, n_keys), part.offset, q.device)
    options = part.options._replace(
        mask=None if part.options.mask is None else part.options.mask.repeat_interleave(kv_heads, 0).view(1, -1),
        return_lse=part.options.return_lse or common is not None,
    )
    rows, keys, values = (x.reshape(1, 1, -1, x.shape[3]) for x in (q, k, v))
    output, lse = attend_blocks(rows, keys, values, blocks, options)
    output, lse = output.view(*q.shape[:3], -1), None if lse is None else lse.view(q.shape[:3])
    if common is None or lse is None:
        return output, lse
    blocks = schedule(common, n_queries, n_keys, part.offset, q.device)
    seed = derived_seed((part.options.seed, "common"))
    more, more_lse = attend_blocks(q, k, v, blocks, part.options._replace(return_lse=True, seed=seed))
    assert more_lse is not None
    output, lse = merge(output, lse[..., None], more, more_lse[..., None])
    return output.to(q.dtype), lse[..., 0]


def _masked(part: Part) -> Attended:
    """All heads of all sequences at once, with pairs that the device knows."""
    tile = part.memory.hardware.tile.rows if isinstance(part.memory, Analog) else None
    shape = *part.q.shape[:3], part.memory.shape[2]
    blocks = make_masked(part.pattern, shape, part.offset, part.q.device, tile)
    if isinstance(part.memory, Digital):
        return attend_blocks(part.q, part.memory.keys, part.memory.values, blocks, part.options)
    return _on_rows(part, blocks, None)


def _sequences(part: Part) -> Attended:
    return _joined([attend(part.sequence(b)) for b in range(len(part.q))], 0, None)


def _heads(part: Part) -> Attended:
    """Heads that have one pattern together."""
    alike: dict[Pattern, list[int]] = {}
    for h in range(part.pattern.n_heads or 0):
        alike.setdefault(part.pattern.head(h), []).append(h)
    found = [attend(part.heads(pattern, heads)) for pattern, heads in alike.items()]
    return _joined(found, 1, [h for heads in alike.values() for h in heads])


def _analog(part: Part) -> Attended:
    memory, options = part.memory, part.options
    assert isinstance(memory, Analog)
    hardware, fused = memory.hardware, None
    n_keys, wide = memory.shape[2], memory.values.digits.shape[3]
    if asked_for(memory.backend, part.q.device) and why_not(part.q, n_keys, hardware, options, wide) is None:
        fused = Kernels.of(part.q, part.pattern, n_keys, part.offset, hardware)
    return _on_rows(part, part.schedule(hardware.tile.rows), fused)


def _on_rows(part: Part, blocks: Schedule, fused: Kernels | None) -> Attended:
    """Attention on analog rows by a schedule, with its counts."""
    memory, options = part.memory, part.options
    assert isinstance(memory, Analog)
    hardware, layer = memory.hardware, memory.layer
    if memory.counted:
        asking = real_queries(options.mask, part.q.shape[2], memory.shape[2], part.offset)
        digits = memory.keys.digits, memory.values.digits
        capped, biased = options.softcap is not None, options.bias is not None
        book_reads(layer, part.q, *digits, blocks, options.mask, hardware, asking=asking, capped=capped, biased=biased)
    rows = memory.keys, memory.values
    return attend_analog(part.q, *rows, blocks, options, hardware, memory.noise, memory.backend, fused)


def _hierarchical(part: Part) -> Attended:
    pattern, options = part.pattern, part.options
    assert isinstance(pattern, Hierarchical)
    require_products(part)
    if options.dropout:
        raise InputError(f"pattern {str(pattern)!r} cannot have dropout: give dropout=0")
    output, lse = attend_hierarchical(part.q, *_digital(part), pattern, options.scale, options.mask, part.offset)
    return output, lse if options.return_lse else None


def _blocks(part: Part) -> Attended:
    return attend_blocks(part.q, *_digital(part), part.schedule(), part.options)


_WAYS: dict[Way, Callable[[Part], Attended]] = {
    "reference": _reference,
    "flex": _flex,
    "masked": _masked,
    "stacked": _stacked,
    "sequences": _sequences,
    "heads": _heads,
    "analog": _analog,
    "hierarchical": _hierarchical,
    "blocks": _blocks,
}


def _digital(part: Part) -> Digital:
    assert isinstance(part.memory, Digital)  # as `decide` has it
    return part.memory


def _joined(parts: list[Attended], dim: int, order: list[int] | None) -> Attended:
    """Parts along a dimension as one; ``order`` says where each slice belongs, None: they are in order."""
    outputs, lses = (list(x) for x in zip(*parts, strict=True))
    back = None if order is None else torch.tensor(order, device="cpu").argsort()

    def join(tensors: list[Tensor]) -> Tensor:
        whole = torch.cat(tensors, dim)
        return whole if back is None else whole.index_select(dim, gpu.sent(back, whole.device))

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


def require_products(part: Part) -> None:
    """Refuse soft caps, biases and values of another width than keys, for implementations that have none."""
    if not part.options.plain or _digital(part).value_size != part.q.shape[3]:
        what = str(part.pattern) if isinstance(part.pattern, Hierarchical) else "impl 'flex'"
        raise InputError(
            f"{what} cannot have soft caps or biases of scores, or values of another width than keys: give a pattern "
            "of pairs, and impl='blocks'"
        )


def _require_parts(pattern: Pattern, q: Tensor) -> None:
    """Refuse a pattern of other numbers of sequences and heads than the queries'."""
    for what, found, wanted in (
        ("sequences", pattern.n_sequences, q.shape[0]),
        ("heads", pattern.n_heads, q.shape[1]),
    ):
        if found not in (None, wanted):
            raise InputError(f"patterns for {found} {what} do not fit queries of {wanted}: give one for each")
