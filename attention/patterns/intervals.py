"""Sets of keys as half-open intervals, a row of intervals for each query."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor


class Spans(NamedTuple):
    """Attended keys as half-open intervals: query row i attends ``start[i, s] <= j < stop[i, s]`` for every s.

    Shapes: int64 [N_queries, S] both. Intervals may overlap, be empty, come in any order, and reach past the keys.
    """

    start: Tensor
    stop: Tensor


def disjoint(spans: Spans, n_keys: int) -> Spans:
    """The same keys in disjoint, sorted intervals inside 0 to n_keys, where ``start <= stop``."""
    start, stop = spans.start.clamp(0, n_keys), spans.stop.clamp(0, n_keys)
    # An empty interval must not claim keys: put it where it starts, so that it never moves the next one's start.
    stop = torch.maximum(start, stop)
    if start.shape[1] <= 1:
        return Spans(start, stop)
    if bool((start[:, 1:] < start[:, :-1]).any()):
        start, order = start.sort(1)
        stop = stop.gather(1, order)
    claimed = torch.cummax(stop, 1).values  # keys below this are in an earlier interval
    start[:, 1:] = torch.maximum(start[:, 1:], claimed[:, :-1])
    return Spans(start, torch.maximum(start, stop))


def overlap(a: Spans, b: Spans, n_keys: int) -> Spans:
    """The keys of both, in at most as many intervals as both have bounds: never every interval with every other."""
    if a.start.shape[1] == 1 or b.start.shape[1] == 1:
        return Spans(torch.maximum(a.start, b.start), torch.minimum(a.stop, b.stop))
    a, b = disjoint(a, n_keys), disjoint(b, n_keys)
    bounds, order = torch.cat([a.start, b.start, a.stop, b.stop], 1).sort(1)
    opens = order < a.start.shape[1] + b.start.shape[1]
    open_now = torch.where(opens, 1, -1).cumsum(1)  # intervals of a and b that hold the keys up to the next bound
    inside = open_now[:, :-1] == 2
    return Spans(bounds[:, :-1], torch.where(inside, bounds[:, 1:], bounds[:, :-1]))


def runs(chosen: Tensor) -> Spans:
    """Each row's unbroken runs of True in a bool tensor [N_queries, N_keys], rising."""
    n_rows, n_keys = chosen.shape
    edges = torch.zeros(n_rows, n_keys + 2, dtype=torch.int8, device=chosen.device)
    edges[:, 1:-1] = chosen
    edges = edges.diff(dim=1)
    row, start = (edges == 1).nonzero(as_tuple=True)
    stop = (edges == -1).nonzero(as_tuple=True)[1]
    return padded(row, start, stop, n_rows, n_keys)


def padded(row: Tensor, start: Tensor, stop: Tensor, n_rows: int, n_keys: int) -> Spans:
    """Intervals as a table; each stands in a ``row`` (rising), and missing ones are empty and stand after all keys."""
    count = torch.bincount(row, minlength=n_rows)
    place = torch.arange(len(row), device=row.device) - (count.cumsum(0) - count)[row]
    shape = (n_rows, int(count.max()) if len(row) else 1)
    table = Spans(start.new_full(shape, n_keys), stop.new_full(shape, n_keys))
    table.start[row, place] = start
    table.stop[row, place] = stop
    return table


def repeat(x: Tensor, times: Tensor) -> Tensor:
    """Each entry of ``x`` as often as ``times`` says: ``torch.repeat_interleave`` that wakes no threads."""
    return torch.from_numpy(np.repeat(x.numpy(), times.numpy()))
