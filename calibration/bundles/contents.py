"""What the files of a bundle say, held against each other before a model is built of them.

A manifest shows that files are what was written. What they say must fit too: whoever changes one can write the manifest
anew, and what is allocated later is bounded here by the files that are there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from attention import Pattern
from calibration.bundles import writer
from calibration.bundles.files import Files
from crossbar import AnalogLinear, Hardware, InputError, Tile
from crossbar.devices import RedrawDevice
from crossbar.errors import require_number, require_whole
from crossbar.nn.state import described_layers
from crossbar.tiles import ageing
from crossbar.tiles.mapping import tile_grid

_PAIRS = 2**22  # of a pattern, looked at at once
_TILE = ("G_minus", "G_plus")


def description(files: Files) -> dict[str, Any]:
    """``bundle.json``, its values of the right kinds; every other JSON file is read too.

    Those of transformers are among them, which reads them less strictly.
    """
    for name in files.entries:
        if name.endswith(".json"):
            files.json(name)
    told = files.json(writer.DESCRIPTION)
    for key, kind in (("model", dict), ("task", str), ("layers", list), ("refits", list), ("versions", dict)):
        files.field(writer.DESCRIPTION, key, kind, told)
    if told.get("pattern") is not None:
        files.field(writer.DESCRIPTION, "pattern", str, told)
    layers = told["layers"]
    if not layers or not all(isinstance(layer, str) for layer in layers) or len({*layers}) < len(layers):
        files.refuse(writer.DESCRIPTION, "its layers are not a list of different names")
    try:
        require_whole("chip", told.get("chip"), least=0)
        require_number("fitted", told.get("fitted"))
        require_number("seconds", told.get("seconds"))
        for refit in told["refits"]:
            require_number("seconds of a refit", refit["seconds"])
            if not isinstance(refit["step"]["step"], str):
                raise TypeError
    except InputError as error:
        files.refuse(writer.DESCRIPTION, str(error))
    except (TypeError, KeyError):
        files.refuse(writer.DESCRIPTION, "its refits do not say their time and step")
    if not all(isinstance(version, str) for version in told["versions"].values()):
        files.refuse(writer.DESCRIPTION, "its versions are not text")
    return told


def require_routing(files: Files, text: str | None, pattern: Pattern | None) -> None:
    """Refuse tables that are none, and those of other rows than the pattern opens.

    Args:
        files: of the bundle.
        text: the pattern in ``bundle.json``.
        pattern: what it stands for; None where that is not known.
    """
    if writer.ROUTING not in files.entries:
        return
    if text is None:
        files.refuse(writer.ROUTING, f"it opens rows and {writer.DESCRIPTION} names no pattern")
    tables = files.tensors(writer.ROUTING)
    heads = range(len(tables) // 2)
    if not tables or tables.keys() != {f"head.{head}.{part}" for head in heads for part in ("indptr", "indices")}:
        files.refuse(writer.ROUTING, "it does not hold the rows of heads")
    rows = [(tables[f"head.{head}.indptr"], tables[f"head.{head}.indices"]) for head in heads]
    tokens = rows[0][0].numel() - 1
    if tokens > writer.MOST_TOKENS or not all(_are_rows(*head, tokens) for head in rows):
        files.refuse(writer.ROUTING, f"it does not hold compressed rows of at most {writer.MOST_TOKENS} tokens")
    if pattern is not None and not any(_opens(pattern, causal, rows) for causal in (False, True)):
        files.refuse(writer.ROUTING, f"the pattern {pattern} opens other rows")


def _are_rows(indptr: Tensor, indices: Tensor, tokens: int) -> bool:
    """Whether these are compressed rows (`attention.CSR`) of a sequence of ``tokens``."""
    kinds = indptr.dtype == torch.int64 and indices.dtype == torch.int32 and indptr.dim() == indices.dim() == 1
    if not kinds or tokens < 1 or len(indptr) != tokens + 1 or indptr[0] != 0 or indptr[-1] != len(indices):
        return False
    inside = not len(indices) or (indices.min() >= 0 and indices.max() < tokens)
    return bool((indptr.diff() >= 0).all()) and bool(inside)


def _opens(pattern: Pattern, causal: bool, rows: list[tuple[Tensor, Tensor]]) -> bool:
    """Whether a pattern opens these rows, found piece by piece: it may attend far more pairs than they hold."""
    if not pattern.is_static or (pattern.n_heads or 1) != len(rows):
        return False
    tokens = len(rows[0][0]) - 1
    whole = (pattern.causal() if causal else pattern).at(tokens)
    step = max(_PAIRS // tokens, 1)
    for head, (indptr, indices) in enumerate(rows):
        for first in range(0, tokens, step):
            own = indptr[first : first + step + 1]
            found = whole.head(head).rows(len(own) - 1, tokens, first)
            if not torch.equal(found.indptr, own - own[0]):
                return False
            if not torch.equal(found.indices, indices[own[0] : own[-1]].long()):
                return False
    return True


def require_agreement(files: Files, told: Mapping[str, Any], hardware: Hardware | None) -> None:
    """Refuse a bundle whose files tell of different chips.

    Args:
        files: of the bundle.
        told: its `description`.
        hardware: what ``hardware.json`` stands for; None where that is not known.
    """
    for name in writer.state_files(files.entries):
        for layer, saved in described_layers(files.path(name)).items():
            if hardware is not None and saved["hardware"] != repr(hardware):
                files.refuse(name, f"it needs other hardware in {layer}: {saved['hardware'][:1000]}")
            if (saved["seed"], saved["seconds"]) != (told["chip"], told["seconds"]):
                files.refuse(
                    name,
                    f"it is of chip {saved['seed']} at {saved['seconds']:g} s in {layer}, and {writer.DESCRIPTION} "
                    f"tells of chip {told['chip']} at {told['seconds']:g} s",
                )
    report = files.json(writer.REPORT)
    recipe, written = files.json(writer.RECIPE), files.json(writer.HARDWARE)
    model = {key: told["model"].get(key) for key in ("name", "fingerprint")}
    for key, own in (
        ("task", told["task"]),
        ("pattern", told.get("pattern")),
        ("model", model["name"]),
        ("model_fingerprint", model["fingerprint"]),
        ("recipe", recipe),
    ):
        if report.get(key) != own:
            files.refuse(writer.REPORT, f"it is of another {key.replace('_', ' ')} than the bundle")
    if report.get("hardware") != written and not _alike(report.get("hardware"), written):
        files.refuse(writer.REPORT, "it is of other hardware than the bundle")
    chip = told["chip"], told["fitted"]
    try:
        scored = any(m["arm"] == "calibrated" and (m["chip"], m["fitted"]) == chip for m in report["measurements"])
        sizes = {
            layer["name"]: (layer["in_features"], layer["out_features"])
            for layer in report["conversion"]["layers"]
            if layer["tiles"]
        }
        if not all(type(size) is int and size > 0 for both in sizes.values() for size in both):
            raise ValueError("a layer's size is none")
    except (TypeError, KeyError, ValueError) as error:
        files.refuse(writer.REPORT, f"it lacks a part ({error})")
    if not scored:
        files.refuse(writer.REPORT, f"it does not score chip {chip[0]} as calibrated at {chip[1]:g} s")
    if [*sizes] != told["layers"]:
        files.refuse(writer.REPORT, f"its analog layers are not those of {writer.DESCRIPTION}")
    _require_tiles(files, _tile(files, written) if hardware is None else hardware.tile, sizes)
    if files.cells == "seeds":
        for layer, (lines, outputs) in sizes.items():
            _require_sample(files, hardware, told["chip"], layer, lines, outputs)


def _alike(first: Any, second: Any) -> bool:
    """Whether two descriptions of hardware differ in fields alone that keep their default."""
    try:
        return Hardware.from_dict(first) == Hardware.from_dict(second)
    except (InputError, TypeError):
        return False


def _tile(files: Files, hardware: Mapping[str, Any]) -> Tile:
    """The tile of hardware whose device may be a user's own."""
    try:
        return Hardware.from_dict({key: part for key, part in hardware.items() if key == "tile"}).tile
    except (InputError, TypeError) as error:
        files.refuse(writer.HARDWARE, str(error))


def _require_tiles(files: Files, tile: Tile, sizes: Mapping[str, tuple[int, int]]) -> None:
    """Refuse tiles of other layers or shapes."""
    folder = f"{writer.TILES}/"
    listed = {name for name in files.entries if name.startswith(folder)}
    wanted = {name for layer in sizes for name in writer.tile_files(files.entries, layer)}
    for name in sorted(listed ^ wanted):
        files.refuse(name, "no analog layer has it" if name in listed else "it is missing")
    for layer, (in_features, out_features) in sizes.items():
        counts = [count for count in (tile.pairs, tile.slices) if count > 1]
        shape = [*counts, *tile_grid(in_features, out_features, tile), tile.rows, tile.cols]
        names = writer.tile_files(files.entries, layer)
        found = [files.shapes(name) for name in names]
        rows = 0
        for name, own in zip(names, found, strict=True):
            here = own.get("G_plus", [])[-4:-3]
            part = [*shape[:-4], *here, *shape[-3:]]
            if not here or own != dict.fromkeys(_TILE, part) or (len(names) == 1 and part != shape):
                files.refuse(name, f"it holds {own}, not G_plus and G_minus of {shape} each")
            rows += here[0]
        if rows != shape[-4]:
            files.refuse(names[-1], f"its layer has {shape[-4]} rows of tiles, and the files {rows}")


def _require_sample(files: Files, hardware: Hardware | None, chip: int, layer: str, lines: int, outputs: int) -> None:
    """Refuse cells that seed and targets do not make again as they were written, as a sample of them tells.

    Args:
        files: of the bundle.
        hardware: the tiles; None where they are not known: then nothing is compared.
        chip: its seed.
        layer: whose cells; one that the sample has not keeps its cells in the bundle.
        lines, outputs: of the layer.
    """
    samples = files.tensors(writer.SAMPLES) if writer.SAMPLES in files.entries else {}
    sample = {name: part for name, part in samples.items() if name.rpartition("/")[0] == layer}
    if hardware is None or not sample:
        return
    device = hardware.device
    if isinstance(device, RedrawDevice) or not ageing.keeps_no_state(device):
        return
    pieces = [files.tensors(name) for name in writer.tile_files(files.entries, layer)]
    line, tile = writer.sampled_lines(lines), hardware.tile
    kinds = {part.shape for part in sample.values()}
    planes = [
        torch.cat([piece[key][..., line.start // tile.rows, line.start % tile.rows, :] for piece in pieces], -2)
        for key in reversed(_TILE)  # G_plus comes first
    ]
    targets = torch.stack([g.flatten(-2)[..., :outputs] for g in planes[: tile.signs]])
    targets = targets.reshape(-1, 1, outputs)
    shape = (len(targets), lines, outputs)
    made = ageing.program_lines(device, targets, (chip, layer), shape, line) if kinds == {targets.shape} else {}
    wanted = {f"{layer}/{name}": part for name, part in made.items()}
    if wanted.keys() != sample.keys() or not all(torch.equal(part, sample[name]) for name, part in wanted.items()):
        files.refuse(
            writer.SAMPLES,
            f"seed {chip} does not make the cells of {layer} again as they were written, with these versions",
        )


def require_numbers(files: Files, told: Mapping[str, Any]) -> None:
    """Refuse conductances that are neither absent (NaN) nor a finite number of 0 µS or more."""
    for layer in told["layers"]:
        for name in writer.tile_files(files.entries, layer):
            for key, found in files.tensors(name).items():
                if not found.is_floating_point() or not (found.isnan() | ((found >= 0) & (found < math.inf))).all():
                    files.refuse(name, f"{key} holds what is no conductance")


def require_targets(files: Files, layer: AnalogLinear) -> None:
    """Refuse tiles that are not what the model's weights and the chip's calibration are written as."""
    names = writer.tile_files(files.entries, layer.name)
    name, pieces = names[0], [files.tensors(name) for name in names]
    found = {key: torch.cat([piece[key] for piece in pieces], -4) for key in _TILE}
    for key, own in zip(("G_plus", "G_minus"), layer.target_conductances(), strict=True):
        near = found[key].dtype == own.dtype and torch.allclose(
            found[key], own.cpu(), rtol=1e-5, atol=1e-6 * layer.hardware.device.g_max, equal_nan=True
        )
        if not near:
            files.refuse(name, f"{key} is not what the layer's weights are written as")
