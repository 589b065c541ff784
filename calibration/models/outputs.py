"""What models return and tasks read: a vector for each token, or scores of the next token."""

from __future__ import annotations

import itertools
import sys
from typing import Any, Literal, Protocol, cast, runtime_checkable

import torch
from torch import Tensor, nn

from calibration.models.folder_files import reason
from crossbar.errors import InputError

Output = Literal["embeddings", "next tokens"]
"""What a model gives: those of an encoder, or those of a causal language model."""

_SHORT = 8  # tokens
_EQUAL = 1e-5  # of the largest score: what the order of sums may change


@runtime_checkable
class HiddenStates(Protocol):
    """What an encoder returns."""

    last_hidden_state: Tensor
    """``[B, N, D]``"""


@runtime_checkable
class TokenScores(Protocol):
    """What a language model returns."""

    logits: Tensor
    """``[B, N, V]``: after each token, the scores of the next."""


def device_of(model: nn.Module) -> torch.device:
    """Where a model's inputs belong."""
    return next(itertools.chain(model.parameters(), model.buffers())).device


def is_generative(model: nn.Module) -> bool:
    """Whether a model is a transformers causal language model, which decodes token by token with a cache."""
    generation = cast(Any, sys.modules.get("transformers.generation"))
    return generation is not None and isinstance(model, generation.GenerationMixin)


def hidden_states(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """The last hidden state of each token, ``[B, N, D]``.

    Raises:
        InputError: for a model that returns none.
    """
    output = model(**inputs)
    if not isinstance(output, HiddenStates):
        raise InputError(
            f"{type(model).__name__} returns {type(output).__name__}, which has no embeddings of tokens: give an "
            "encoder such as minilm, or a task for language models such as perplexity"
        )
    return output.last_hidden_state


def next_token_scores(model: nn.Module, inputs: dict[str, Tensor]) -> Tensor:
    """Scores of the next token after each token, ``[B, N, V]``.

    Raises:
        InputError: for a model that returns none, or scores each token in the light of what follows it.
    """
    output = model(**inputs)
    if (
        not isinstance(output, TokenScores)
        or _is_masked(output)
        or output.logits.shape[:-1] != inputs["input_ids"].shape
    ):
        raise InputError(
            f"{type(model).__name__} returns {type(output).__name__}, which does not score next tokens: give a causal "
            "language model such as smollm2, or a task for encoders such as wordsim"
        )
    return output.logits


def why_unfit(model: nn.Module, gives: Output) -> str:
    """Why a transformers model cannot be scored on texts, as part of a sentence; empty where a short input works.

    The model runs on a few tokens: that finds what a configuration does not say.
    """
    config: Any = model.config
    if getattr(config, "is_encoder_decoder", False):
        return "it is an encoder-decoder, which reads two texts at once"
    if getattr(model, "main_input_name", "input_ids") != "input_ids":
        return f"it reads {model.main_input_name} instead of tokens"
    if next(model.parameters()).is_meta:
        return ""  # which only numbers could tell
    try:
        read = hidden_states if gives == "embeddings" else next_token_scores
        known = model.get_input_embeddings().weight.shape[0]  # type: ignore[operator]  # a PreTrainedModel
        ids = torch.arange(min(_SHORT, known), device=device_of(model)).unsqueeze(0)
        other = ids.clone()
        other[0, -1] = 0
        with torch.inference_mode():
            found, changed = (read(model, {"input_ids": i, "attention_mask": torch.ones_like(i)}) for i in (ids, other))
    except Exception as error:  # noqa: BLE001 - whatever a configuration that does not fit makes a model raise
        return f"it fails on a short input ({reason(error)})"
    if not torch.isfinite(found).all():
        return "its outputs for a short input are not finite"
    seen = (found - changed)[:, :-1].abs().max() if gives == "next tokens" and ids.shape[1] > 1 else 0.0
    if seen > _EQUAL * found.abs().max():
        return "it scores each token in the light of those that follow"
    return ""


def _is_masked(output: object) -> bool:
    # It has the same fields as a causal model's output, and would score absurdly well.
    transformers = cast(Any, sys.modules.get("transformers.modeling_outputs"))
    return transformers is not None and isinstance(output, transformers.MaskedLMOutput)
