"""Decoding on analog keys and values against digital decoding, per token, at 4,096 tokens.

SmolLM2 under ``window(256) | sinks(4)``, one sequence, float32. Digital: transformers' DynamicCache and gated attention
on it. Analog: gain cells with their own converters, and PCM with 8-bit converters, drift and 1/f noise of every row
that is opened, at 1 ms a token, in a ring of 260 rows. Each round decodes a few tokens behind 4,096 others.

Bar: at most 2 times the digital masked decode. The memory of the cells must be that of the capacity at any length.
"""

import argparse
from collections.abc import Callable
from typing import Any

import torch
from paired import Arms, judge, measure, option_parser, print_setting, ratio, table, use
from rich.console import Console
from transformers import DynamicCache

from attention import Memory, attach, detach, memory_cache
from calibration import load_model
from crossbar import presets

PATTERN = "window(256) | sinks(4)"
TOKENS = 8  # of a round


def main() -> None:
    parser = option_parser(__doc__, rounds=5)
    parser.add_argument("--tokens", type=int, default=4096, help="behind which tokens are decoded (default 4096)")
    chosen = use(parser)
    print_setting()
    with torch.inference_mode():
        compare(chosen)


def compare(chosen: argparse.Namespace) -> None:
    model: Any = load_model("smollm2").model
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(model.config.vocab_size, (1, chosen.tokens), generator=generator)

    def fill(cache: Any, length: int = chosen.tokens) -> Any:
        for part in ids[:, cache.get_seq_length() : length].split(512, 1):
            model(input_ids=part, cache=cache, logits_to_keep=1)
        return cache

    def decoding(prepare: Callable[[], None], cache: Any) -> Callable[[], object]:
        def decode() -> None:
            prepare()
            for _ in range(TOKENS):
                model(input_ids=ids[:, :1], cache=cache)

        return decode

    arms: Arms = {}
    attach(model, PATTERN)
    arms["digital, masked"] = decoding(lambda: attach(model, PATTERN), fill(DynamicCache(config=model.config)))
    detach(model)
    arms["digital, dense (transformers' own)"] = decoding(
        lambda: detach(model), fill(DynamicCache(config=model.config))
    )
    for name in ("gain_cell", "pcm"):
        memory = Memory(presets.get(name), token_seconds=1e-3)
        attach(model, PATTERN, memory)
        cache = memory_cache(model)
        sizes = []
        for length in (300, chosen.tokens):
            fill(cache, length)
            sizes.append(size_of(cache))
        print(f"{name}: cells of {sizes[0]:,} bytes at 300 tokens, {sizes[1]:,} at {chosen.tokens:,}")
        arms[name] = decoding(lambda memory=memory: attach(model, PATTERN, memory), cache)
    costs = measure(arms, chosen.rounds)
    Console(width=120).print(table(f"{TOKENS} tokens behind {chosen.tokens:,}", costs, "digital, masked"))
    for name in ("gain_cell", "pcm"):
        print(judge(f"{name} to digital masked", ratio(costs[name].seconds, costs["digital, masked"].seconds), 2.0))


def size_of(cache: Any) -> int:
    """Bytes of all cells of a cache."""
    rows = [cells.rows for memory in cache.memories for cells in (memory.keys, memory.values)]
    return sum(state.numel() * state.element_size() for part in rows for state in part.state.values())


if __name__ == "__main__":
    main()
