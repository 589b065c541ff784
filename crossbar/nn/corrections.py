"""Digital corrections beside a layer's tiles: a gain and an offset for each output, and a low-rank adapter."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from crossbar.costs.ledger import book
from crossbar.errors import InputError

CORRECTIONS = ("output_gain", "output_offset", "adapter_down", "adapter_up")


class Corrected(nn.Module):
    """What digital logic makes of the tiles' output ``y [B, O]``: ``gain · y + offset + x @ down @ up``.

    It costs a multiply-and-add for each output, and ``r (I + O)`` of them for an adapter of rank ``r``.
    """

    in_features: int
    out_features: int
    name: str
    output_gain: Tensor | None
    output_offset: Tensor | None
    adapter_down: Tensor | None
    adapter_up: Tensor | None

    def __init__(self) -> None:
        super().__init__()
        self.drop_corrections()

    def drop_corrections(self) -> None:
        """Take output correction and adapter away, trained ones too."""
        self._put(**dict.fromkeys(CORRECTIONS))

    @torch.inference_mode(False)
    def set_output_correction(self, gain: Tensor | None, offset: Tensor | None) -> None:
        """Correct what the tiles deliver by a gain and an offset, each ``[O]``; None: without it.

        Given as parameters, they are trained with the model.

        Raises:
            InputError: for another shape, or numbers that are not finite.
        """
        for tensor in (gain, offset):
            if tensor is not None:
                self._require("output correction", tensor, (self.out_features,))
        self._put(output_gain=gain, output_offset=offset)

    @torch.inference_mode(False)
    def set_adapter(self, down: Tensor | None, up: Tensor | None) -> None:
        """Put a digital adapter ``x @ down @ up`` beside the tiles, ``[I, r]`` and ``[r, O]``; None takes it away.

        Given as parameters, it is trained with the model.

        Raises:
            InputError: for one half alone, another shape, or numbers that are not finite.
        """
        if (down is None) != (up is None):
            raise InputError(f"{self.name} got half an adapter: give down [I, r] and up [r, O], or neither")
        if down is not None and up is not None:
            rank = down.shape[-1] if down.dim() else 0
            self._require("adapter down", down, (self.in_features, rank))
            self._require("adapter up", up, (rank, self.out_features))
        self._put(adapter_down=down, adapter_up=up)

    def corrected_weight(self, weight: Tensor) -> Tensor:
        """The weight ``[I, O]`` that inputs meet when the tiles stand for ``weight``."""
        if self.output_gain is not None:
            weight = weight * self.output_gain
        if self.adapter_down is not None and self.adapter_up is not None:
            weight = weight + self.adapter_down @ self.adapter_up
        return weight

    def _corrected(self, y: Tensor, x: Tensor) -> Tensor:
        """Outputs ``[B, O]`` of the tiles for inputs ``[B, I]``, corrected and booked."""
        if self.output_gain is not None:
            y = y * self.output_gain
        if self.output_offset is not None:
            y = y + self.output_offset
        if self.output_gain is not None or self.output_offset is not None:
            book(self.name, "digital_macs", y.numel())
        if self.adapter_down is not None and self.adapter_up is not None:
            y = torch.addmm(y, x @ self.adapter_down, self.adapter_up)
            book(self.name, "digital_macs", len(x) * (self.adapter_down.numel() + self.adapter_up.numel()))
        return y

    def _put(self, **corrections: Tensor | None) -> None:
        """Set corrections in the place of plain or trained ones."""
        for name, value in corrections.items():
            self._parameters.pop(name, None)
            self.register_buffer(name, None, persistent=False)
            setattr(self, name, value)

    def _require(self, what: str, tensor: Tensor, shape: tuple[int, ...]) -> None:
        if tensor.shape != shape or not tensor.isfinite().all():
            raise InputError(f"{self.name} got a bad {what}: give {list(shape)} finite numbers")
