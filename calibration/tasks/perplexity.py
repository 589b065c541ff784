"""Perplexity: how well a language model predicts encyclopedic text, or text of the user's own."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from calibration.metrics import exponential
from calibration.models.embedding import Batch, evaluating, require_length
from calibration.models.outputs import Output, device_of, next_token_scores
from calibration.tasks.protocol import Split
from calibration.tasks.wikipedia import articles, plain
from crossbar.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_EVALUATION, _CALIBRATION, _MORE = slice(20, 40), slice(40, 60), slice(60, None)
_CHARACTERS = 4000
_BATCH = 2048  # tokens: scores of 49,152 words for each take 0.4 GB


class Perplexity:
    """Perplexity in windows of tokens that know nothing of each other, on Wikipedia unless told; lower is better.

    The exponential of the mean loss (nats a token) over windows; the first token of a window is not predicted. Beside
    it ``median_perplexity``, that of the median window: on a chip a single window that goes wrong can decide the mean
    (docs/calibration.md).

    Articles 20 to 39 of gensim's extract are scored and articles 40 to 59 calibrate, each cleaned by
    `calibration.tasks.wikipedia.plain`, cut at 4,000 characters and joined by a blank line; articles 60 to 105 follow
    in full for what needs more, such as training. Of each text the first tokens are used, without special tokens.
    Nothing is drawn at random. SmolLM2, digital: 21.12 in 16 windows of 512 tokens, 18.62 in 4 of 2,048.

    Args:
        tokenizer: the model's own.
        windows: how many are scored.
        window_length: tokens in a window, of both splits.
        calibration_windows: how many calibrate; None: as many as are scored.
        training_windows: how many steps that train take, such as `calibration.Finetune`; None: those that calibrate.
        texts: what is scored, one text or several, which are joined by a blank line; None: the articles.
        calibration_texts: what calibrates and trains, likewise; None: the articles.

    Raises:
        InputError: when gensim, which carries the articles, is not installed, for an impossible value, and for texts
            that have fewer tokens than the windows.
    """

    name = "perplexity"
    primary = "perplexity"
    reads: ClassVar[Output] = "next tokens"

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        *,
        windows: int = 16,
        window_length: int = 512,
        calibration_windows: int | None = None,
        training_windows: int | None = None,
        texts: str | Sequence[str] | None = None,
        calibration_texts: str | Sequence[str] | None = None,
    ) -> None:
        if calibration_windows is None:
            calibration_windows = windows
        if training_windows is None:
            training_windows = calibration_windows
        require_length("window_length", window_length, 2, tokenizer.model_max_length)
        bodies = [] if texts is not None and calibration_texts is not None else articles()
        scored = _tokens(_cut(bodies[_EVALUATION]) if texts is None else _own("texts", texts), tokenizer)
        self._scored = _windows(scored, "windows", windows, window_length)
        if calibration_texts is None:
            few = _cut(bodies[_CALIBRATION])
            fitted = _tokens(few, tokenizer)
            if max(calibration_windows, training_windows) * window_length >= len(fitted):
                # Only then, for the many articles that follow take seconds; they change the last token at most.
                fitted = _tokens([*few, *map(plain, bodies[_MORE])], tokenizer)
        else:
            fitted = _tokens(_own("calibration_texts", calibration_texts), tokenizer)
        self._calibration = _windows(fitted, "calibration_windows", calibration_windows, window_length)
        self._training = _windows(fitted, "training_windows", training_windows, window_length)

    def batches(self, split: Split) -> Iterable[Batch]:
        """Windows of the articles, to calibrate on one at a time (`calibration.steps.observe.Instants`) or to score."""
        if split == "calibration":
            return _batches(self._calibration, 1)
        return _batches(self._scored, max(1, _BATCH // self._scored.shape[1]))

    def training_batches(self) -> Iterable[Batch]:
        """Windows of the articles that calibrate, and of more of them, to train on one at a time."""
        return _batches(self._training, 1)

    def metrics(self, model: nn.Module) -> dict[str, float]:
        """``perplexity`` and ``median_perplexity``, 1 or more; infinite for a model whose scores are not finite.

        Raises:
            InputError: for a model that is not a causal language model.
        """
        losses = self.losses(model).tolist()
        mean, median = statistics.fmean(losses), statistics.median(losses)
        return {"perplexity": exponential(mean), "median_perplexity": exponential(median)}

    def losses(self, model: nn.Module) -> Tensor:
        """The mean loss of each window, nats a token, ``[windows]`` float64; infinite where it is not finite.

        Raises:
            InputError: for a model that is not a causal language model.
        """
        device = device_of(model)
        losses: list[Tensor] = []
        with torch.inference_mode(), evaluating(model):
            for batch in self.batches("evaluation"):
                ids = batch["input_ids"].to(device)
                for scores, window in zip(next_token_scores(model, {"input_ids": ids}), ids, strict=True):
                    losses.append(F.cross_entropy(scores[:-1].float(), window[1:]).double().cpu())
        return torch.stack(losses).nan_to_num(nan=torch.inf, posinf=torch.inf)


def _cut(bodies: list[str]) -> list[str]:
    """The beginning of each article, as plain text."""
    return [plain(body)[:_CHARACTERS] for body in bodies]


def _own(option: str, texts: str | Sequence[str]) -> list[str]:
    """A user's texts as a list."""
    own = [texts] if isinstance(texts, str) else list(texts)
    if not all(isinstance(text, str) for text in own):
        wrong = next(type(text).__name__ for text in own if not isinstance(text, str))
        raise InputError(f"{option} holds a {wrong}: give one text or a list of texts, each a str")
    return own


def _tokens(bodies: list[str], tokenizer: PreTrainedTokenizerBase) -> Tensor:
    """Texts as one, ``[tokens]`` int64."""
    # Not verbose: it would warn that the text is longer than the model reads.
    ids = tokenizer("\n\n".join(bodies), add_special_tokens=False, verbose=False)["input_ids"]
    return torch.tensor(ids, dtype=torch.int64, device="cpu")  # said, since an empty list would be float


def _windows(ids: Tensor, option: str, count: int, length: int) -> Tensor:
    """The first ``count * length`` tokens, ``[count, length]`` int64."""
    if len(ids) < length:
        raise InputError(
            f"the text of {option} has {len(ids)} tokens, which fill no window of {length}: give more text, a shorter "
            "window_length, or a model with a tokenizer that reads this text"
        )
    if not 1 <= count <= len(ids) // length:
        raise InputError(
            f"{option} {count} is not usable: give 1 to {len(ids) // length}, as many as the text has of "
            f"{length} tokens"
        )
    return ids[: count * length].view(count, length)


def _batches(windows: Tensor, size: int) -> list[Batch]:
    return [{"input_ids": part} for part in windows.split(size)]
