"""Texts to embeddings, the sentence-transformers way: mean over the tokens, then unit length."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.models.outputs import device_of, hidden_states
from crossbar.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_ENDLESS = 1e9  # tokens: tokenizers give more where a model has no limit

Batch = dict[str, Tensor]
"""Keyword inputs of one forward pass of a model, such as ``input_ids`` and ``attention_mask``, each ``[B, N]``."""


@dataclass(frozen=True)
class TokenisedTexts:
    """Texts as padded batches of similar length.

    Attributes:
        batches: the model's inputs, shortest texts first.
        order: ``[n]`` int64; ``order[k]`` is the input position of the text in row ``k`` of the joined batches.
    """

    batches: tuple[Batch, ...]
    order: Tensor


def tokenise(
    texts: Sequence[str], tokenizer: PreTrainedTokenizerBase, *, max_length: int, batch_size: int = 32
) -> TokenisedTexts:
    """Tokenise texts once, sorted by length so that little of a batch is padding.

    Args:
        texts: at least one text.
        tokenizer: a transformers tokenizer that can pad.
        max_length: longest input in tokens, special tokens included; longer texts are cut at the end.
        batch_size: texts in a batch.

    Raises:
        InputError: when ``max_length`` is not between 8 and the tokenizer's own limit, or the tokenizer cannot pad.
    """
    require_length("max_length", max_length, 8, tokenizer.model_max_length)
    if tokenizer.pad_token_id is None:
        raise InputError("the tokenizer has no padding token, so texts cannot share a batch: set tokenizer.pad_token")
    lengths = [len(ids) for ids in tokenizer(list(texts), truncation=True, max_length=max_length)["input_ids"]]
    order = sorted(range(len(texts)), key=lambda position: lengths[position])
    batches = []
    for start in range(0, len(order), batch_size):
        chosen = [texts[position] for position in order[start : start + batch_size]]
        encoded = tokenizer(chosen, padding=True, truncation=True, max_length=max_length, return_tensors="np")
        batches.append({name: torch.from_numpy(array) for name, array in encoded.items()})
    return TokenisedTexts(batches=tuple(batches), order=torch.tensor(order, device="cpu"))


def require_length(option: str, length: int, least: int, most: float) -> None:
    """Refuse a number of tokens that a model does not read at once.

    Raises:
        InputError: with what is allowed.
    """
    if least <= length <= most:
        return
    if most < least:
        raise InputError(f"the model reads {most} tokens at once, and this takes {least}: choose one that reads more")
    allowed = (
        f"{least} or more tokens" if most > _ENDLESS else f"{least} to {most} tokens, which is what the model reads"
    )
    raise InputError(f"{option} {length} is not usable: give {allowed}")


def embed(model: nn.Module, texts: TokenisedTexts) -> Tensor:
    """Embeddings of texts in their input order, ``[n, D]`` float32 on the CPU, rows of unit length.

    The mean of ``last_hidden_state`` over the tokens that the attention mask keeps, divided by its L2 norm: the
    convention of sentence-transformers' MiniLM models (Reimers and Gurevych, 2019). Runs on the model's device, in eval
    mode, without gradients.

    Raises:
        InputError: for a model that returns no hidden states, such as a language model with its head.
    """
    device = device_of(model)
    rows = []
    with torch.inference_mode(), evaluating(model):
        for batch in texts.batches:
            inputs = {name: tensor.to(device) for name, tensor in batch.items()}
            hidden = hidden_states(model, inputs).float()
            keep = inputs["attention_mask"].unsqueeze(-1)
            # Chosen, not multiplied by 0: a padded position may hold anything, NaN included.
            mean = torch.where(keep.bool(), hidden, 0.0).sum(dim=1) / keep.sum(dim=1).clamp(min=1)
            rows.append(F.normalize(mean, dim=-1).cpu())
        sorted_rows = torch.cat(rows)
        embeddings = torch.empty_like(sorted_rows)
        embeddings[texts.order] = sorted_rows
    return embeddings


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Eval mode for a while: a model that is being finetuned is scored without dropout and goes on in train mode."""
    training = [module for module in model.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True
