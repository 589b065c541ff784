"""Damaged safetensors files that are still of their kind: other numbers, other tensors, another header."""

import json
import math
import struct

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from tests import mutations

NUMBERS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e38, -1e-40, 1e6)


def of_tensors(data, draw):
    """A safetensors file with other numbers, tensors or header."""
    size = struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8 : 8 + size])
    if draw.random() < 0.4:
        text = json.dumps(next(mutations.of_values(header, 1, draw.random()))).encode()
        return struct.pack("<Q", len(text)) + text + data[8 + size :]
    metadata = header.pop("__metadata__", None)
    if metadata and "layers" in metadata and draw.random() < 0.4:
        layers = next(mutations.of_values(json.loads(metadata["layers"]), 1, draw.random()))
        return save(load(data), {**metadata, "layers": json.dumps(layers)})
    tensors = load(data)
    name = draw.choice(sorted(tensors))
    tensor = tensors[name]
    match draw.randrange(6):
        case 0:
            del tensors[name]
        case 1:
            tensors[f"{name}x"] = tensors.pop(name)
        case 2:
            tensors[name] = draw.choice(
                (tensor.flatten(), tensor[None], tensor.new_ones(()), tensor.flatten()[:0].clone())
            )
        case 3:
            tensors[name] = tensor.to(draw.choice((torch.float16, torch.float64, torch.int64, torch.uint8)))
        case _ if tensor.numel():
            place = draw.randrange(tensor.numel())
            value = draw.choice(NUMBERS)
            if not tensor.is_floating_point():
                value = int(value) % 100 if math.isfinite(value) else -1 % 100
            tensor.view(-1)[place] = value
    try:
        return save({key: part.contiguous() for key, part in tensors.items()}, metadata)
    except SafetensorError:
        return data
