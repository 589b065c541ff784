"""Text that a language model writes itself, to train it on where nothing else should decide what it learns."""

from __future__ import annotations

from itertools import cycle, islice

import torch
from torch import Tensor, nn

from calibration.models.embedding import Batch
from calibration.models.outputs import device_of, is_generative
from calibration.steps.observe import digital
from crossbar.errors import InputError
from crossbar.random.streams import Stream

_AT_ONCE = 64  # sequences


@torch.no_grad()
def own_text(model: nn.Module, batches: list[Batch], count: int, seed: int) -> Tensor:
    """Texts sampled from the digital model's own distribution at temperature 1, ``[count, N]`` token numbers.

    Each begins with the first token of a row of the batches, which are gone through again and again, and is as long as
    the longest of them. Draws are keyed by place, so they do not depend on how many texts are written at once, but for
    rounding. It stands for text that a model was trained on and that nobody has any more (Büchel et al., arXiv
    2505.09663, after Liu et al., arXiv 2305.17888).

    Raises:
        InputError: for a model that does not generate.
    """
    if not is_generative(model):
        raise InputError(
            f"{type(model).__name__} writes no text of its own: give Finetune own_texts: 0, or a causal language model"
        )
    length = max(batch["input_ids"].shape[1] for batch in batches)
    starts = torch.cat([batch["input_ids"][:, :1] for batch in batches])
    first = torch.stack(list(islice(cycle(starts), count))).to(device_of(model))
    with digital(model):
        parts = [
            model.generate(  # type: ignore[operator]  # a transformers model
                some,
                attention_mask=torch.ones_like(some),
                do_sample=False,
                min_new_tokens=length - 1,
                max_new_tokens=length - 1,
                logits_processor=[_Sampled(seed, index * _AT_ONCE)],
            )
            for index, some in enumerate(first.split(_AT_ONCE))
        ]
    return torch.cat(parts)


class _Sampled:
    """Leaves of each row of scores one token, drawn from their distribution."""

    def __init__(self, seed: int, first: int) -> None:
        self._seed, self._first = seed, first

    def __call__(self, ids: Tensor, scores: Tensor) -> Tensor:
        draws = Stream((self._seed, "own text", ids.shape[1]), scores.device)
        below = scores.double().softmax(-1).cumsum(-1)
        wanted = draws.uniform((len(scores), 1), self._first).double() * below[:, -1:]
        chosen = torch.searchsorted(below, wanted, right=True).clamp(max=scores.shape[-1] - 1)
        return torch.full_like(scores, -torch.inf).scatter(1, chosen, 0.0)
