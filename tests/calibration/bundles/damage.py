"""Damaged files of a bundle, for a manifest that agrees with the damage."""

import json
import random

from tests import mutations
from tests.tensor_mutations import of_tensors


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
