"""Thresholds of rows that spike: for each head, so that a wanted share of the pairs is open."""

from __future__ import annotations

import math
from collections.abc import Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn

from attention import Pattern
from attention.hf.attach import scores_seen, set_thresholds, thresholds
from attention.patterns.base import Union
from attention.patterns.on_device import pairs
from calibration.models.embedding import Batch, evaluating
from calibration.models.outputs import device_of
from calibration.steps.observe import digital
from calibration.steps.protocol import Fitted, Stage
from crossbar import AnalogLinear
from crossbar.costs.ledger import unbooked
from crossbar.errors import InputError, require_number

_SCORES = 2**22  # of a layer and batch that are looked at: bounds memory
_NEVER = 1e6  # a threshold that nothing passes


@dataclass(frozen=True)
class ScreeningThresholds:
    """Find the thresholds of `attention.Spiking` with which a share of each head's pairs is open.

    The digital model runs with all pairs open, and each head gets the score that as many pairs exceed as are wanted,
    over all calibration batches. Pairs that a window or sinks beside it (``|``) open anyway count among the share, so a
    head whose share they fill gets a threshold that nothing passes. Of long sequences some queries are looked at,
    evenly spread.

    Attributes:
        share: of the pairs that attention may have, causal ones in a causal model; above 0 up to 1.
    """

    stage: ClassVar[Stage] = Stage.BEFORE_PROGRAMMING
    share: float = 0.25

    def __post_init__(self) -> None:
        require_number("ScreeningThresholds share", self.share, above=0, most=1)

    @torch.no_grad()
    def fit(self, model: nn.Module, batches: Iterable[Batch]) -> Fitted:
        """``<layer>.thresholds``, float32 [H], in units of q · k / √D.

        Raises:
            InputError: for a model that is attached to no pattern with ``spiking``.
        """
        if not thresholds(model):
            raise InputError("ScreeningThresholds needs a pattern with spiking(...): attach one such as 'spiking(1)'")
        seen: dict[str, list[Tensor]] = {}  # scores of pairs that spikes would open
        pairs_of: dict[str, tuple[int, int]] = {}  # all pairs of a head, and those that are open anyway

        def see(name: str, pattern: Pattern, q: Tensor, k: Tensor, mask: Tensor | None, offset: int) -> None:
            scores, every, anyway = _scores(pattern, q, k, mask, offset)
            seen.setdefault(name, []).append(scores)
            before = pairs_of.get(name, (0, 0))
            pairs_of[name] = before[0] + every, before[1] + anyway

        device = device_of(model)
        has_tiles = any(isinstance(module, AnalogLinear) for module in model.modules())
        plain = digital(model) if has_tiles else nullcontext()
        with plain, evaluating(model), unbooked(), scores_seen(model, see):
            for batch in batches:
                model(**{name: tensor.to(device) for name, tensor in batch.items()})
        return {
            f"{name}.thresholds": _least(torch.cat(scores, 1), round(self.share * every) - anyway)
            for name, scores in seen.items()
            for every, anyway in (pairs_of[name],)
        }

    def apply(self, model: nn.Module, fitted: Fitted) -> None:
        """Give the layers' rows these thresholds."""
        set_thresholds(model, {name.removesuffix(".thresholds"): values for name, values in fitted.items()})


def _scores(pattern: Pattern, q: Tensor, k: Tensor, mask: Tensor | None, offset: int) -> tuple[Tensor, int, int]:
    """Scores of a layer's pairs that nothing else opens [H, n], and how many pairs of a head there are, and are open.

    Args:
        pattern: who attends to whom.
        q: queries [B, H, N_queries, D].
        k: keys [B, H_kv, N_keys, D].
        mask: padding, bool [B, N_keys], True for a real key.
        offset: position of the first query.
    """
    (batch, heads, queries, size), keys = q.shape, k.shape[2]
    step = max(1, math.ceil(batch * heads * queries * keys / _SCORES))
    chosen = torch.arange(step // 2, queries, step, device=q.device)
    wide = k.repeat_interleave(heads // k.shape[1], 1)
    scores = (q[:, :, chosen].float() @ wide.float().transpose(2, 3)) / math.sqrt(size)
    there = torch.ones(batch, len(chosen), keys, dtype=torch.bool, device=q.device)
    if pattern.is_causal:
        there &= torch.arange(keys, device=q.device) <= (chosen + offset)[:, None]
    if mask is not None:
        there &= mask[:, None]
        if offset + queries == keys:
            there &= mask[:, offset:][:, chosen, None]
    static = [part for part in (pattern.parts if isinstance(pattern, Union) else ()) if part.is_static]
    anyway = torch.zeros_like(there)
    for part in static:
        if part.n_heads is None and part.n_sequences is None:
            of_all = pairs(part, (queries, keys), offset, q.device, (0, queries), keys)
            anyway |= of_all[0, 0, chosen]
    left = there & ~anyway
    return scores.transpose(0, 1)[:, left], int(there.sum()), int((there & anyway).sum())


def _least(scores: Tensor, count: int) -> Tensor:
    """For each head a threshold that ``count`` of its scores [H, n] exceed, between two of them."""
    heads, total = scores.shape
    if count <= 0 or not total:
        return torch.full((heads,), _NEVER, device="cpu")
    if count >= total:
        return (scores.amin(1) - 1).cpu()
    ordered = scores.topk(count + 1, 1).values
    return ((ordered[:, count - 1] + ordered[:, count]) / 2).cpu()
