"""Centroids that learn where tokens are, in digital, and may then stand in tiles."""

from __future__ import annotations

from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from attention.patterns.base import Pattern
from attention.patterns.routing import random_directions, rerouted, routings, similarity, unit
from attention.patterns.tokens import Dense
from crossbar import AnalogLinear
from crossbar.errors import InputError, require_number, require_whole
from crossbar.hardware import Hardware
from crossbar.nn.convert import ConversionReport, LayerReport
from crossbar.random.streams import uniform
from crossbar.tiles.mapping import tile_grid

_STEPS = 10  # of k-means, from random tokens


class Router(nn.Module):
    """The centroids of one attention layer's `Routing`, learned from its queries and keys (Roy, TACL 9, 2021).

    In training mode each call moves the centroids towards the mean of the L2-normalised queries and keys nearest to
    them, by an exponential average that is brought to length 1; the first call starts them at random tokens and takes
    10 steps of k-means. No gradient flows through the choice: `loss` draws tokens towards their centroids instead. Add
    it to what is minimised.

    Where queries and keys are learned from nothing, clusters of them mean nothing at first, and what routing keeps
    apart is never learned. So let the first ``wait`` calls attend everywhere, best on short sequences.

    ```
    router = Router(parse("routing(8, 32) | window(16)").causal(), heads=4, size=64)
    out = gated_attention(q, k, v, router(q, k))
    ```

    Args:
        pattern: a pattern with one kind of `Routing` in it.
        heads: attention heads.
        size: numbers of a query, D.
        decay: what stays of a centroid at each step; with 1 they stay random directions, which others compare with.
        commitment: weight of `loss`.
        seed: key of the tokens that centroids start from.
        wait: so many first calls in training mode learn nothing. Until centroids start, `Dense` takes the place of
            routing, in evaluation too. With 0 random directions route until then.

    Attributes:
        pattern: the pattern, routed by these centroids.
        centroids: ``[H, C, D]``; random directions until trained.
        started: whether they were.
        waited: calls in training mode before they were.
        loss: commitment of the last call in training mode, 0-d; None before.
        tiles: an analog layer for each head that computes similarities, once placed (`place`); else None.

    Raises:
        InputError: for a pattern without routing or with different ones, and impossible numbers.
    """

    centroids: Tensor
    started: Tensor
    waited: Tensor

    def __init__(
        self,
        pattern: Pattern,
        heads: int,
        size: int,
        *,
        decay: float = 0.999,
        commitment: float = 1e-4,
        seed: int = 0,
        wait: int = 0,
    ) -> None:
        super().__init__()
        require_whole("router heads", heads, least=1)
        require_whole("router size", size, least=1)
        require_number("router decay", decay)
        require_number("router commitment", commitment)
        require_whole("router wait", wait, least=0)
        found = routings(pattern)
        if len({(routing.clusters, routing.seed) for routing in found}) != 1 or decay > 1:
            raise InputError(
                f"a router cannot have pattern {str(pattern)!r} and decay {decay}: give one kind of routing(...) in "
                "the pattern and a decay from 0 to 1"
            )
        self.decay, self.commitment, self.seed, self.wait = decay, commitment, seed, wait
        directions = random_directions(heads, found[0].clusters, size, found[0].seed)
        self.register_buffer("centroids", directions)
        self.register_buffer("started", torch.tensor(False))
        self.register_buffer("waited", torch.tensor(0))
        self.loss: Tensor | None = None
        self.tiles: nn.ModuleList | None = None
        self.pattern = rerouted(pattern, lambda routing: replace(routing, centroids=self))
        self._open = rerouted(pattern, lambda routing: Dense(is_causal=routing.is_causal))

    def forward(self, q: Tensor, k: Tensor, mask: Tensor | None = None) -> Pattern:
        """The pattern, for ``q [B, H, N, D]`` and ``k [B, H_kv, N, D]``; in training mode after learning from them.

        Args:
            q: queries.
            k: keys.
            mask: padding, bool [B, N], True for a real token; others are not learned from.
        """
        if self.training and torch.is_grad_enabled():
            # A backward pass that computes the layer again must not learn twice, but compute the same.
            again = torch._C._current_graph_task_id() != -1
            if self._waits and not again and self.waited < self.wait:
                self.waited += 1
            elif not (self._waits and again):
                self._learn(q, k.repeat_interleave(q.shape[1] // k.shape[1], 1), mask, again)
        return self._open if self._waits else self.pattern

    @property
    def _waits(self) -> bool:
        return self.wait > 0 and not bool(self.started)

    def similarity(self, x: Tensor) -> Tensor:
        """Of ``x [B, H, N, D]``, L2-normalised, with the centroids, ``[B, H, N, C]``: by the tiles where placed."""
        if self.tiles is None:
            return similarity(x, self.centroids)
        return torch.stack([tile(unit(x[:, head])) for head, tile in enumerate(self.tiles)], 1)

    def place(self, hardware: Hardware, name: str = "router") -> None:
        """Put the centroids, as they are now, in tiles that are not programmed yet: D rows, a column a centroid.

        Similarities are then read with the chip's converters, noise, programming error and drift, and booked.

        Args:
            hardware: cells, tiles and converters.
            name: keys the random streams and the counts: unique in a model.

        Raises:
            InputError: while the router waits.
        """
        if self._waits:
            raise InputError(
                f"{name} still waits, {int(self.waited)} of {self.wait} steps, and attends everywhere: train on before "
                "placing its centroids"
            )
        tiles = []
        for head, centroids in enumerate(self.centroids):
            tiles.append(AnalogLinear.from_matrix(centroids.clone(), hardware, f"{name}.tiles.{head}"))
        self.tiles = nn.ModuleList(tiles)

    def lift(self) -> None:
        """Compute similarities in digital again."""
        self.tiles = None

    def _learn(self, q: Tensor, k: Tensor, mask: Tensor | None, again: bool) -> None:
        if self.tiles is not None:
            raise InputError("centroids in tiles do not learn: call lift() before training and place() after it")
        tokens = torch.cat([unit(x).transpose(0, 1).flatten(1, 2) for x in (q, k)], 1)  # [H, 2 B N, D]
        if mask is not None:
            tokens = tokens[:, mask.flatten().repeat(2)]
        # In 16 bits a step of a thousandth would round to none.
        dtype = torch.promote_types(self.centroids.dtype, torch.float32)
        points = tokens.detach().to(dtype)
        if not again:
            self.centroids = self.centroids.to(dtype)
            if not bool(self.started):
                self._start(points)
            if self.decay < 1:
                self.centroids = _moved(points, self.centroids, self.decay)
        own = self.centroids.to(dtype).gather(
            1, _nearest(points, self.centroids.to(dtype))[..., None].expand_as(points)
        )
        loss = self.commitment * F.mse_loss(tokens, own.to(tokens.dtype))
        if not again:
            self.loss = loss

    def _start(self, points: Tensor) -> None:
        self.started = torch.ones_like(self.started)
        if self.decay == 1:
            return
        heads, clusters, size = self.centroids.shape
        drawn = uniform((heads, points.shape[1]), (self.seed, "router start")).to(points.device)
        chosen = drawn.argsort(1)[:, torch.arange(clusters, device=points.device) % points.shape[1]]
        centroids = points.gather(1, chosen[..., None].expand(-1, -1, size))
        for _ in range(_STEPS):
            centroids = _moved(points, centroids, 0.0)
        self.centroids = centroids


def _nearest(points: Tensor, centroids: Tensor) -> Tensor:
    """For each of the points ``[H, P, D]`` the number of its centroid ``[H, C, D]``."""
    return (points @ centroids.transpose(1, 2)).argmax(2)


def _moved(points: Tensor, centroids: Tensor, decay: float) -> Tensor:
    """Centroids after a step towards the means of the points nearest to them; of length 1.

    Else the largest dot product would be that with the most concentrated cluster, not with the nearest.
    """
    nearest = _nearest(points, centroids)
    counts = torch.zeros(centroids.shape[:2], dtype=points.dtype, device=points.device)
    counts.scatter_add_(1, nearest, torch.ones_like(nearest, dtype=points.dtype))
    sums = torch.zeros_like(centroids).scatter_add_(1, nearest[..., None].expand_as(points), points)
    means = sums / counts.clamp(min=1)[..., None]
    return torch.where(counts[..., None] > 0, unit(torch.lerp(means, centroids, decay)), centroids)


def routers(model: nn.Module) -> dict[str, Router]:
    """The routers of a model by name."""
    return {name: module for name, module in model.named_modules() if isinstance(module, Router)}


def commitment(model: nn.Module) -> Tensor | float:
    """The sum of the routers' losses of the last step, 0 where there are none: add it to the loss."""
    return sum((router.loss for router in routers(model).values() if router.loss is not None), start=0.0)


def place_centroids(model: nn.Module, hardware: Hardware) -> ConversionReport:
    """Put the centroids of a model's routers in tiles, beside what `crossbar.convert` did, and report them.

    Raises:
        InputError: for a model that has none.
    """
    found = routers(model)
    if not found:
        raise InputError(f"{type(model).__name__} has no Router to place")
    reports = []
    for name, router in found.items():
        router.place(hardware, name or "router")
        heads, clusters, size = router.centroids.shape
        t_out, t_in = tile_grid(clusters, size, hardware.tile)
        share = clusters * size / (t_out * t_in * hardware.tile.rows * hardware.tile.cols)
        for head in range(heads):
            label = f"{name}.tiles.{head}".removeprefix(".")
            reports.append(LayerReport(label, "Router", clusters * size, size, clusters, t_out * t_in, share))
    return ConversionReport(tuple(reports))
