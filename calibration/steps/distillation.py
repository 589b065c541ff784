"""How far a model's outputs are from its teacher's."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from calibration.models.outputs import HiddenStates, TokenScores
from crossbar.errors import InputError


def distance(output: object, teacher: object, mask: Tensor | None = None) -> Tensor:
    """Mean over tokens of the Kullback-Leibler divergence of scores at temperature 1, or the relative squared error.

    Args:
        output: what the model returned: ``logits``, ``last_hidden_state``, or a tensor.
        teacher: what the teacher returned for the same inputs.
        mask: ``[B, N]``, which tokens count; all where there is none, or outputs are not one a token.

    Returns:
        0-d. For scores: nats of KL(teacher || model). For vectors: the error's mean square as a part of the teacher's.

    Raises:
        InputError: for a model that returns none of these.
    """
    if isinstance(output, TokenScores) and isinstance(teacher, TokenScores):
        found, wanted = (_rows(x.logits, mask).log_softmax(-1) for x in (output, teacher))
        return F.kl_div(found, wanted, reduction="batchmean", log_target=True)
    if isinstance(output, HiddenStates) and isinstance(teacher, HiddenStates):
        output, teacher = output.last_hidden_state, teacher.last_hidden_state
    if not isinstance(output, Tensor) or not isinstance(teacher, Tensor):
        raise InputError(
            f"outputs of type {type(output).__name__} cannot be compared: give a model that returns logits, "
            "last_hidden_state or a tensor"
        )
    found, wanted = _rows(output, mask), _rows(teacher, mask)
    return (found - wanted).square().mean() / wanted.square().mean().clamp(min=torch.finfo(wanted.dtype).tiny)


def _rows(x: Tensor, mask: Tensor | None) -> Tensor:
    """Outputs of the tokens that count, ``[tokens, ·]`` in float32 or better."""
    x = x if x.dtype == torch.float64 else x.float()
    kept = x[mask.bool()] if mask is not None and mask.shape == x.shape[:-1] else x
    return kept.reshape(-1, x.shape[-1])
