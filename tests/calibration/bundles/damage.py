"""Damaged bundles whose manifest agrees with the damage, and damaged safetensors files."""

import json
import math
import random
import struct

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save

from tests import mutations

NUMBERS = (math.nan, math.inf, -math.inf, -1.0, 0.0, 1e38, -1e-40, 1e6)


def of_files(files, count, seed=0):
    """``count`` changes of a folder: what becomes of some of its files, None for one that goes.

    Args:
        files: what is in it, bytes by name.
        count: how many.
        seed: of the draws.
    """
    draw = random.Random(seed)
    names = sorted(files)
    for _ in range(count):
        name = draw.choice(names)
        match draw.randrange(12):
            case 0:
                yield {name: None}
            case 1:
                yield {name: files[draw.choice(names)]}
            case 2:
                yield {
                    draw.choice(("tiles/", "model/", "", "a/b/")) + draw.choice(("x.json", "y", "z.safetensors")): b"{"
                }
            case 3 | 4:
                yield {name: next(mutations.of_bytes(files[name], 1, draw.random()))}
            case _:
                yield {name: of_content(name, files[name], draw)}


def of_content(name, data, draw):
    """A file that is still of its kind."""
    if name.endswith(".json"):
        tree = next(mutations.of_values(json.loads(data), 1, draw.random()))
        return json.dumps(tree, ensure_ascii=draw.random() < 0.5).encode("utf-8", "surrogatepass")
    if name.endswith(".safetensors"):
        return of_tensors(data, draw)
    return next(mutations.of_bytes(data, 1, draw.random()))


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
            tensors[name] = draw.choice((tensor.flatten(), tensor[None], tensor.new_ones(()), tensor[:0].clone()))
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
