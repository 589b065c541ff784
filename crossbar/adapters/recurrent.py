"""``nn.LSTM`` and ``nn.GRU``, unrolled over time."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from crossbar.adapters.protocol import Part, Product

_WEIGHTS = ("ih", "hh", "hr")


class Recurrent:
    """``nn.LSTM`` and ``nn.GRU``: matrices of inputs and of states on tiles, cells in digital.

    Inputs of all times meet their matrix at once; the state meets its own at each time, for the sequences that are as
    long. Graphs of torch's compiler break here: it refuses to look at recurrent layers.
    """

    name = "an nn.LSTM or nn.GRU"

    def matches(self, module: nn.Module) -> bool:
        """Whether it is one, or of a class made from one that keeps its ``forward``."""
        kind = next((kind for kind in (nn.LSTM, nn.GRU) if isinstance(module, kind)), None)
        return kind is not None and "forward" not in vars(module) and type(module).forward is kind.forward

    def parts(self, module: nn.Module) -> dict[str, Part]:
        """Its matrices by the names that torch gives them, each with its bias."""
        found = {}
        for suffix in _suffixes(cast(nn.LSTM, module)):
            for kind in _WEIGHTS:
                weight = getattr(module, f"weight_{kind}_{suffix}", None)
                if weight is not None:
                    found[f"weight_{kind}_{suffix}"] = Part(weight, getattr(module, f"bias_{kind}_{suffix}", None))
        return found

    def compute(self, module: nn.Module, products: Mapping[str, Product], x: Any, hx: Any = None) -> Any:
        """As torch's: outputs, packed if the inputs are, and the last state."""
        own = cast(nn.LSTM, module)
        if isinstance(x, PackedSequence):
            data, sizes, order, back = x
            state = _permuted(hx, order)
            y, state = self._run(own, products, data, sizes.tolist(), state)
            return PackedSequence(y, sizes, order, back), _permuted(state, back)
        batched = x.dim() == 3
        place = 0 if own.batch_first and batched else 1
        x = x if batched else x.unsqueeze(1)
        if not batched and hx is not None:
            hx = tuple(part.unsqueeze(1) for part in hx) if isinstance(hx, tuple) else hx.unsqueeze(1)
        time_first = x.transpose(0, 1) if place == 0 else x
        length, batch = time_first.shape[:2]
        y, state = self._run(own, products, time_first.reshape(length * batch, -1), [batch] * length, hx)
        y = y.view(length, batch, -1)
        if not batched:
            state = tuple(p.squeeze(1) for p in state) if isinstance(state, tuple) else state.squeeze(1)
            return y.squeeze(1), state
        return (y.transpose(0, 1) if place == 0 else y), state

    def _run(self, own: nn.LSTM, products: Mapping[str, Product], x: Tensor, sizes: list[int], hx: Any) -> Any:
        """Inputs ``[sum of sizes, I]``, those of one time after those of another, through all layers."""
        is_lstm = isinstance(own, nn.LSTM)
        width = own.proj_size or own.hidden_size
        layers = own.num_layers * (2 if own.bidirectional else 1)
        if hx is None:
            h, c = x.new_zeros(layers, sizes[0], width), x.new_zeros(layers, sizes[0], own.hidden_size)
        else:
            h, c = hx if is_lstm else (hx, hx)
        last_h, last_c, index = [], [], 0
        for layer in range(own.num_layers):
            outputs = []
            for suffix in _suffixes(own, layer):
                given = products[f"weight_ih_{suffix}"](x).split(sizes)
                times = range(len(sizes))
                now_h, now_c = h[index], c[index]
                found: list[Tensor] = [now_h] * len(sizes)
                for time in reversed(times) if suffix.endswith("_reverse") else times:
                    count = sizes[time]
                    met = products[f"weight_hh_{suffix}"](now_h[:count])
                    cell = _lstm if is_lstm else _gru
                    new_h, new_c = cell(given[time], met, now_h[:count], now_c[:count])
                    if own.proj_size:
                        new_h = products[f"weight_hr_{suffix}"](new_h)
                    found[time] = new_h
                    now_h, now_c = torch.cat([new_h, now_h[count:]]), torch.cat([new_c, now_c[count:]])
                outputs.append(torch.cat(found))
                last_h.append(now_h)
                last_c.append(now_c)
                index += 1
            x = torch.cat(outputs, -1)
            if own.dropout and own.training and layer + 1 < own.num_layers:
                x = F.dropout(x, own.dropout)
        state = torch.stack(last_h)
        return x, ((state, torch.stack(last_c)) if is_lstm else state)


def _suffixes(own: nn.LSTM, layer: int | None = None) -> list[str]:
    layers = range(own.num_layers) if layer is None else (layer,)
    ends = ("", "_reverse") if own.bidirectional else ("",)
    return [f"l{number}{end}" for number in layers for end in ends]


def _lstm(given: Tensor, met: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Hochreiter and Schmidhuber, Neural Comput. 9, 1735, 1997, with forget gates, in torch's order."""
    enter, forget, new, leave = (given + met).chunk(4, -1)
    c = forget.sigmoid() * c + enter.sigmoid() * new.tanh()
    return leave.sigmoid() * c.tanh(), c


def _gru(given: Tensor, met: Tensor, h: Tensor, c: Tensor) -> tuple[Tensor, Tensor]:
    """Cho et al., EMNLP 2014, with the reset gate behind the matrix of states, as torch has it."""
    reset, update, new = given.chunk(3, -1)
    met_reset, met_update, met_new = met.chunk(3, -1)
    update = (update + met_update).sigmoid()
    new = (new + (reset + met_reset).sigmoid() * met_new).tanh()
    h = new + update * (h - new)
    return h, h


def _permuted(state: Any, order: Tensor | None) -> Any:
    if state is None or order is None:
        return state
    return tuple(part.index_select(1, order) for part in state) if isinstance(state, tuple) else state[:, order]
