"""Calibration data and evaluation data kept apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from calibration.models.embedding import Batch
from calibration.tasks.protocol import Task, fitted_on
from crossbar.errors import InputError

_RUN = 64
"""Tokens in a row that two texts must share to overlap; shorter texts must be equal."""


def require_disjoint(task: Task) -> None:
    """Refuse a task with evaluation data in what it calibrates or trains on.

    Token sequences overlap if they share 64 tokens in a row, or are equal; other inputs if a sample of one split is
    equal to a sample of the other. Padded positions do not count.

    Raises:
        InputError: with where the first overlap is.
    """
    scored = all_marks(task.batches("evaluation"))
    for purpose, batches in fitted_on(task).items():
        for index, sample in enumerate(_samples(batches)):
            if not scored.isdisjoint(marks(sample)):
                raise InputError(
                    f"sample {index} of task {task.name!r} for {purpose} is in its evaluation data too, so scores "
                    "would know what was fitted: give splits that do not overlap"
                )


def marks(sample: Tensor) -> set[bytes]:
    """What samples that overlap have in common: hashes of all runs of tokens, or of a whole sample without tokens."""
    tokens = sample.dim() == 1 and not sample.is_floating_point()
    starts = range(max(1, len(sample) - _RUN + 1)) if tokens else range(1)
    runs = (sample[start : start + _RUN] if tokens else sample for start in starts)
    return {_hash(run) for run in runs}


def all_marks(batches: Iterable[Batch]) -> set[bytes]:
    """The marks of all samples."""
    return {mark for sample in _samples(batches) for mark in marks(sample)}


def _samples(batches: Iterable[Batch]) -> Iterator[Tensor]:
    """What each sample of the batches feeds a model with, ``[N, ...]``, without padding."""
    for batch in batches:
        values = next((batch[name] for name in ("input_ids", "inputs_embeds") if name in batch), None)
        if values is None:
            values = next(tensor for name, tensor in batch.items() if name != "attention_mask")
        mask = batch.get("attention_mask")
        for index, sample in enumerate(values):
            fits = mask is not None and sample.dim() and mask[index].shape == sample.shape[:1]
            yield sample[mask[index].bool()] if mask is not None and fits else sample


def _hash(values: Tensor) -> bytes:
    data = values.detach().cpu().contiguous().reshape(-1).view(torch.uint8)
    return hashlib.blake2b(data.numpy().data, digest_size=16).digest()
