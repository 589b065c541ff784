"""Transformers models and tokenizers from the judged files of a folder; nothing is unpickled, no code of it runs."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn
from torch.nn.modules import module as hooks

from calibration.models.folder_files import CONFIG, TOKENIZER_CONFIG, FolderFiles, reason, refuse
from calibration.models.quiet import quiet
from crossbar.errors import InputError, shown

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
_VOCABULARIES = ("tokenizer.json", "vocab.json", "vocab.txt", "merges.txt")
_VOCABULARY_KINDS = (".model", ".tiktoken")
_GENERATION = "generation_config.json"

_BUFFERS = 1 << 29  # numbers; masks of old models are as large as their positions squared, in each layer
_HUGE = 65504.0  # the largest number in half precision


def read_config(files: FolderFiles) -> PreTrainedConfig:
    """The configuration of a class that transformers has itself.

    Raises:
        InputError: for one that cannot be made, or needs code of its own.
    """
    import transformers
    from transformers import CONFIG_MAPPING, AutoConfig  # here, because it takes seconds to import

    kind = files.config.get("model_type")
    if not isinstance(kind, str) or kind not in CONFIG_MAPPING:
        why = f"{CONFIG} has model_type {kind!r}, which transformers {transformers.__version__} does not have"
        refuse(files.folder, why, "give one that it has; code that comes with a model is never run")
    with reading(files.folder):
        config: PreTrainedConfig = AutoConfig.from_pretrained(files.folder, **_LOCAL)
    return config


def read_shapes(files: FolderFiles, config: PreTrainedConfig, kind: Any) -> PreTrainedModel:
    """A model in eval mode on torch's device ``meta``, which has shapes and no numbers.

    Raises:
        InputError: when it cannot be built, or is larger than the weights can fill.
    """
    from transformers import PreTrainedModel

    with reading(files.folder), torch.device("meta"), _no_larger_than(files):
        of: PreTrainedModel = kind(config) if issubclass(kind, PreTrainedModel) else kind.from_config(config)
    return of.eval()


def read_model(
    files: FolderFiles, config: PreTrainedConfig, kind: Any, dtype: torch.dtype
) -> tuple[nn.Module, list[str]]:
    """A model in eval mode, every number of it from the folder's safetensors files.

    It is built without memory first, and refused there if it is larger than the weights can fill.

    Args:
        files: the folder's.
        config: as `read_config` gave it.
        kind: a class of models, or one of transformers' Auto classes.
        dtype: of the weights.

    Returns:
        The model, and the names of the tensors in the files that it has no place for.

    Raises:
        InputError: when weights are missing, of another shape, not finite, or the model cannot be built.
    """
    from transformers import GenerationConfig

    of: Any = read_shapes(files, config, kind)
    with reading(files.folder):
        generation = None
        if files.has(_GENERATION) and of.can_generate():
            generation = GenerationConfig.from_pretrained(files.folder, local_files_only=True)
        model, info = type(of).from_pretrained(
            None,  # no folder, so that transformers opens no file
            config=of.config,
            state_dict=files.tensors(),
            generation_config=generation,
            dtype=dtype,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, in one sentence
            **_LOCAL,
        )
    model.config.name_or_path = str(files.folder)
    _require_all(files, model, info)
    _require_finite(files, model)
    return model.eval(), sorted(info["unexpected_keys"])


def read_tokenizer(files: FolderFiles, config: PreTrainedConfig) -> PreTrainedTokenizerBase | None:
    """The tokenizer in a folder; None where there is none. It reads no more tokens than the model has positions for.

    Raises:
        InputError: for one that cannot be read or knows no word.
    """
    from transformers import AutoTokenizer

    vocabularies = [path for path in files.texts if path.name in _VOCABULARIES or path.suffix in _VOCABULARY_KINDS]
    if not vocabularies and not files.has(TOKENIZER_CONFIG):
        return None
    with reading(files.folder):
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(files.folder, config=config, **_LOCAL)
        known = tokenizer.get_vocab()
        words = known.keys() - set(tokenizer.all_special_tokens)
        limit = tokenizer.model_max_length
    if not words:
        refuse(files.folder, "its tokenizer knows no token but special ones", "save the tokenizer again beside it")
    if not isinstance(limit, int | float) or not limit >= 1:
        refuse(files.folder, f"{TOKENIZER_CONFIG} says model_max_length = {shown(limit)}", "give a number of tokens")
    positions = getattr(config, "max_position_embeddings", None)  # a configuration may or may not know
    if isinstance(positions, int):
        tokenizer.model_max_length = min(limit, positions)
    return tokenizer


def require_embedded(files: FolderFiles, tokenizer: PreTrainedTokenizerBase, model: nn.Module) -> None:
    """Refuse a tokenizer that gives tokens which the model does not have."""
    rows, last = _embedded(model), max(tokenizer.get_vocab().values())
    if rows is not None and last >= rows:
        why = f"its tokenizer gives tokens up to {last}, and the model knows {rows}, from 0"
        refuse(files.folder, why, "give the tokenizer that belongs to the model")


def doubts(model: nn.Module, dropped: list[str]) -> Iterator[str]:
    """What a user should know of a model that was loaded as asked, a sentence each."""
    kind = type(model).__name__
    if dropped:
        yield f"{kind} has no place for {_named(dropped)}: they are left out, with the head that they belong to"
    zero, huge = [], []
    for name, part in model.named_parameters():
        if part.is_floating_point() and part.numel():
            low, high = (float(end) for end in torch.aminmax(part.detach()))
            if low == high == 0 and part.dim() > 1:
                zero.append(name)
            if max(-low, high) > _HUGE:
                huge.append(name)
    if zero:
        yield f"there are only zeros in {_named(zero)}: the weights may be damaged"
    if huge:
        yield f"there are numbers beyond {_HUGE:g} in {_named(huge)}: the weights may be damaged"


def _named(names: list[str]) -> str:
    return repr(names[0]) if len(names) == 1 else f"{names[0]!r} and {len(names) - 1} more"


@contextlib.contextmanager
def reading(folder: Path) -> Iterator[None]:
    """Anything that transformers and its tokenizers raise over a folder becomes one sentence."""
    try:
        with quiet():
            yield
    except InputError:
        raise
    except BaseException as error:
        # A panic in the tokenizers' Rust code is no Exception, and its class cannot be imported.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        raise InputError(
            f"model folder {str(folder)!r} cannot be loaded ({reason(error)}): "
            "give a complete folder written by transformers' save_pretrained"
        ) from error


@contextlib.contextmanager
def _no_larger_than(files: FolderFiles) -> Iterator[None]:
    """Stop building a model that is larger than the weights in the files could fill.

    A model may have more parameters than there are tensors, where tensors are shared, fused or dropped, so there is
    room for some more.
    """
    own = threading.get_ident()
    most = {"parameters": 4 * len(files.shapes) + 100, "numbers": 4 * files.numbers + 10_000}
    most |= {"modules": 50 * most["parameters"], "buffers": max(_BUFFERS, 4 * files.numbers)}
    counts = dict.fromkeys(most, 0)

    def add(what: str, number: int) -> None:
        counts[what] += number
        if counts[what] > most[what]:
            held = f"{len(files.shapes)} tensors of {files.numbers:,} numbers"
            refuse(
                files.folder,
                f"{CONFIG} is of a larger model than its weights, {held}",
                "give the weights that belong to it",
            )

    def parameter(module: nn.Module, name: str, part: Tensor | None) -> None:
        if part is not None and threading.get_ident() == own:
            add("parameters", 1)
            add("numbers", part.numel())

    def buffer(module: nn.Module, name: str, part: Tensor | None) -> None:
        if part is not None and threading.get_ident() == own:
            add("buffers", part.numel())

    def child(module: nn.Module, name: str, part: nn.Module | None) -> None:
        if threading.get_ident() == own:
            add("modules", 1)

    handles = [
        hooks.register_module_parameter_registration_hook(parameter),
        hooks.register_module_buffer_registration_hook(buffer),
        hooks.register_module_module_registration_hook(child),
    ]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


def _require_all(files: FolderFiles, model: nn.Module, info: dict[str, Any]) -> None:
    # transformers fills what is missing with random numbers, which would give a result that no one can repeat.
    for name, found, wanted in sorted(info["mismatched_keys"]):
        why = f"tensor {name!r} is {list(found)} in the weights and {list(wanted)} by {CONFIG}"
        refuse(files.folder, why, "give the weights that belong to it")
    if info["error_msgs"]:
        refuse(files.folder, reason(ValueError(info["error_msgs"][0])), f"give the weights that belong to its {CONFIG}")
    missing = sorted(info["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None  # type: ignore[assignment]  # where transformers puts it for a model without one
    elif missing:
        raise InputError(
            f"model folder {str(files.folder)!r} has no weights for {len(missing)} parameters, the first is "
            f"{missing[0]!r}: give the weights that belong to its config.json"
        )


def _require_finite(files: FolderFiles, model: nn.Module) -> None:
    for name, part in model.named_parameters():
        if part.is_floating_point() and not torch.isfinite(part).all():
            refuse(files.folder, f"{name!r} holds NaN or infinite numbers", "repair the weights first")


def _embedded(model: nn.Module) -> int | None:
    """How many tokens a model has embeddings for; None where it cannot be told."""
    try:
        weight = model.get_input_embeddings().weight  # type: ignore[operator]  # a PreTrainedModel
    except (AttributeError, NotImplementedError):
        return None
    return int(weight.shape[0]) if isinstance(weight, Tensor) and weight.dim() == 2 else None
