"""What becomes of the attention of each architecture: attached, and on analog memory.

Attached with a pattern, a model has to equal its own eager attention with the pattern's pairs added to its masks
(`as_eager`, which shares no code with `attention.hf`); on analog memory in ideal cells it has to generate the tokens
that it generates on its own cache.
"""

from __future__ import annotations

import copy
import inspect
import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import eager_mask
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from attention import attach, parse
from attention.hf.attach import memory_of
from crossbar import presets
from tests.architectures import tiny

PATTERN = "window(6) | sinks(2)"
ALIKE = 1e-3
"""Largest difference that counts as equal, as a part of the largest number."""

NEW_TOKENS = 14


@dataclass
class Found:
    """What was found of one architecture's attention.

    Attributes:
        attached: largest difference from eager attention with the same pairs, as a part of the largest output, where
            tokens are padded at the end too; None: it was refused.
        moved: largest difference from the model without a pattern, likewise.
        sentence: with which `attach` refused, or the attached model.
        at_attach: whether it was `attach`.
        causal: whether it generates.
        memory: largest difference of logits from those on the model's own cache, likewise; infinite if tokens differ.
        forgot: with which the memory was refused.
    """

    attached: float | None = None
    moved: float | None = None
    sentence: str = ""
    at_attach: bool = False
    causal: bool = False
    memory: float | None = None
    forgot: str = ""

    @property
    def verdict(self) -> str:
        """``equal``, ``refused`` (at `attach`), ``late`` (refused in the forward pass) or ``wrong``."""
        if self.sentence:
            ours = self.sentence.startswith("InputError: ")
            return ("refused" if self.at_attach else "late") if ours else "wrong"
        return "equal" if self.attached is not None and self.attached < ALIKE else "wrong"

    @property
    def remembers(self) -> str:
        """``equal``, ``refused``, ``wrong``, or ``none`` where it does not generate."""
        if not self.causal:
            return "none"
        if self.forgot:
            return "refused" if self.forgot.startswith("InputError: ") else "wrong"
        return "equal" if self.memory is not None and self.memory < ALIKE else "wrong"


def enlarged(model: nn.Module) -> nn.Module:
    """The model with matrices so large that attention is far from uniform."""
    draw = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1 and parameter.is_floating_point():
                parameter.normal_(0.0, 1.2 / max(1, parameter[0].numel()) ** 0.5, generator=draw)
    return model


@contextmanager
def as_eager(model: Any, text: str, cross: str = "dense") -> Iterator[None]:
    """The model in its own eager attention, whose masks leave open the pattern's pairs alone.

    A call whose queries and keys are as many is one of tokens on themselves, any other one is ``cross``. It has the
    causal form if the model's mask leaves no later key open.
    """
    pattern = parse(text)

    def attend(
        module: nn.Module, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **kwargs: Any
    ) -> Any:
        eager = sys.modules[type(module).__module__].eager_attention_forward
        mask, (n_queries, n_keys) = attention_mask, (query.shape[2], key.shape[2])
        if mask is not None and mask.dtype == torch.bool:
            mask = torch.zeros(mask.shape, dtype=query.dtype).masked_fill(~mask, torch.finfo(query.dtype).min)
        if n_queries != n_keys:
            everything = parse(cross).to_dense(max(n_queries, n_keys))[:n_queries, :n_keys]
            extra = torch.zeros(1, 1, n_queries, n_keys, dtype=query.dtype).masked_fill(~everything, -1e30)
            mask = extra if mask is None else (mask + extra).clamp(min=torch.finfo(query.dtype).min)
        if n_queries == n_keys:
            shut = torch.finfo(query.dtype).min / 2
            later = None if mask is None else mask.expand(*mask.shape[:2], n_queries, n_keys).triu(1)
            causal = (
                later is not None
                and bool((later < shut).any())
                and int((later < shut).sum()) == (later.shape[0] * later.shape[1] * n_queries * (n_queries - 1) // 2)
            )
            pairs = (pattern.causal() if causal else pattern).to_dense(n_queries)
            extra = torch.zeros(1, 1, n_queries, n_keys, dtype=query.dtype).masked_fill(~pairs, -1e30)
            mask = extra if mask is None else (mask + extra).clamp(min=torch.finfo(query.dtype).min)
        if mask is not None and inspect.getsource(eager).count("attention_mask") == 1:
            weights = (query @ key.transpose(-1, -2) * kwargs["scaling"] + mask).softmax(-1)
            return (weights @ value).transpose(1, 2).contiguous(), weights
        return eager(module, query, key, value, mask, **kwargs)

    before = model.config._attn_implementation
    AttentionInterface.register("masked_eager", attend)
    AttentionMaskInterface.register("masked_eager", eager_mask)
    model.set_attn_implementation("masked_eager")
    try:
        yield
    finally:
        model.set_attn_implementation(before)


def difference(found: list[Tensor], expected: list[Tensor]) -> float:
    """Largest difference, as a part of the largest number."""
    size = max(float(x.abs().max()) for x in expected) or 1.0
    worst = [float((one.double() - other.double()).abs().max()) for one, other in zip(found, expected, strict=True)]
    return max(worst) / size


def called(model: nn.Module, inputs: Any) -> list[Tensor]:
    """What a model gives; those that draw masks or noise draw the same each time."""
    with torch.no_grad(), torch.random.fork_rng():
        torch.manual_seed(2)
        return tiny.outputs_of(model(**copy.deepcopy(inputs)))


def look(name: str) -> Found:
    """Look at one architecture that can be built small."""
    found, model = Found(causal=name in MODEL_FOR_CAUSAL_LM_MAPPING_NAMES), enlarged(tiny.model_of(name))
    inputs = tiny.inputs_of(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not all(bool(x.isfinite().all()) for x in called(model, inputs)):
            raise ValueError("its outputs are not finite")
        try:
            _attached(found, model, inputs)
        except Exception as error:  # noqa: BLE001 - a defect, which the row tells
            found.sentence = told(error)
        if found.causal:
            try:
                own = _generated(enlarged(tiny.model_of(name, decoder=True)))
            except Exception:  # noqa: BLE001 - it does not generate in digital
                found.causal = False
                return found
            try:
                _remembers(found, own, enlarged(tiny.model_of(name, decoder=True)))
            except Exception as error:  # noqa: BLE001 - as above
                found.forgot = told(error)
    return found


def _attached(found: Found, model: Any, inputs: Any) -> None:
    twin = copy.deepcopy(model)
    found.at_attach = True
    attach(twin, PATTERN)
    found.at_attach = False
    attended = called(twin, inputs)
    own = called(model, inputs)
    with as_eager(model, PATTERN):
        expected = called(model, inputs)
    found.attached, found.moved = difference(attended, expected), difference(own, expected)
    if "input_ids" in inputs and "attention_mask" in inspect.signature(model.forward).parameters:
        padded = {**inputs, "attention_mask": torch.ones_like(inputs["input_ids"])}
        padded["attention_mask"][-1, -4:] = 0
        try:
            with as_eager(model, PATTERN):
                expected = called(model, padded)
        except AttributeError:  # transformers' own code does not take padding (Qwen3-Omni)
            return
        attended = called(twin, padded)
        real = padded["attention_mask"].bool()
        kept = [
            (x[real], y[real]) if x.shape[:2] == real.shape else (x, y) for x, y in zip(attended, expected, strict=True)
        ]
        found.attached = max(found.attached, difference([x for x, _ in kept], [y for _, y in kept]))


def _generated(model: Any) -> Any:
    """Greedy tokens and their logits; of one sequence for models whose sequences choose keys of their own."""
    batch = 1 if hasattr(model.config, "index_topk") else tiny.BATCH
    ids = torch.randint(4, tiny.VOCABULARY - 1, (batch, 6), generator=torch.Generator().manual_seed(5))
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "output_logits": True, "return_dict_in_generate": True}
    return model.generate(ids, **options)


def _remembers(found: Found, own: Any, model: Any) -> None:
    attach(model, "dense", presets.ideal())
    assert memory_of(model) is not None
    remembered = _generated(model)
    if not torch.equal(own.sequences, remembered.sequences):
        found.memory = float("inf")
        return
    found.memory = difference([torch.stack(remembered.logits)], [torch.stack(own.logits)])


def told(error: Exception) -> str:
    """An error in a line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())[:400]}"
