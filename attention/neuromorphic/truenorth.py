"""A core of TrueNorth, bit for bit, and strengths fitted to what it can hold (Merolla 2014).

In short in docs/energy.md, "Machines".

Each tick, neuron j adds, for every axon i that carries a spike and whose synapse ``w_ij`` is set, its own strength for
the axon's type, subtracts its leak, and fires and resets at its threshold::

    V_j(t) = V_j(t − 1) − λ_j + Σ_i A_i(t) w_ij S_j^{G_i},   spike where V_j >= α_j

The potential is a signed number of 20 bits that stays at its bounds.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from crossbar.costs.ledger import book
from crossbar.errors import InputError, require_whole

AXONS = NEURONS = 256
TYPES = 4
LEAST, MOST = -(2**19), 2**19 - 1
"""Bounds of a potential of 20 bits."""
_STRENGTH = 255  # of 9 bits with a sign


@dataclass(frozen=True, eq=False)
class Cores:
    """C cores of up to 256 axons and 256 neurons, without the wires between them.

    Attributes:
        synapses: w, bool [C, axons, neurons].
        types: G, int64 [C, axons], 0 to 3; shared by all neurons of a core.
        strengths: S, int64 [C, neurons, 4], −255 to 255.
        leak: λ, int64 [C, neurons].
        threshold: α, int64 [C, neurons], 1 or more.
        reset: potential after a spike, int64 [C, neurons].
        subtract: reset by taking α off instead.

    Raises:
        InputError: for shapes and values that the hardware has not.
    """

    synapses: Tensor
    types: Tensor
    strengths: Tensor
    leak: Tensor
    threshold: Tensor
    reset: Tensor
    subtract: bool = False

    def __post_init__(self) -> None:
        if self.synapses.dim() != 3 or self.synapses.dtype != torch.bool:
            found = f"synapses {self.synapses.dtype} {list(self.synapses.shape)}"
            raise InputError(f"{found} do not fit: give bool [C, axons, neurons]")
        cores, axons, neurons = self.synapses.shape
        if axons > AXONS or neurons > NEURONS:
            raise InputError(f"a core of {axons} axons and {neurons} neurons does not exist: give at most 256 of each")
        wanted = {
            "types": ((cores, axons), 0, TYPES - 1),
            "strengths": ((cores, neurons, TYPES), -_STRENGTH, _STRENGTH),
            "leak": ((cores, neurons), LEAST, MOST),
            "threshold": ((cores, neurons), 1, MOST),
            "reset": ((cores, neurons), LEAST, MOST),
        }
        for name, (shape, low, high) in wanted.items():
            x: Tensor = getattr(self, name)
            if x.dtype != torch.int64 or x.shape != shape:
                raise InputError(f"{name} {x.dtype} {list(x.shape)} does not fit: give int64 {list(shape)}")
            if x.numel() and not low <= int(x.min()) <= int(x.max()) <= high:
                raise InputError(f"{name} from {int(x.min())} to {int(x.max())} does not fit: give {low} to {high}")

    def start(self) -> Tensor:
        """Potentials of 0, int64 [C, neurons]."""
        return torch.zeros_like(self.leak)

    def step(self, potential: Tensor, spikes: Tensor, layer: str = "truenorth") -> tuple[Tensor, Tensor]:
        """One tick: the new potentials and which neurons fire.

        Synaptic events (spikes times the synapses that each meets), neuron updates and spikes are booked for ``layer``
        in open ledgers, and one barrier.

        Args:
            potential: int64 [C, neurons].
            spikes: A, bool [C, axons].
            layer: name in the ledger.
        """
        # Sums of at most 256 strengths below 2^8 in size are exact in float32, which multiplies matrices fast.
        open_ = (self.synapses & spikes[:, :, None]).to(torch.float32)
        of_type = torch.nn.functional.one_hot(self.types, TYPES).to(torch.float32)  # [C, axons, 4]
        events = torch.einsum("cin,cit->cnt", open_, of_type).to(torch.int64)
        total = potential - self.leak + (events * self.strengths).sum(2)
        total = total.clamp(LEAST, MOST)
        fired = total >= self.threshold
        after = total - self.threshold if self.subtract else self.reset
        book(layer, "synaptic_events", int(events.sum()))
        book(layer, "neuron_updates", total.numel())
        book(layer, "spikes", int(fired.sum()))
        book(layer, "barriers", 1)
        return torch.where(fired, after, total), fired


class Fit(NamedTuple):
    """Strengths that a core can hold, and how far they are from those wanted.

    Attributes:
        types: G, int64 [axons].
        synapses: w, bool [axons, neurons].
        strengths: S, float [neurons, 4].
        error: Σ (W − w S)² over Σ W².
    """

    types: Tensor
    synapses: Tensor
    strengths: Tensor
    error: float

    @property
    def weights(self) -> Tensor:
        """What the core multiplies by, [axons, neurons]."""
        return self.synapses * self.strengths.T[self.types]


def fit_strengths(weights: Tensor, *, axons_a_token: int = 1, rounds: int = 30, seed: int = 0) -> Fit:
    """The four strengths a neuron, synapse bits and shared axon types nearest to ``weights`` in squared error.

    ``min Σ (W_ij − w_ij S_j^{G_i})²`` by turns: given types and synapses a strength is the mean of the weights that use
    it; given types and strengths a synapse is set where that is nearer than 0; given strengths an axon takes the type
    that is nearest for all its neurons together. Each turn lowers the error; where nothing moves, it ends.

    With four axons a token, one of each type, a weight is the sum of any of its neuron's four strengths: 64 tokens a
    core instead of 256, each weight chosen freely among 16 numbers.

    Args:
        weights: W, float [tokens, neurons]; learned attention strengths of one core, say.
        axons_a_token: 1 or 4. With 4, axon ``4 k + g`` is token k's of type g.
        rounds: turns at most.
        seed: of the first types, which are dealt by the axons' mean weight and otherwise at random.

    Raises:
        InputError: for weights of another shape, more axons or neurons than a core has, or values that are not finite.
    """
    if axons_a_token not in (1, TYPES):
        raise InputError(f"axons_a_token = {axons_a_token!r} is not allowed: give 1 or {TYPES}")
    tokens = AXONS // axons_a_token
    if weights.dim() != 2 or not (1 <= weights.shape[0] <= tokens and 1 <= weights.shape[1] <= NEURONS):
        raise InputError(
            f"weights {list(weights.shape)} do not fit a core: give [tokens, neurons], up to {tokens} and {NEURONS}"
        )
    if not bool(weights.isfinite().all()):
        raise InputError("weights are not finite: give finite numbers")
    require_whole("rounds", rounds, least=1)
    w = weights.double()
    if axons_a_token == TYPES:
        return _free(w, rounds)
    generator = torch.Generator(device="cpu").manual_seed(seed)
    starts = [w.mean(1).argsort().argsort() * TYPES // len(w)]
    starts += [torch.randint(TYPES, (len(w),), generator=generator, device="cpu").to(w.device) for _ in range(3)]
    return min((_descend(w, types, rounds) for types in starts), key=lambda fit: fit.error)


def _descend(w: Tensor, types: Tensor, rounds: int) -> Fit:
    levels = _levels(w, types, torch.ones_like(w, dtype=torch.bool))
    used = _nearer(w, levels.T[types])
    for _ in range(rounds):
        levels = _levels(w, types, used)
        # Error of every axon under every type, [axons, 4]: each neuron takes its strength or 0, whichever is nearer.
        cost = torch.stack([torch.minimum((w - level).square(), w.square()).sum(1) for level in levels.T], 1)
        before, types = (types, used), cost.argmin(1)
        used = _nearer(w, levels.T[types])
        if torch.equal(types, before[0]) and torch.equal(used, before[1]):
            break
    rest = (w - used * levels.T[types]).square().sum()
    return Fit(types, used, levels, float(rest / w.square().sum().clamp(min=1e-300)))


def _free(w: Tensor, rounds: int) -> Fit:
    """Four axons a token: by turns the best of 16 sums for each weight, and least squares for the strengths."""
    sums = torch.arange(16, device=w.device)[:, None] >> torch.arange(TYPES, device=w.device) & 1
    sums = sums.to(w.dtype)
    # Two's complement of four bits to start with: the sums are 16 even steps over the weights' range.
    levels = w.abs().amax(0)[:, None] * torch.tensor([1.0, 2.0, 4.0, -8.0], dtype=w.dtype, device=w.device) / 8
    used = _best_sums(w, levels, sums)
    for _ in range(rounds):
        pattern = used.permute(1, 0, 2)  # [neurons, tokens, 4]
        levels = torch.linalg.lstsq(pattern, w.T[..., None], driver="gelsd").solution[..., 0]
        before, used = used, _best_sums(w, levels, sums)
        if torch.equal(before, used):
            break
    rest = (w - (used * levels).sum(2)).square().sum()
    synapses = used.permute(0, 2, 1).reshape(TYPES * len(w), -1).bool()
    types = torch.arange(TYPES, device=w.device).repeat(len(w))
    return Fit(types, synapses, levels, float(rest / w.square().sum().clamp(min=1e-300)))


def _best_sums(w: Tensor, levels: Tensor, sums: Tensor) -> Tensor:
    """Which of a neuron's strengths [neurons, 4] each weight adds up, [tokens, neurons, 4]."""
    totals = levels @ sums.T  # [neurons, 16]
    return sums[(w[..., None] - totals).abs().argmin(-1)]


def _nearer(w: Tensor, level: Tensor) -> Tensor:
    return (w - level).square() < w.square()


def _levels(w: Tensor, types: Tensor, used: Tensor) -> Tensor:
    """Mean of the weights that use each strength, [neurons, 4]; 0 where none does."""
    of_type = torch.nn.functional.one_hot(types, TYPES).to(w.dtype)
    count = torch.einsum("in,it->nt", used.to(w.dtype), of_type)
    return torch.einsum("in,it->nt", w * used, of_type) / count.clamp(min=1)
