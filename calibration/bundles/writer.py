"""A calibrated chip to a bundle, the folder that deployment takes."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attention import Pattern
from calibration.bundles import model_folders
from calibration.bundles.files import Files, new_folder, seal, write_json
from calibration.models.folder_files import FolderFiles
from calibration.runs.deployment import Deployment
from calibration.runs.experiment import Experiment
from calibration.versions import version_of
from crossbar import AnalogLinear, InputError, analog_layers, save_state
from crossbar.nn.module import AnalogModule
from crossbar.storage import tensor_files

DESCRIPTION, HARDWARE, RECIPE, REPORT = "bundle.json", "hardware.json", "recipe.json", "report.json"
MODEL, TILES = "model", "tiles"
STATES = "states"
STATE, RECALIBRATED, ROUTING = "state.safetensors", "recalibrated.safetensors", "routing.safetensors"
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
) -> None:
    """Write chip ``chip`` as it was scored after being calibrated ``fitted`` seconds after programming.

    Args:
        deployment: the calibrated chips.
        report: `Calibration.to_dict` of the same.
        path: a folder that does not exist yet.
        chip: its seed.
        fitted: one of the times of the calibration, s.
        whole: called when all is written, just before the folder takes its name.

    Raises:
        InputError: as `Calibration.save`.
    """
    require_no_memory(report["memory"])
    experiment = deployment.experiment
    deployment.restore(chip, fitted)
    with new_folder(path) as folder:
        saved = model_folders.save(experiment.digital, experiment.tokenizer, folder / MODEL)
        _write_tiles(experiment.analog, folder / TILES)
        save_state(experiment.analog, folder / STATE)
        changed = _changed(experiment)
        if changed:
            tensor_files.write(changed, folder / RECALIBRATED)
        _describe(folder, experiment, report, saved, (chip, fitted, deployment.wait))
        whole()


def save_part(experiment: Experiment, folder: Path) -> None:
    """Write what a bundle holds of one part of a streamed model, a chip that stands; again what is there already."""
    _write_tiles(experiment.analog, folder / TILES)
    save_state(experiment.analog, folder / STATE)


def save_streamed(
    experiment: Experiment,
    files: FolderFiles,
    report: Mapping[str, Any],
    path: Path,
    scored: tuple[int, float, float],
    parts: Sequence[Path],
) -> None:
    """Write a bundle of what `save_part` wrote of each part, whose states stay files of their own.

    Args:
        experiment: on the model without weights.
        files: of its folder, which are copied.
        report: `Calibration.to_dict`.
        path: a folder that does not exist yet.
        scored: the chip's seed, when it was fitted, and how long after that it was scored, s.
        parts: folders that `save_part` wrote to, some of which have nothing on tiles.

    Raises:
        InputError: as `Calibration.save`.
    """
    with new_folder(path) as folder:
        for name in (MODEL, TILES, STATES):
            (folder / name).mkdir()
        for file in (*files.texts, *files.weights):
            shutil.copyfile(file, folder / MODEL / file.name)
        for place, part in enumerate(parts):
            if (part / STATE).is_file():
                shutil.copyfile(part / STATE, folder / STATES / f"{place:04d}.safetensors")
                for tile in (part / TILES).iterdir():
                    shutil.copyfile(tile, folder / TILES / tile.name)
        saved = {"class": type(experiment.digital).__name__, "dtype": "torch.float32"}
        _describe(folder, experiment, report, saved, scored)


def _write_tiles(model: nn.Module, folder: Path) -> None:
    """Target conductances, a file for each layer."""
    folder.mkdir(exist_ok=True)
    for name, layer in analog_layers(model).items():
        g_plus, g_minus = layer.target_conductances()
        tensor_files.write(
            {"G_plus": g_plus.contiguous(), "G_minus": g_minus.contiguous()}, folder.parent / tile_file(name)
        )


def _describe(
    folder: Path,
    experiment: Experiment,
    report: Mapping[str, Any],
    saved: Mapping[str, Any],
    scored: tuple[int, float, float],
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
    seal(folder)


def state_files(names: Iterable[str]) -> list[str]:
    """The files with the cells of a bundle: one, or one for each part of a model that was streamed."""
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
    made = {DESCRIPTION, *state_files(files.entries)}
    with new_folder(path) as folder:
        for name in files.entries:
            if name not in made:
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(files.folder / name, folder / name)
        save_state(model, folder / STATE)
        write_json(folder / DESCRIPTION, description)
        for name, entry in seal(folder).entries.items():
            if name not in (STATE, DESCRIPTION) and entry != files.entries[name]:
                raise InputError(f"bundle {str(files.folder)!r}: file {name!r} changed since it was loaded: load again")


def tile_file(layer: str) -> str:
    """The file with a layer's target conductances."""
    return f"{TILES}/{layer}.safetensors"


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
