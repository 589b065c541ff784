"""What lines compute when events reach them, in exact integers.

Both functions take events in any order and of any part of a stream, as a network may deliver them.
"""

from __future__ import annotations

import torch
from torch import Tensor

from attention.controller.events import Axis, Events, Placement
from crossbar.errors import InputError


def score(events: Events, placement: Placement, q: Tensor, k: Tensor) -> Tensor:
    """The dot product of query and key that each score event senses, int64 [score events], in the events' order.

    Args:
        events: delivered events; those of the value stage are passed over.
        placement: the placement that the events were made with.
        q: integer queries [N_queries, D].
        k: integer keys [N_keys, D].

    Raises:
        InputError: for tensors that are not integers or events on lines without a token.
    """
    _require_integers(q=q, k=k)
    sensed = events.of(Axis.COL)
    query, token = sensed.query.long().to(q.device), placement.tokens(sensed).to(k.device)
    return (q.long()[query] * k.long()[token]).sum(1)


def accumulate(events: Events, placement: Placement, v: Tensor, n_queries: int) -> Tensor:
    """The sum of values that value events drive, each times its payload: int64 [N_queries, D].

    Args:
        events: delivered events, with weights set by `Events.with_weights`; those of the score stage are passed over.
        placement: the placement that the events were made with.
        v: integer values [N_keys, D].
        n_queries: rows of the result; a query without events gives 0.

    Raises:
        InputError: for values that are not integers or events on lines without a token.
    """
    _require_integers(v=v)
    driven = events.of(Axis.ROW)
    output = torch.zeros(n_queries, v.shape[1], dtype=torch.int64, device=v.device)
    query, payload, token = (
        x.to(v.device) for x in (driven.query.long(), driven.payload.long(), placement.tokens(driven))
    )
    return output.index_add_(0, query, payload[:, None] * v.long()[token])


def _require_integers(**tensors: Tensor) -> None:
    for name, tensor in tensors.items():
        if tensor.is_floating_point() or tensor.is_complex() or tensor.dim() != 2:
            raise InputError(f"{name} {tensor.dtype} {list(tensor.shape)} does not fit: give integers [N, D]")
