"""Language models of which one block at a time is in memory, read from the safetensors files of their folder."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NoReturn, cast

import torch
from torch import Tensor, nn

from calibration.models.folder_files import FolderFiles, refuse
from calibration.models.loading import Loaded, load_model, located
from calibration.models.sharing import shared_copy
from calibration.progress import Progress
from crossbar.errors import InputError

_TENSORS = ("torch.Tensor", "Tensor", torch.Tensor, torch.FloatTensor)
_PLAIN = (bool, int, float, str)


class BlockModel:
    """A transformers causal language model as parts that come into memory one after another.

    Part ``k`` of ``n`` blocks is block ``k``, the first with the embeddings before it; part ``n`` is what follows the
    blocks: the last norm and the head. A part is the whole model as far as names, configuration and calls go, so
    that converting, attaching, seeds and ledgers see the names they see in the whole model. What is not in memory
    passes on what it is given, and costs nothing.

    Attributes:
        loaded: the model with all parts on torch's device ``meta``, and its tokenizer.
        blocks: their names, in the order in which they are called.
        files: of the model's folder.

    Raises:
        InputError: for a model that is no causal language model, whose blocks cannot be told, or hand on more than
            hidden states, and for a folder whose tensors have other names than the model's.
    """

    def __init__(self, source: str | Path, progress: Progress | None = None) -> None:
        found = located(source, progress)
        self.loaded: Loaded = load_model(source, progress, weights=False)
        self.files = FolderFiles.judged(found.folder)
        if self.loaded.gives != "next tokens":
            self._refuse("it is no causal language model")
        self._tied: Mapping[str, str] = dict(getattr(self.loaded.model, "all_tied_weights_keys", None) or {})
        self._require_names()
        skeleton: Any = copy.deepcopy(self.loaded.model)
        skeleton.config.dtype = torch.float32  # as of a model that is loaded in float32
        self.blocks = self._find_blocks(skeleton)
        self._first = self._named(skeleton, skeleton.get_input_embeddings())
        self._last = self._named(skeleton, skeleton.get_output_embeddings())
        parts = tuple(f"{name}." for name in (*self.blocks, self._first, self._last))
        self._fill(skeleton, [name for name in skeleton.state_dict() if not name.startswith(parts)])
        _fill_buffers(skeleton)
        self._skeleton = skeleton.eval()

    def __len__(self) -> int:
        """Number of parts."""
        return len(self.blocks) + 1

    def part_of(self, layer: str) -> int:
        """The part that a layer of this name belongs to."""
        for index, name in enumerate(self.blocks):
            if layer.startswith(f"{name}."):
                return index
        return 0 if layer == self._first else len(self.blocks)

    def without_weights(self) -> nn.Module:
        """The model as it scores without any block: embeddings alone, and scores that are all 0."""
        return self._with_part(None)

    def part(self, index: int, enter: Callable[[], Tensor | None], leave: Callable[[Tensor], None]) -> nn.Module:
        """The model with one part in memory.

        Args:
            index: of the part.
            enter: called at each forward pass for the hidden states ``[B, N, D]`` that the part gets; None: those
                that the model brings there.
            leave: called with the hidden states that a block hands on.
        """
        return self._with_part(index, enter, leave)

    def _with_part(
        self,
        index: int | None,
        enter: Callable[[], Tensor | None] | None = None,
        leave: Callable[[Tensor], None] | None = None,
    ) -> nn.Module:
        model = shared_copy(self._skeleton)
        for place, name in enumerate(self.blocks):
            if place != index:
                model.set_submodule(name, _Passed(model.get_submodule(name)))
        for name, at in ((self._first, {0, None}), (self._last, {len(self.blocks)})):
            if index not in at:
                weight = cast(Tensor, model.get_submodule(name).weight)
                model.set_submodule(name, _Nothing(weight.shape, is_head=name == self._last))
        self._fill(model, [name for name, tensor in model.state_dict().items() if tensor.is_meta])
        if enter is not None and leave is not None:
            last = len(self.blocks) - 1
            _hook(model.get_submodule(self.blocks[last if index is None else min(index, last)]), enter, leave)
        return model

    def _find_blocks(self, model: nn.Module) -> list[str]:
        """The names of the modules of the one list whose class transformers keeps whole when it splits a model."""
        kinds = set(getattr(model, "_no_split_modules", None) or ())
        lists = {
            name: module
            for name, module in model.named_modules()
            if isinstance(module, nn.ModuleList) and len(module) and all(type(m).__name__ in kinds for m in module)
        }
        if len(lists) != 1:
            self._refuse(f"it has {len(lists)} lists of blocks")
        ((name, found),) = lists.items()
        for block in found:
            if inspect.signature(type(block).forward).return_annotation not in _TENSORS:
                self._refuse(f"its blocks, {type(block).__name__}, hand on more than hidden states")
        if getattr(cast(Any, model).config, "num_kv_shared_layers", 0):
            self._refuse("its blocks share keys and values")
        return [f"{name}.{index}" for index in range(len(found))]

    def _named(self, model: nn.Module, end: nn.Module | None) -> str:
        """The name of the embeddings or of the head."""
        name: str | None = next((name for name, module in model.named_modules() if module is end), None)
        if name is None or not isinstance(getattr(end, "weight", None), Tensor):
            self._refuse("its embeddings or its head cannot be told")
        return name

    def _fill(self, model: nn.Module, names: list[str]) -> None:
        """Give a model these of its tensors, in float32."""
        sources = {name: self._tied.get(name, name) for name in names}
        found = self.files.some(set(sources.values()))
        for own, tensor in found.items():
            if tensor.is_floating_point():
                if not torch.isfinite(tensor).all():
                    refuse(self.files.folder, f"{own!r} holds NaN or infinite numbers", "repair the weights first")
                found[own] = tensor.float()
        model.load_state_dict({name: found[own] for name, own in sources.items()}, strict=False, assign=True)

    def _require_names(self) -> None:
        shapes = self.files.shapes
        for name, tensor in self.loaded.model.state_dict().items():
            own = self._tied.get(name, name)
            if shapes.get(own) != tuple(tensor.shape):
                self._refuse(f"its folder has no tensor {own!r} of {list(tensor.shape)}")

    def _refuse(self, why: str) -> NoReturn:
        raise InputError(
            f"model {self.loaded.name!r} cannot be streamed by blocks ({why}): leave stream out, or give a causal "
            "language model such as smollm2"
        )


class _Passed(nn.Module):
    """In the place of a block that is not in memory."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        own = {name: value for name, value in vars(block).items() if isinstance(value, _PLAIN)}
        vars(self).update({name: value for name, value in own.items() if name not in vars(self)})

    def forward(self, hidden_states: Tensor, *arguments: Any, **options: Any) -> Tensor:
        """What it is given."""
        return hidden_states


class _Nothing(nn.Module):
    """In the place of embeddings or of a head: as many zeros as these would give."""

    def __init__(self, shape: torch.Size, *, is_head: bool) -> None:
        super().__init__()
        self.rows, self.width = shape
        self.is_head = is_head

    def forward(self, x: Tensor) -> Tensor:
        """``[B, N, D]`` for token numbers ``[B, N]``, or of a head ``[B, N, V]`` for hidden states."""
        if self.is_head:
            return x.new_zeros(()).expand(*x.shape[:-1], self.rows)
        return torch.zeros(*x.shape, self.width, device=x.device)


def _hook(block: nn.Module, enter: Callable[[], Tensor | None], leave: Callable[[Tensor], None]) -> None:
    def before(module: nn.Module, arguments: tuple[Any, ...], options: dict[str, Any]) -> Any:
        given = enter()
        if given is None:
            return None
        if arguments:
            return (given, *arguments[1:]), options
        return arguments, {**options, "hidden_states": given}

    def after(module: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> None:
        leave(output)

    block.register_forward_pre_hook(before, with_kwargs=True)
    block.register_forward_hook(after)


def _fill_buffers(model: Any) -> None:
    """Compute the buffers that no file has, as transformers does where it loads a model."""
    for part in model.modules():
        empty = {name: buffer for name, buffer in part._buffers.items() if buffer is not None and buffer.is_meta}
        for name, buffer in empty.items():
            part._buffers[name] = torch.empty_like(buffer, device="cpu")
        if empty:
            with torch.no_grad():
                model._init_weights(part)
