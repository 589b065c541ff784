"""Attention inside clusters of tokens, which are found by learned centroids (Roy, TACL 9, 2021)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
from torch import Tensor

from attention.patterns import selection
from attention.patterns.base import Compound, Pattern
from attention.patterns.family import Constant, Family
from attention.patterns.heads import PerHead, per_sequence
from attention.patterns.intervals import Spans
from attention.patterns.rows import LARGEST
from attention.patterns.selection import Chosen, Selected, Selecting, require_scores
from crossbar.errors import InputError, require_whole
from crossbar.native import gpu
from crossbar.random.streams import normal

_MOST_CLUSTERS = 4096  # each token is compared with each; √n of n tokens are usual


class Centroids(Protocol):
    """What tells how near tokens are to the centre of each cluster; hashable. `attention.Router` learns it."""

    def similarity(self, x: Tensor) -> Tensor:
        """Of queries or keys ``x [B, H, N, D]`` with each centroid, ``[B, H, N, C]``."""


@dataclass(frozen=True)
class Routing(Selecting):
    """Tokens attend inside clusters: queries and keys near one centroid. Text ``routing(8, 64)``.

    Each cluster takes the ``top`` queries and the ``top`` keys that are most similar to its centroid, and its queries
    attend its keys. A query that no cluster takes attends the keys of the cluster most similar to it, so that no output
    is 0 in silence. A key that no cluster takes is attended by none: unite with a window for that, as in
    ``routing(8, 64) | window(32)``.

    What a cluster takes of a whole sequence looks ahead. So causal: a query attends the last ``top`` keys j <= i whose
    most similar centroid is also its own; itself where there is none. Decoding step by step gives the same.

    Args:
        clusters: centroids of each head.
        top: tokens of a cluster, w.
        seed: key of the centroids while they are not learned: random directions, another draw for each head.
        centroids: learned ones (`attention.Router`); None: those of the seed.

    Raises:
        InputError: for numbers below 1, and a negative seed.
    """

    clusters: int
    top: int
    seed: int = 0
    centroids: Centroids | None = None
    name: ClassVar[str] = "routing"
    cost: ClassVar[str] = "O(n w), routing O(n c)"

    def __post_init__(self) -> None:
        require_whole("routing clusters", self.clusters, least=1, most=_MOST_CLUSTERS)
        require_whole("routing top", self.top, least=1, most=LARGEST)
        require_whole("routing seed", self.seed, least=0, most=LARGEST)

    def select(self, q: Tensor, k: Tensor, *, mask: Tensor | None = None, offset: int = 0) -> Pattern:
        """See `Pattern.select`; O(n (C + w)) time and memory. No gradient flows through the choice.

        Bidirectional with as many queries as keys, ``mask`` also keeps padding from being taken as queries.
        """
        require_scores(q, k, mask)
        require_whole("offset", offset, least=0, most=LARGEST)
        (batch, heads), n_keys = q.shape[:2], k.shape[2]
        where = q.device
        real = torch.ones(batch, n_keys, dtype=torch.bool, device=where) if mask is None else mask
        with torch.no_grad():
            near_q, near_k = self._similarity(q), self._similarity(k.repeat_interleave(heads // k.shape[1], 1))
            real = real[:, None].expand(-1, heads, -1)
            if self.is_causal:
                keys, first, last, order = self._last_keys(near_q, near_k, real, offset)
                if selection.stays(where):
                    return Chosen(_Clusters(keys, first, last, order, offset), str(self), is_causal=True)
                return per_sequence(
                    batch,
                    lambda b: PerHead(
                        [Clustered(keys[b, h], first[b, h], last[b, h], order[b, h], offset) for h in range(heads)]
                    ),
                )
            keys, takes, order = self._taken(near_q, near_k, real, offset)
            if selection.stays(where):
                return Chosen(_Taken(_members(keys, n_keys), takes, order, offset), str(self))
            start = self._top_keys(keys, takes, n_keys)
            stop = torch.where(start < n_keys, start + 1, start)
            return per_sequence(
                batch,
                lambda b: PerHead([Selected(start[b, h], stop[b, h], offset, order[b, h]) for h in range(heads)]),
            )

    def bare_text(self) -> str:
        """For example ``routing(8, 64)``; a description where the centroids are learned."""
        text = f"{self.name}({self.clusters}, {self.top}{f', {self.seed}' if self.seed else ''})"
        return text if self.centroids is None else f"<{text} by learned centroids>"

    def _similarity(self, x: Tensor) -> Tensor:
        if self.centroids is not None:
            return self.centroids.similarity(x)
        directions = random_directions(x.shape[1], self.clusters, x.shape[3], self.seed)
        return similarity(x, gpu.sent(directions, x.device))

    def _last_keys(
        self, near_q: Tensor, near_k: Tensor, real: Tensor, offset: int
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """For each query the last keys of its cluster: what `Clustered` takes, with [B, H] before its dimensions.

        Args:
            near_q, near_k: similarities, [B, H, N_queries, C] and [B, H, N_keys, C].
            real: bool [B, H, N_keys], False for padding.
            offset: position of the first query.
        """
        n_queries, n_keys = near_q.shape[2], near_k.shape[2]
        own, cluster = near_q.argmax(3), torch.where(real, near_k.argmax(3), self.clusters)
        by_cluster = cluster.argsort(dim=2, stable=True)  # keys of a cluster next to one another, in their order
        members = torch.zeros(
            *cluster.shape[:2], self.clusters + 1, n_keys + 1, dtype=torch.int32, device=near_q.device
        )
        members[..., 1:].scatter_(2, cluster[:, :, None], 1)
        members = members.cumsum(3)  # [cluster, j]: how many of its keys stand before j
        first = members[..., -1].cumsum(2) - members[..., -1]
        position = torch.arange(offset, offset + n_queries, device=near_q.device)
        until = (position + 1).clamp(max=n_keys)
        before = members.flatten(2).gather(2, own * (n_keys + 1) + until)
        end = first.gather(2, own) + before
        begin = end - before.clamp(max=self.top)
        here = position.clamp(max=n_keys - 1)
        alone = (before == 0) & (position < n_keys) & real[:, :, here]
        itself = by_cluster.argsort(2)[:, :, here]  # the place of the query's own token
        begin, end = torch.where(alone, itself, begin), torch.where(alone, itself + 1, end)
        return by_cluster, begin, end, own.argsort(dim=2, stable=True)

    def _taken(self, near_q: Tensor, near_k: Tensor, real: Tensor, offset: int) -> tuple[Tensor, Tensor, Tensor]:
        """Keys of each cluster, and which take each query; arguments as in `_last_keys`.

        Returns:
            Keys [B, H, C, w], N_keys where there is none; bool [B, H, N_queries, C]; queries of a cluster next to one
            another.
        """
        n_queries, n_keys = near_q.shape[2], near_k.shape[2]
        values, keys = near_k.masked_fill(~real[..., None], -torch.inf).topk(min(self.top, n_keys), 2)
        keys = torch.where(values == -torch.inf, n_keys, keys).transpose(2, 3)
        nearest = near_q.argmax(3, keepdim=True)
        if n_queries == n_keys and offset == 0:  # then padding is known among queries too
            near_q = near_q.masked_fill(~real[..., None], -torch.inf)
        values, taken = near_q.topk(min(self.top, n_queries), 2)
        takes = torch.zeros(*near_q.shape[:3], self.clusters, dtype=torch.bool, device=near_q.device)
        takes.scatter_(2, taken, values > -torch.inf)
        takes.scatter_(3, nearest, takes.gather(3, nearest) | ~takes.any(3, keepdim=True))
        return keys, takes, nearest[..., 0].argsort(dim=2, stable=True)

    def _top_keys(self, keys: Tensor, takes: Tensor, n_keys: int) -> Tensor:
        """For each query all keys of the clusters that take it, [B, H, N_queries, S], N_keys where there is none."""
        most = int(takes.sum(3).max())
        if most * keys.shape[3] > n_keys:  # then a row for each query that names every key is the smaller table
            attended = takes.to(torch.float32) @ _members(keys, n_keys) > 0
            return torch.where(attended, torch.arange(n_keys, device="cpu"), n_keys)
        # Each query's clusters, rising, and after them a cluster that has no keys.
        keys = torch.cat([keys, keys.new_full((*keys.shape[:2], 1, keys.shape[3]), n_keys)], 2)
        numbers = torch.where(takes, torch.arange(self.clusters, device="cpu"), self.clusters)
        clusters = numbers.sort(3).values[..., :most]
        place = clusters.flatten(2)[..., None].expand(-1, -1, -1, keys.shape[3])
        return keys.gather(2, place).view(*clusters.shape[:3], -1)


def _members(keys: Tensor, n_keys: int) -> Tensor:
    """Which keys clusters have, float32 0 or 1 [B, H, C, N_keys]; ``keys`` as `Routing._taken` gives them."""
    member = torch.zeros(*keys.shape[:3], n_keys + 1, device=keys.device).scatter_(3, keys, 1.0)
    return member[..., :n_keys]


@dataclass(frozen=True)
class _Clusters:
    """A `Choice`: what `Clustered` takes, with [B, H] before its dimensions."""

    keys: Tensor
    begin: Tensor
    end: Tensor
    order: Tensor
    offset: int

    @property
    def shape(self) -> tuple[int, int]:
        """B and H."""
        return self.keys.shape[0], self.keys.shape[1]

    def pairs(self, first: int, last: int, n_keys: int) -> Tensor:
        """See `Choice.pairs`."""
        place = self.keys.argsort(2)[:, :, None, :n_keys]
        begin, end = (x[:, :, first:last, None] for x in (self.begin, self.end))
        return (place >= begin) & (place < end)

    def part(self, sequences: slice, heads: slice) -> _Clusters:
        """See `Choice.part`."""
        keys, begin, end, order = (x[sequences, heads] for x in (self.keys, self.begin, self.end, self.order))
        return _Clusters(keys, begin, end, order, self.offset)

    def pattern(self) -> Clustered:
        """See `Choice.pattern`."""
        keys, begin, end, order = (x[0, 0].cpu() for x in (self.keys, self.begin, self.end, self.order))
        return Clustered(keys, begin, end, order, self.offset)


@dataclass(frozen=True)
class _Taken:
    """A `Choice`: `_members`, and which clusters take each query, bool [B, H, N_queries, C]."""

    members: Tensor
    takes: Tensor
    order: Tensor
    offset: int

    @property
    def shape(self) -> tuple[int, int]:
        """B and H."""
        return self.takes.shape[0], self.takes.shape[1]

    def pairs(self, first: int, last: int, n_keys: int) -> Tensor:
        """See `Choice.pairs`."""
        return self.takes[:, :, first:last].to(self.members.dtype) @ self.members[..., :n_keys] > 0

    def part(self, sequences: slice, heads: slice) -> _Taken:
        """See `Choice.part`."""
        members, takes, order = (x[sequences, heads] for x in (self.members, self.takes, self.order))
        return _Taken(members, takes, order, self.offset)

    def pattern(self) -> Selected:
        """See `Choice.pattern`."""
        attended = (self.takes[0, 0].to(self.members.dtype) @ self.members[0, 0] > 0).cpu()
        n_keys = attended.shape[1]
        start = torch.where(attended, torch.arange(n_keys, device="cpu"), n_keys)
        return Selected(start, torch.where(attended, start + 1, start), self.offset, self.order[0, 0].cpu())


@dataclass(frozen=True)
class Clustered(Family):
    """Keys in an order of their own, of which each query attends an unbroken range of past ones: causal `Routing`.

    Args:
        keys: int64 [N_keys], positions in that order.
        begin: int64 [N_queries], the first place in it that each query attends.
        end: int64 [N_queries], after the last place.
        order: int64 [N_queries], rows in an order in which neighbours share keys.
        offset: position of the first query that is listed.
    """

    keys: Tensor = field(compare=False)
    begin: Tensor = field(compare=False)
    end: Tensor = field(compare=False)
    order: Tensor = field(compare=False, repr=False)
    offset: int = 0
    is_causal: bool = field(default=True, kw_only=True)
    _content: Constant = field(init=False, repr=False)
    name: ClassVar[str] = "clustered"
    cost: ClassVar[str] = "O(n w)"
    shift_invariant: ClassVar[bool] = False

    def __post_init__(self) -> None:
        content = Constant(torch.cat([self.keys, self.begin, self.end]))
        object.__setattr__(self, "_content", content)
        for name, part in zip(
            ("keys", "begin", "end"), content.tensor.split([len(self.keys), *[len(self.begin)] * 2]), strict=True
        ):
            object.__setattr__(self, name, part)

    def allowed(self, query: Tensor, key: Tensor) -> Tensor:
        """Whether the key's place is in the query's range; nothing for queries and keys that are not listed."""
        row = query - self.offset
        listed = (row >= 0) & (row < len(self.begin)) & (key >= 0) & (key < len(self.keys))
        row, key = torch.where(listed, row, 0), torch.where(listed, key, 0)
        begin, end, place = (x.to(query.device) for x in (self.begin, self.end, self.keys.argsort()))
        return listed & (place[key] >= begin[row]) & (place[key] < end[row])

    def spans(self, query: Tensor, n_keys: int) -> Spans:
        """An interval of one key for each key of the range."""
        row = query - self.offset
        if int(row.min()) < 0 or int(row.max()) >= len(self.begin):
            raise InputError(
                f"{self.bare_text()} hold none for some of the queries: select with those that will attend"
            )
        begin, end = self.begin.index_select(0, row), self.end.index_select(0, row)
        place = begin[:, None] + torch.arange(max(1, int((end - begin).max())), device="cpu")
        keys = torch.where(
            place < end[:, None], self.keys[place.clamp(max=len(self.keys) - 1)], max(n_keys, len(self.keys))
        )
        start = keys.sort(1).values
        return Spans(start, start + 1)

    def bare_text(self) -> str:
        """For example ``<clusters of queries 0 to 99>``."""
        return f"<clusters of queries {self.offset} to {self.offset + len(self.begin) - 1}>"


def similarity(x: Tensor, centroids: Tensor) -> Tensor:
    """Dot products of ``x [B, H, N, D]``, L2-normalised, with centroids ``[H, C, D]``: ``[B, H, N, C]``."""
    x = unit(x)
    return x @ centroids.transpose(1, 2).to(x.dtype)


def unit(x: Tensor) -> Tensor:
    """Vectors of length 1, in float32 or better."""
    x = x if x.dtype == torch.float64 else x.float()
    return torch.nn.functional.normalize(x, dim=-1)


def random_directions(heads: int, clusters: int, size: int, seed: int) -> Tensor:
    """Unit vectors ``[H, C, D]``, the same for a head whatever the number of heads."""
    return unit(torch.stack([normal((clusters, size), (seed, "routing", head)) for head in range(heads)]))


def routings(pattern: Pattern) -> list[Routing]:
    """The different `Routing` parts of a pattern."""
    if isinstance(pattern, Routing):
        return [pattern]
    parts = pattern.parts if isinstance(pattern, Compound) else ()
    return list(dict.fromkeys(found for part in parts for found in routings(part)))


def rerouted(pattern: Pattern, change: Callable[[Routing], Pattern]) -> Pattern:
    """The pattern with another in the place of each of its `Routing` parts."""
    if isinstance(pattern, Routing):
        return change(pattern)
    return pattern.each(lambda part: rerouted(part, change)) if isinstance(pattern, Compound) else pattern
