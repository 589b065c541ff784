"""The files of a transformers model folder: that each lies in it, and what they say of the model's size."""

from __future__ import annotations

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from safetensors import SafetensorError, safe_open
from torch import Tensor

from crossbar.errors import InputError

CONFIG = "config.json"
SINGLE = "model.safetensors"
INDEX = "model.safetensors.index.json"
TOKENIZER_CONFIG = "tokenizer_config.json"

_TEXTS = (".json", ".txt", ".model", ".jinja", ".tiktoken")
"""Endings of the files beside the weights that decide what a model computes and how its tokenizer reads."""

_LARGEST_TEXT = 64 << 20  # bytes; the largest tokenizers in use take half of it
_MOST_SHOWN = 300  # characters of another library's message
_DTYPES = re.compile(r"BF16|F(16|32|64)|F8_\w+|[IU](8|16|32|64)|BOOL")
_COUNTS = re.compile(r"(^|_)(layers?|depths?|blocks|heads?|groups?|experts|num_labels)$")
"""Names of what a configuration has many of: its class makes lists of this length before there is a model."""
_LEAST_COUNT = 1000
_LARGEST_LISTED = 1 << 22  # more than the largest vocabularies; some classes make lists of such lengths too
_LEAVE_OUT = "leave that entry out"


@dataclass(frozen=True)
class FolderFiles:
    """What a model folder holds, judged before anything of it is built.

    Attributes:
        folder: where the files are.
        config: the object in ``config.json``.
        texts: files beside the weights that decide a result: configurations and the tokenizer's files, by name.
        weights: the safetensors files, by name.
        shapes: of each tensor in them.
    """

    folder: Path
    config: Mapping[str, Any]
    texts: tuple[Path, ...]
    weights: tuple[Path, ...]
    shapes: Mapping[str, tuple[int, ...]]

    @classmethod
    def judged(cls, folder: Path) -> FolderFiles:
        """Find the files and read all but the numbers: a link that leads out of the folder is not followed.

        Raises:
            InputError: for a folder without a configuration or safetensors weights, for a file that is damaged, too
                large or outside, and for a configuration that asks for more than the weights can be of.
        """
        try:
            texts = _inside(folder)
            config = read_json(_require_config(folder))
            weights = _weight_files(folder)
            files = cls(folder, config, texts, weights, _shapes(folder, weights))
        except OSError as error:
            refuse(folder, reason(error), "give a folder that you can read")
        files._require_sizes(config)
        files._require_inside_names()
        return files

    @property
    def numbers(self) -> int:
        """How many numbers the tensors hold."""
        total = 0
        for shape in self.shapes.values():
            numbers = 1
            for size in shape:
                numbers *= size
            total += numbers
        return total

    def has(self, name: str) -> bool:
        """Whether there is a text file of this name."""
        return any(path.name == name for path in self.texts)

    def tensors(self) -> dict[str, Tensor]:
        """All tensors by name, in memory of their own: nobody who writes to the files changes them."""
        found: dict[str, Tensor] = {}
        for path, file in _opened(self.folder, self.weights):
            for name in file.keys():  # noqa: SIM118 - not a dict
                try:
                    found[name] = file.get_tensor(name).clone()
                except (SafetensorError, RuntimeError, ValueError, TypeError) as error:
                    refuse(self.folder, f"tensor {name!r} in {path.name}: {reason(error)}", "copy it again")
        return found

    def some(self, names: Set[str]) -> dict[str, Tensor]:
        """The tensors of these names, in memory of their own; of the files, nothing else is read."""
        found: dict[str, Tensor] = {}
        for _, file in _opened(self.folder, self.weights):
            for name in names & set(file.keys()):
                found[name] = file.get_tensor(name).clone()
        return found

    def fingerprint(self, digests: Mapping[str, str] | None = None) -> str:
        """SHA-256 (hex) of all files that decide a result, by name and content.

        Args:
            digests: those of files whose SHA-256 (hex) is known, by name.
        """
        known = digests or {}
        content = {path.name: known.get(path.name) or _digest(path) for path in (*self.texts, *self.weights)}
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()

    def _require_sizes(self, values: Any) -> None:
        """Refuse what would take long, or memory, before the model's tensors could be compared."""
        most = max(_LEAST_COUNT, len(self.shapes))
        for key, value in _entries(values):
            listed = list(_listed(value))
            counts = [value, *listed] if _COUNTS.search(key) else []
            if any(isinstance(number, int | float) and not abs(number) <= most for number in counts):
                why = f"{CONFIG} says {key} = {_short(value)}, and its weights are {len(self.shapes)} tensors"
                refuse(self.folder, why, "give the weights that belong to it")
            if any(isinstance(number, int) and abs(number) > _LARGEST_LISTED for number in listed):
                refuse(self.folder, f"{CONFIG} says {key} = {_short(value)}", f"give at most {_LARGEST_LISTED} there")
            if "_implementation" in key and isinstance(value, str) and "/" in value:
                refuse(self.folder, f"{CONFIG} asks for code from elsewhere, {key} = {_short(value)}", _LEAVE_OUT)
            if key == "configuration_files":
                refuse(self.folder, f"{CONFIG} names other files for other versions, {key}", _LEAVE_OUT)
            if key == "quantization_config" and isinstance(value, dict) and value.get("quant_method") == "ohmformer":
                remedy = "load it with from_pretrained (docs/transformers.md), or leave quantization_config out"
                refuse(self.folder, f"{CONFIG} says that it is one chip of a model", remedy)
            if key == "quantization_config" and value is not None:
                refuse(self.folder, f"{CONFIG} says that its weights are quantised", "give them as plain numbers")

    def _require_inside_names(self) -> None:
        """Refuse a tokenizer that names files elsewhere."""
        if not self.has(TOKENIZER_CONFIG):
            return
        root = self.folder.resolve()
        for key, value in _entries(read_json(self.folder / TOKENIZER_CONFIG)):
            for name in value if isinstance(value, list) else [value]:
                if not (key.endswith(("_file", "_files")) and isinstance(name, str)):
                    continue
                if os.path.exists(root / name) and not (root / name).resolve().is_relative_to(root):
                    refuse(self.folder, f"{TOKENIZER_CONFIG} names {_short(name)}", "it may name files of its own only")


def read_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file of a model folder.

    Raises:
        InputError: for a file that is too large or holds something else.
    """
    if path.stat().st_size > _LARGEST_TEXT:
        refuse(path.parent, f"{path.name} is larger than {_LARGEST_TEXT >> 20} MiB", "copy it again")
    try:
        values = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        refuse(path.parent, f"{path.name} is not JSON: {reason(error)}", "copy it again")
    if not isinstance(values, dict):
        refuse(path.parent, f"{path.name} is not an object of names and values", "copy it again")
    return values


def refuse(folder: Path, why: str, remedy: str) -> NoReturn:
    """Refuse a model folder in one sentence."""
    raise InputError(f"model folder {str(folder)!r} cannot be loaded ({why}): {remedy}")


def reason(error: BaseException) -> str:
    """What an exception of another library says, as part of a sentence."""
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    line = " ".join(part for part in str(error).split() if part.isprintable())
    return (line[: _MOST_SHOWN - 1] + "…" if len(line) > _MOST_SHOWN else line) or type(error).__name__


def _inside(folder: Path) -> tuple[Path, ...]:
    """The text files, once no link leads out of the folder."""
    root = folder.resolve()
    homes = [root]
    if root.parent.name == "snapshots":  # in the Hub's cache, whose files are links to its blobs
        homes.append(root.parent.parent / "blobs")
    texts = []
    for path in sorted([*folder.iterdir(), *(folder / "additional_chat_templates").glob("*")]):
        try:
            target = path.resolve()
        except RuntimeError as error:  # a link to itself
            refuse(folder, reason(error), "copy the file in its place")
        if path.is_symlink() and not any(target.is_relative_to(home) for home in homes):
            refuse(folder, f"{path.name!r} is a link that leads out of the folder", "copy the file in its place")
        if path.suffix in _TEXTS and path.is_file():
            if path.stat().st_size > _LARGEST_TEXT:
                refuse(folder, f"{path.name} is larger than {_LARGEST_TEXT >> 20} MiB", "copy it again")
            texts.append(path)
    return tuple(path for path in texts if path.parent == folder)


def _require_config(folder: Path) -> Path:
    if not (folder / CONFIG).is_file():
        raise InputError(
            f"model folder {str(folder)!r} has no {CONFIG}: give a folder written by transformers' save_pretrained"
        )
    return folder / CONFIG


def _weight_files(folder: Path) -> tuple[Path, ...]:
    """The safetensors files, by name: the single one, or those that the index names."""
    if (folder / SINGLE).is_file():
        return (folder / SINGLE,)
    if (folder / INDEX).is_file():
        try:
            named = read_json(folder / INDEX).get("weight_map")
        except InputError:
            named = None
        if not isinstance(named, dict) or not named or not all(isinstance(name, str) for name in named.values()):
            raise InputError(
                f"{str(folder / INDEX)!r} is not an index of safetensors shards: "
                "save the model again with save_pretrained"
            )
        shards = sorted(set(named.values()))
        for shard in shards:
            if Path(shard).name != shard or not shard.endswith(".safetensors"):
                refuse(
                    folder,
                    f"{INDEX} names {_short(shard)}",
                    "it may name safetensors files of the folder only, because others can run code when read",
                )
            if not (folder / shard).is_file():
                raise InputError(
                    f"model folder {str(folder)!r} lacks the shard {shard!r} that its index names: complete the folder"
                )
        return tuple(folder / shard for shard in shards)
    if any(folder.glob("*.bin")):
        raise InputError(
            f"model folder {str(folder)!r} has only pickled .bin weights, which can run code when read: "
            "convert them to safetensors by loading them where you trust them and calling save_pretrained"
        )
    raise InputError(f"model folder {str(folder)!r} has no {SINGLE}: give a folder with safetensors weights")


def _shapes(folder: Path, weights: tuple[Path, ...]) -> dict[str, tuple[int, ...]]:
    """Of each tensor; safetensors compares them with the size of the file when it opens it."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path, file in _opened(folder, weights):
        for name in file.keys():  # noqa: SIM118 - not a dict
            part = file.get_slice(name)
            if name in shapes:
                refuse(folder, f"tensor {_short(name)} comes twice, again in {path.name}", "complete the folder anew")
            if not _DTYPES.fullmatch(part.get_dtype()):
                refuse(folder, f"tensor {_short(name)} is of type {part.get_dtype()}", "give real numbers")
            shapes[name] = tuple(part.get_shape())
    return shapes


def _opened(folder: Path, weights: tuple[Path, ...]) -> Iterator[tuple[Path, Any]]:
    for path in weights:
        try:
            file = safe_open(path, framework="pt", device="cpu")
        except (SafetensorError, OSError, ValueError) as error:
            refuse(folder, f"{path.name}: {reason(error)}", "copy it again, or save the model again")
        with file:
            yield path, file


def _entries(values: Any) -> Iterator[tuple[str, Any]]:
    """All names and values of plain values, however deep."""
    waiting = [values]
    while waiting:
        part = waiting.pop()
        if isinstance(part, dict):
            yield from part.items()
            waiting.extend(part.values())
        elif isinstance(part, list):
            waiting.extend(part)


def _listed(value: Any) -> Iterator[Any]:
    """What is in lists of lists, however deep."""
    waiting = [value]
    while waiting:
        part = waiting.pop()
        if isinstance(part, list):
            waiting.extend(part)
            yield from part


def _short(value: Any) -> str:
    try:
        text = repr(value)
    except ValueError:  # a whole number of more digits than Python writes
        return "a number of thousands of digits"
    return text if len(text) <= 60 else text[:59] + "…"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
