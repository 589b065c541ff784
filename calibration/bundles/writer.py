"""A calibrated chip to a bundle, the folder that deployment takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from attention import Pattern
from calibration.bundles import model_folders
from calibration.bundles.files import CELLS, LARGEST, Files, new_folder, seal, write_json
from calibration.models.folder_files import FolderFiles
from calibration.runs.deployment import Deployment
from calibration.runs.experiment import Experiment
from calibration.versions import version_of
from crossbar import AnalogLinear, InputError, analog_layers, save_state
from crossbar.errors import shown
from crossbar.nn.module import AnalogModule
from crossbar.storage import tensor_files

DESCRIPTION, HARDWARE, RECIPE, REPORT = "bundle.json", "hardware.json", "recipe.json", "report.json"
MODEL, TILES = "model", "tiles"
STATES = "states"
STATE, RECALIBRATED, ROUTING = "state.safetensors", "recalibrated.safetensors", "routing.safetensors"
SAMPLES = "samples.safetensors"
MOST_TOKENS = 2**18
"""The longest sequence that rows are written for."""
_VERSIONS = ("ohmformer", "torch", "transformers", "aihwkit")


def save_bundle(
    deployment: Deployment,
    report: Mapping[str, Any],
    path: Path,
    chip: int,
    fitted: float,
    whole: Callable[[], None] = lambda: None,
    cells: str = CELLS[0],
    largest: int = LARGEST,
) -> None:
    """Write chip ``chip`` as it was scored after being calibrated ``fitted`` seconds after programming.

    Args:
        deployment: the calibrated chips.
        report: `Calibration.to_dict` of the same.
        path: a folder that does not exist yet.
        chip: its seed.
        fitted: one of the times of the calibration, s.
        whole: called when all is written, just before the folder takes its name.
        cells: one of `calibration.bundles.files.CELLS`.
        largest: bytes of a file.

    Raises:
        InputError: as `Calibration.save`.
    """
    require_cells(cells)
    require_no_memory(report["memory"])
    experiment = deployment.experiment
    deployment.restore(chip, fitted)
    with new_folder(path) as folder:
        saved = model_folders.save(experiment.digital, experiment.tokenizer, folder / MODEL, largest)
        _write_targets(experiment.analog, folder, largest)
        _write_cells(experiment.analog, folder, cells, largest)
        changed = _changed(experiment)
        if changed:
            tensor_files.write(changed, folder / RECALIBRATED)
        _describe(folder, experiment, report, saved, (chip, fitted, deployment.wait), cells)
        whole()


def save_part(experiment: Experiment, folder: Path, cells: str = CELLS[0], largest: int = LARGEST) -> None:
    """Write what a bundle holds of one part of a streamed model, a chip that stands; again what is there already."""
    for left in (TILES, STATES):
        shutil.rmtree(folder / left, ignore_errors=True)
    _write_targets(experiment.analog, folder, largest)
    _write_cells(experiment.analog, folder, cells, largest)


def save_streamed(
    experiment: Experiment,
    files: FolderFiles,
    report: Mapping[str, Any],
    path: Path,
    scored: tuple[int, float, float],
    parts: Sequence[Path],
    cells: str = CELLS[0],
) -> None:
    """Write a bundle of what `save_part` wrote of each part, whose states stay files of their own.

    Args:
        experiment: on the model without weights.
        files: of its folder, which are copied.
        report: `Calibration.to_dict`.
        path: a folder that does not exist yet.
        scored: the chip's seed, when it was fitted, and how long after that it was scored, s.
        parts: folders that `save_part` wrote to, some of which have nothing on tiles.
        cells: what they hold of cells.

    Raises:
        InputError: as `Calibration.save`.
    """
    with new_folder(path) as folder:
        for name in (MODEL, TILES, STATES):
            (folder / name).mkdir()
        for file in (*files.texts, *files.weights):
            shutil.copyfile(file, folder / MODEL / file.name)
        samples: dict[str, Tensor] = {}
        for place, part in enumerate(parts):
            for number, name in enumerate(state_files(_names(part)) if (part / TILES).is_dir() else ()):
                shutil.copyfile(part / name, folder / STATES / f"{place:04d}-{number:04d}.safetensors")
            if (part / TILES).is_dir():
                shutil.copytree(part / TILES, folder / TILES, dirs_exist_ok=True)
            if (part / SAMPLES).is_file():
                samples |= load_file(part / SAMPLES)
        if samples:
            tensor_files.write(samples, folder / SAMPLES)
        saved = {"class": type(experiment.digital).__name__, "dtype": "torch.float32"}
        _describe(folder, experiment, report, saved, scored, cells)


def _write_targets(model: nn.Module, folder: Path, largest: int) -> None:
    """Target conductances of each layer: a file, or a folder of several, each with some of its rows of tiles."""
    (folder / TILES).mkdir(exist_ok=True)
    for layer, own in analog_layers(model).items():
        pair = own.target_conductances()
        rows = max(1, largest * pair[0].shape[-4] // max(1, 2 * pair[0].nbytes))
        pieces = [pair] if rows >= pair[0].shape[-4] else list(zip(*(g.split(rows, -4) for g in pair), strict=True))
        for number, (g_plus, g_minus) in enumerate(pieces):
            path = folder / (tile_file(layer) if len(pieces) == 1 else f"{TILES}/{layer}/{number:04d}.safetensors")
            path.parent.mkdir(exist_ok=True)
            tensor_files.write({"G_plus": g_plus.contiguous(), "G_minus": g_minus.contiguous()}, path)


def _write_cells(model: nn.Module, folder: Path, cells: str, largest: int) -> None:
    """What is kept of the cells of each layer, and with what they were calibrated."""
    samples: dict[str, Tensor] = {}
    sizes: dict[str, int] = {}
    for name, layer in analog_layers(model).items():
        made_again = cells == "seeds" and layer.cells.is_made_again
        if made_again:
            for part, values in layer.cells.state_of(sampled_lines(layer.in_features)).items():
                samples[f"{name}/{part}"] = values.contiguous()
        left = 0 if made_again else sum(values.nbytes for values in layer.cells.state_of(slice(0, 1)).values())
        sizes[name] = left * layer.in_features + 8 * layer.in_features * layer.out_features
    if samples:
        tensor_files.write(samples, folder / SAMPLES)
    groups = _grouped(sizes, largest)
    whole = cells != "seeds"
    if len(groups) == 1:
        save_state(model, folder / STATE, whole=whole)
        return
    (folder / STATES).mkdir()
    for number, names in enumerate(groups):
        save_state(model, folder / STATES / f"{number:04d}.safetensors", whole=whole, names=names)


def _grouped(sizes: Mapping[str, int], largest: int) -> list[list[str]]:
    """Layers one after another, as many in a group as so many bytes hold, one at least."""
    groups: list[list[str]] = []
    left = 0
    for name, size in sizes.items():
        if not groups or size > left:
            groups.append([])
            left = largest
        groups[-1].append(name)
        left -= size
    return groups


def sampled_lines(lines: int) -> slice:
    """The word line, of so many, whose cells are kept where all others are made again."""
    return slice(lines // 2, lines // 2 + 1)


def require_cells(cells: str) -> None:
    """Refuse what a bundle cannot hold of cells.

    Raises:
        InputError: for another name than those of `calibration.bundles.files.CELLS`.
    """
    if cells not in CELLS:
        raise InputError(f"cells = {shown(cells)} is not allowed: choose {' or '.join(CELLS)}")


def _names(folder: Path) -> list[str]:
    """Of all files in a folder."""
    return [path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()]


def _describe(
    folder: Path,
    experiment: Experiment,
    report: Mapping[str, Any],
    saved: Mapping[str, Any],
    scored: tuple[int, float, float],
    cells: str,
) -> None:
    """Write all that is not of the model or of cells, and seal the folder."""
    chip, fitted, wait = scored
    tables = routing(experiment)
    if tables:
        tensor_files.write(tables, folder / ROUTING)
    write_json(folder / HARDWARE, experiment.hardware.to_dict())
    write_json(folder / RECIPE, report["recipe"])
    write_json(folder / REPORT, report)
    description = {
        "model": {"name": report["model"], "fingerprint": report["model_fingerprint"], **saved},
        "task": report["task"],
        "pattern": report["pattern"],
        "layers": [layer.name for layer in experiment.conversion.analog],
        "chip": chip,
        "fitted": fitted,
        "seconds": fitted + wait,
        "refits": [],
        "versions": {name: found for name in _VERSIONS if (found := version_of(name)) is not None},
    }
    write_json(folder / DESCRIPTION, description)
    seal(folder, cells)


def state_files(names: Iterable[str]) -> list[str]:
    """The files with the cells of a bundle: one, or several with some layers each."""
    return sorted(name for name in names if name.startswith(f"{STATES}/")) or [STATE]


def require_no_memory(memory: object) -> None:
    """Refuse to bundle a model with keys and values in analog memory."""
    if memory is not None:
        raise InputError(
            "a bundle holds no analog memory for keys and values: save a calibration without one, and attach the "
            "memory to the model that load_bundle gives"
        )


def save_refitted(files: Files, path: Path, model: nn.Module, description: dict[str, Any]) -> None:
    """Write a bundle like another one, with the state that its model is in now.

    Raises:
        InputError: as `Calibration.save`, and for a file of the other bundle that was changed since it was loaded.
    """
    made = {DESCRIPTION, SAMPLES, *state_files(files.entries)}
    with new_folder(path) as folder:
        for name in files.entries:
            if name not in made:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(files.folder / name, folder / name)
        _write_cells(model, folder, files.cells, LARGEST)
        write_json(folder / DESCRIPTION, description)
        for name, entry in seal(folder, files.cells).entries.items():
            if name in files.entries and name not in made and entry != files.entries[name]:
                raise InputError(f"bundle {str(files.folder)!r}: file {name!r} changed since it was loaded: load again")


def tile_file(layer: str) -> str:
    """The file with a layer's target conductances."""
    return f"{TILES}/{layer}.safetensors"


def tile_files(names: Iterable[str], layer: str) -> list[str]:
    """The files with a layer's target conductances: one, or one after another those with some rows of tiles each."""
    return sorted(name for name in names if name.startswith(f"{TILES}/{layer}/")) or [tile_file(layer)]


def routing(experiment: Experiment) -> dict[str, Tensor]:
    """Who attends to whom, as compressed rows for the longest sequence of the task; none where data decide it.

    None either beyond `MOST_TOKENS`.
    """
    pattern = experiment.pattern
    if pattern is None or not pattern.is_static:
        return {}
    lengths = [batch["input_ids"].shape[-1] for batch in experiment.task.batches("evaluation") if "input_ids" in batch]
    if not lengths or max(lengths) > MOST_TOKENS:
        return {}
    return routing_tables(pattern, max(lengths), _is_causal(experiment.digital))


def routing_tables(pattern: Pattern, tokens: int, causal: bool) -> dict[str, Tensor]:
    """Compressed rows (`attention.CSR`) of a static pattern, a table for each head that it tells apart."""
    whole = (pattern.causal() if causal else pattern).at(tokens)
    tables = {}
    for head in range(whole.n_heads or 1):
        rows = whole.head(head).rows(tokens)
        tables[f"head.{head}.indptr"], tables[f"head.{head}.indices"] = rows.indptr, rows.indices.to(torch.int32)
    return tables


def _is_causal(model: nn.Module) -> bool:
    return any(vars(module).get("is_causal", False) for module in model.modules())


def named_parts(model: nn.Module, keep_vars: bool = False) -> dict[str, Tensor]:
    """Parameters and buffers by the names that they have in the digital model; ``keep_vars``: not detached."""
    kinds = AnalogLinear | AnalogModule
    inside = {f"{name}.digital.": f"{name}." for name, m in model.named_modules() if isinstance(m, kinds)}
    parts = {}
    for name, tensor in model.state_dict(keep_vars=keep_vars).items():
        before, found, last = name.rpartition(".digital.")
        owner = inside.get(f"{before}{found}")
        parts[name if owner is None else owner + last] = tensor
    return parts


def _changed(experiment: Experiment) -> dict[str, Tensor]:
    """What recalibration made of parameters that stay digital, such as gains of norms."""
    digital, analog = named_parts(experiment.digital), named_parts(experiment.analog)
    return {
        name: tensor.detach().clone().contiguous()
        for name, tensor in analog.items()
        if name in digital and not torch.equal(tensor, digital[name])
    }
