"""Damaged files: seeded mutations of good ones, for the tests of what readers refuse."""

from __future__ import annotations

import copy
import random
from collections.abc import Iterator
from typing import Any

SCALARS: tuple[Any, ...] = (
    None, True, "", "no", "{0}", "[/]", "\x1b[31m", "../..", "a" * 10_000, 0, -1, 2**31, 2**63, 10**400, 1e-46, 1e38,
    -1e308, float("inf"), float("nan"), [], {}, [[]], {"": None},
)  # fmt: skip
"""Values that stand where they should not."""

SNIPPETS = (
    b"\x00", b"\xff\xfe", b"{", b"}", b"[", b"]", b":", b"- ", b"\t", b"&a [*a]", b"*b", b"<<: ",
    b"!!python/object:os.x ",
    b"0x_", b"9" * 5000, b"1e999", b"nan", b"'", b'"', b"\n\n", b"..", b"[" * 500, b"SELECT", b"\xf0\x9f\x92\xa9",
)  # fmt: skip
"""Bytes that parsers stumble over."""


def of_bytes(data: bytes, count: int, seed: int = 0) -> Iterator[bytes]:
    """``count`` damaged copies of a file: cut, flipped, repeated, with bytes put in, taken out or exchanged."""
    draw = random.Random(seed)
    for _ in range(count):
        damaged = bytearray(data)
        for _ in range(draw.choice((1, 1, 2, 5))):
            at, end = sorted(draw.randrange(len(damaged) + 1) for _ in range(2))
            match draw.randrange(7):
                case 0:
                    del damaged[at:]
                case 1:
                    del damaged[at : min(end, at + 64)]
                case 2:
                    damaged[at:at] = draw.choice(SNIPPETS)
                case 3:
                    damaged[at : at + 8] = draw.randbytes(8)
                case 4:
                    damaged[at:at] = damaged[at : min(end, at + 4096)]
                case 5 if damaged:
                    damaged[at % len(damaged)] ^= 1 << draw.randrange(8)
                case _:
                    damaged[at : at + 4] = draw.choice(SNIPPETS)
        yield bytes(damaged)


def of_values(tree: Any, count: int, seed: int = 0) -> Iterator[Any]:
    """``count`` copies of plain values (mappings, lists, scalars) with a place or two changed, removed or renamed."""
    draw = random.Random(seed)
    for _ in range(count):
        damaged = copy.deepcopy(tree)
        for _ in range(draw.choice((1, 1, 2))):
            damaged = _damage(damaged, draw)
        yield damaged


def _damage(tree: Any, draw: random.Random) -> Any:
    """One place of the tree changed."""
    places = list(_places(tree))
    if not places:
        return draw.choice(SCALARS)
    holder, key = draw.choice(places)
    match draw.randrange(6):
        case 0:
            del holder[key]
        case 1 if isinstance(holder, dict):
            holder[f"{key}x"] = holder.pop(key)
        case 2:
            holder[key] = [copy.deepcopy(holder[key])]
        case 3 if isinstance(holder[key], int | float):
            holder[key] = holder[key] * draw.choice((-1, 0, 1_000_000, 1e-30, 10**30))
        case 4:
            other, name = draw.choice(places)
            if name in other if isinstance(other, dict) else name < len(other):
                holder[key] = copy.deepcopy(other[name])
        case _:
            holder[key] = draw.choice(SCALARS)
    return tree


def _places(tree: Any) -> Iterator[tuple[Any, Any]]:
    """All places of a tree, as the mapping or list that has it and its key."""
    keys = list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ()
    for key in keys:
        yield tree, key
        yield from _places(tree[key])
