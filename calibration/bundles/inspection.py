"""What a bundle is, told from its verified files without building its model."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from attention import Pattern, parse
from calibration.bundles import contents, writer
from calibration.bundles.files import Files
from crossbar import Hardware, InputError, format_seconds

_CELLS = {
    "conductances": "what programming left in each",
    "seeds": "made again from seed and targets; a sample was compared",
}
"""How `rows` tells `calibration.bundles.files.CELLS`."""


def inspect_bundle(path: str | Path) -> dict[str, Any]:
    """Plain values about a bundle: model, task, layers and tiles, hardware, recipe, times, accuracy, sizes.

    Raises:
        InputError: as `calibration.load_bundle` for files that are not what the manifest says, or that tell of
            different chips.
    """
    files = Files.verified(Path(path))
    description, report = contents.description(files), files.json(writer.REPORT)
    text = description.get("pattern")
    contents.require_routing(files, text, _known_pattern(text))
    contents.require_agreement(files, description, _known_hardware(files))
    contents.require_numbers(files, description)
    try:
        conversion = report["conversion"]
        return {
            "bundle": str(path),
            "model": description["model"],
            "task": description["task"],
            "pattern": description["pattern"],
            "analog_layers": conversion["analog_layers"],
            "tiles": conversion["tiles"],
            "parameters": conversion["parameters"],
            "analog_parameters": conversion["analog_parameters"],
            "hardware": files.json(writer.HARDWARE),
            "recipe": files.json(writer.RECIPE),
            "chip": description["chip"],
            "cells": files.cells,
            "fitted": description["fitted"],
            "seconds": description["seconds"],
            "refits": description["refits"],
            "accuracy": {"metric": report["primary"], **_accuracy(report, description)},
            "versions": description["versions"],
            "bytes": files.size,
            "files": {name: {"bytes": entry.size, "sha256": entry.sha256} for name, entry in files.entries.items()},
        }
    except (KeyError, TypeError, AttributeError) as error:
        files.refuse(writer.REPORT, f"it or {writer.DESCRIPTION} lacks a part ({error})")


def _known_pattern(text: str | None) -> Pattern | None:
    """The pattern; None for one of tensors or functions, which has no text."""
    return None if text is None or "<" in text else parse(text)


def _known_hardware(files: Files) -> Hardware | None:
    """The tiles; None for those of a device of one's own."""
    try:
        return Hardware.from_dict(files.json(writer.HARDWARE))
    except (InputError, TypeError):
        return None


def rows(values: dict[str, Any]) -> list[tuple[str, str]]:
    """The same for people: a name and a text each.

    Raises:
        InputError: for values of another kind than `inspect_bundle` is meant to give.
    """
    try:
        share = values["analog_parameters"] / values["parameters"]
        scores = values["accuracy"]
        arms = ", ".join(f"{arm} {value:.4g}" for arm, value in scores.items() if arm != "metric")
        told = [
            ("model", f"{values['model']['name']} ({values['model']['class'] or 'a class of your own'})"),
            ("task", values["task"]),
            ("attention", values["pattern"] or "the model's own"),
            (
                "analog",
                f"{values['analog_layers']} layers on {values['tiles']} tiles, {values['analog_parameters']:,} of "
                f"{values['parameters']:,} parameters ({share:.0%})",
            ),
            ("hardware", _hardware(values["hardware"])),
            ("recipe", f"{values['recipe']['name']}: {', '.join(s['step'] for s in values['recipe']['steps'])}"),
            ("cells", _CELLS[values["cells"]]),
            ("chip", f"seed {values['chip']}, calibrated at {format_seconds(values['fitted'])}"),
            ("age", f"{format_seconds(values['seconds'])} since programming"),
            *(("refit", f"{r['step']['step']} at {format_seconds(r['seconds'])}") for r in values["refits"]),
            (scores["metric"], arms + (" (before the refit)" if values["refits"] else "")),
            ("files", f"{len(values['files'])}, {values['bytes'] / 1e6:,.1f} MB, every SHA-256 verified"),
            ("written by", ", ".join(f"{name} {version}" for name, version in values["versions"].items())),
        ]
        if not all(isinstance(text, str) for row in told for text in row):
            raise TypeError("a text is none")
    except (KeyError, TypeError, AttributeError, ValueError, ZeroDivisionError) as error:
        raise InputError(
            f"bundle {values['bundle']!r}: its description lacks a part ({error}): make the bundle again"
        ) from None
    return told


def _accuracy(report: dict[str, Any], description: dict[str, Any]) -> dict[str, float]:
    """The primary metric of the digital model, and of this chip before and after calibration."""
    chip, fitted, scores = description["chip"], description["fitted"], {}
    for m in report["measurements"]:
        own = m["chip"] == chip and fitted in (m["seconds"], m["fitted"])
        if m["metric"] == report["primary"] and (m["chip"] is None or own):
            scores[m["arm"]] = m["value"]
    return scores


def _hardware(values: dict[str, Any]) -> str:
    tile, dac, adc = values["tile"], values["dac"], values["adc"]
    converters = ", ".join(
        f"{name} {part['bits']} bit" if part else f"no {name}" for name, part in (("DAC", dac), ("ADC", adc))
    )
    noise = f"output noise {values['output_noise']:g}"
    return f"{values['device']['kind']}, tiles of {tile['rows']} x {tile['cols']}, {converters}, {noise}"
