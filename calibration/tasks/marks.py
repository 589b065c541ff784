"""What texts that overlap have in common, so that calibration data and evaluation data can be kept apart."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor

from calibration.models.embedding import Batch

_RUN = 64
"""Tokens in a row that two texts must share to overlap; shorter texts must be equal."""


def marks(sample: Tensor) -> set[bytes]:
    """Hashes of all runs of 64 tokens of a sample; of a shorter sample, or one without tokens, of the whole."""
    tokens = sample.dim() == 1 and not sample.is_floating_point()
    starts = range(max(1, len(sample) - _RUN + 1)) if tokens else range(1)
    runs = (sample[start : start + _RUN] if tokens else sample for start in starts)
    return {_hash(run) for run in runs}


def all_marks(batches: Iterable[Batch]) -> set[bytes]:
    """The marks of all samples."""
    return {mark for sample in samples(batches) for mark in marks(sample)}


def samples(batches: Iterable[Batch]) -> Iterator[Tensor]:
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
