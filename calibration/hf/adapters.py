"""Adapters in peft's format: out of and into analog layers, and peft's own LoRA beside tiles.

peft is an extra: `pip install 'ohmformer[peft]'`.
"""

from __future__ import annotations

import re
from pathlib import Path

import torch
from peft import LoraConfig, PeftConfig
from peft.tuners.lora import Linear as LoraLinear
from peft.utils import SAFETENSORS_WEIGHTS_NAME, load_peft_weights
from peft.utils.other import get_pattern_key
from torch import Tensor, nn

from calibration.bundles.files import new_folder
from crossbar import AnalogLinear, InputError, analog_layers
from crossbar.errors import shown
from crossbar.nn.module import TILES
from crossbar.storage import tensor_files

_PREFIX = "base_model.model."
_MATRICES = re.compile(r"(.+)\.lora_([AB])\.weight")


def save_adapters(model: nn.Module, path: str | Path) -> None:
    """Write the adapters of analog layers, fitted or trained, as a LoRA folder that peft loads onto the digital model.

    ``x @ down @ up`` is LoRA with ``A = downᵀ``, ``B = upᵀ`` and a scaling of 1. The gains and offsets of outputs that
    may stand beside it are of the chip and stay out.

    Args:
        model: converted.
        path: a folder that does not exist yet, for ``adapter_model.safetensors`` and ``adapter_config.json``.

    Raises:
        InputError: for a model without adapters, for one beside a matrix that is a part of a layer (an expert, a part
            of attention), which peft has no name for, and for a folder that exists already or cannot be written.
    """
    tensors: dict[str, Tensor] = {}
    ranks: dict[str, int] = {}
    for name, layer in analog_layers(model).items():
        down, up = layer.adapter_down, layer.adapter_up
        if down is None or up is None:
            continue
        if f".{TILES}." in name:
            raise InputError(
                f"{name} is a part of a layer, beside which peft has no adapters: save the chip as a bundle"
            )
        tensors[f"{_PREFIX}{name}.lora_A.weight"] = down.detach().t().contiguous()
        tensors[f"{_PREFIX}{name}.lora_B.weight"] = up.detach().t().contiguous()
        ranks[name] = down.shape[1]
    if not ranks:
        raise InputError(
            f"{type(model).__name__} has no adapters: fit them with LowRankAdapter or Finetune, or load_adapters"
        )
    each = {f"^{re.escape(name)}": rank for name, rank in ranks.items()}
    rank = max(ranks.values())
    config = LoraConfig(
        base_model_name_or_path=getattr(getattr(model, "config", None), "name_or_path", None),
        target_modules=sorted(ranks),
        r=rank,
        lora_alpha=rank,
        rank_pattern=each,
        alpha_pattern=each,
        inference_mode=True,
    )
    with new_folder(Path(path)) as folder:
        config.save_pretrained(str(folder))
        tensor_files.write(tensors, folder / SAFETENSORS_WEIGHTS_NAME, {"format": "pt"})


@torch.no_grad()
def load_adapters(model: nn.Module, path: str | Path) -> None:
    """Put a LoRA folder of peft into analog layers, where digital arithmetic computes it beside the tiles.

    Args:
        model: converted; adapters that it has are replaced.
        path: the folder, or a name on the Hub.

    Raises:
        InputError: for adapters of another kind than LoRA without biases, for other trained parts in the folder, and
            for layers that are not on tiles or of another size.
    """
    where = f"adapters {str(path)!r}"
    try:
        config = PeftConfig.from_pretrained(str(path))
        tensors = load_peft_weights(str(path), device="cpu")
    except (ValueError, OSError) as error:
        raise InputError(f"{where} cannot be read ({error}): give a folder that peft wrote") from None
    halves: dict[str, dict[str, Tensor]] = {}
    for key, tensor in tensors.items():
        found = _MATRICES.fullmatch(key.removeprefix(_PREFIX))
        if not isinstance(config, LoraConfig) or found is None or config.use_dora:
            raise InputError(f"{where} hold {shown(key)}, which is no matrix of plain LoRA: give LoRA without biases")
        halves.setdefault(found[1], {})[found[2]] = tensor
    layers = analog_layers(model)
    for name, own in halves.items():
        if name not in layers or own.keys() != {"A", "B"}:
            raise InputError(
                f"{where} have a part for {shown(name)}, which is no analog layer of the model: convert it"
            )
    for name, own in halves.items():
        rank = own["A"].shape[0]
        alpha = config.alpha_pattern.get(get_pattern_key(config.alpha_pattern.keys(), name), config.lora_alpha)
        scaling = alpha / (rank**0.5 if config.use_rslora else rank)
        down, up = own["A"].t(), own["B"].t() * scaling
        layers[name].set_adapter(*(half.contiguous().to(layers[name].scales) for half in (down, up)))


class AnalogLora(LoraLinear):  # type: ignore[misc]  # peft is not typed for mypy here
    """peft's LoRA beside a layer on tiles: what the tiles give, and the adapter in digital."""

    def _get_in_out_features(self, module: AnalogLinear) -> tuple[int, int]:
        return module.in_features, module.out_features

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """Refuse it.

        Raises:
            InputError: always.
        """
        raise InputError(
            "the weights are in cells, into which no adapter can be merged: merge it into the digital model, then "
            "convert and program that"
        )


def on_tiles(config: LoraConfig) -> LoraConfig:
    """Tell a LoRA configuration of peft about layers on tiles, and return it.

    To begin, ``get_peft_model(model, on_tiles(LoraConfig(...)))``; to go on, ``PeftModel.from_pretrained(model, folder,
    config=on_tiles(PeftConfig.from_pretrained(folder)))``.
    """
    config._register_custom_module({AnalogLinear: AnalogLora})
    return config
