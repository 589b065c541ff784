"""What queries, keys, values and padding must be for attention to take them."""

from __future__ import annotations

import torch
from torch import Tensor

from crossbar.errors import InputError

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)


def require_tensors(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> None:
    """Refuse q [B, H, N_queries, D], k [B, H_kv, N_keys, D], v [B, H_kv, N_keys, D_v] or padding that do not fit."""
    shapes = f"q {list(q.shape)}, k {list(k.shape)}, v {list(v.shape)}"
    if not q.dim() == k.dim() == v.dim() == 4:
        raise InputError(f"attention cannot take {shapes}: give four dimensions [B, H, N, D] each")
    if 0 in (*q.shape, *k.shape, *v.shape):
        raise InputError(f"attention cannot take {shapes}: give at least one sequence, head, token and dimension")
    if k.shape[:3] != v.shape[:3] or q.shape[0] != k.shape[0] or q.shape[3] != k.shape[3]:
        raise InputError(
            f"attention cannot take {shapes}: give all one B, q and k one D, k and v the same heads and tokens"
        )
    if q.shape[1] % k.shape[1]:
        raise InputError(f"attention cannot take {shapes}: give q a whole multiple of the heads of k and v")
    if not (q.dtype == k.dtype == v.dtype and q.dtype in _DTYPES):
        raise InputError(
            f"attention cannot take q {q.dtype}, k {k.dtype}, v {v.dtype}: "
            f"give all one of {', '.join(str(d).removeprefix('torch.') for d in _DTYPES)}"
        )
    if not q.device == k.device == v.device:
        raise InputError(f"attention cannot take q on {q.device}, k on {k.device}, v on {v.device}: put all on one")
    if mask is not None and (mask.dtype != torch.bool or mask.shape != (k.shape[0], k.shape[2])):
        raise InputError(
            f"padding mask {mask.dtype} {list(mask.shape)} does not fit: "
            f"give bool [{k.shape[0]}, {k.shape[2]}] ([B, N_keys]), True for a real key"
        )
    if mask is not None and mask.device != q.device:
        raise InputError(f"padding mask is on {mask.device} and q on {q.device}: put both on one device")
