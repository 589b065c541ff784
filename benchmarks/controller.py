"""The controller: what gating costs beside the attention that it gates, and how long streams of events take to time.

1. Events made, delivered by an ideal platform and turned back into pairs, against gated attention on analog memory
   (PCM, 8-bit converters, read noise), 2,048 tokens, `window(256) | sinks(4)`. Bar: at most 15% of the attention's own
   time. The first figure is of a pattern never seen before; it is kept for the next call, as in a model's next layer.
2. 10⁷ events of random times on 2,000 ports, timed by queues (`fifo`). Bar: at most 5 s. Beside it a plain loop over a
   hundredth of them, the peer, and the same stream on Loihi's mesh.
3. 10⁸ events in parts, made and timed: seconds and peak memory.
"""

import time
from dataclasses import replace

import torch
from paired import Arms, judge, measure, option_parser, peak_memory, print_setting, ratio, table, use
from rich.console import Console

from attention import Controller, Events, Platform, gated_attention, parse
from attention.controller import platforms
from attention.controller.delivery import _deliver_head_cached
from crossbar import presets

PATTERN = parse("causal(window(256) | sinks(4))")
IDEAL = Controller(platforms.ideal())
FIFO = Platform("fifo", timing="fifo", unit=1e-9, step=3, service=2)
PCM = presets.pcm()


def main() -> None:
    parser = option_parser(__doc__, rounds=7)
    parser.add_argument("--only", type=int, choices=(1, 2, 3), help="one of the three parts")
    chosen = use(parser)
    print_setting()
    with torch.inference_mode():
        for number, part in enumerate((gating, timing, parts), 1):
            if chosen.only in (None, number):
                part(chosen.rounds)


def gating(rounds: int) -> None:
    torch.manual_seed(0)
    q, k, v = torch.randn(3, 1, 9, 2048, 64)

    def gated(forget: bool) -> None:
        if forget:
            _deliver_head_cached.cache_clear()
        gated_attention(q, k, v, PATTERN, hardware=PCM, controller=IDEAL)

    arms: Arms = {
        "attention": lambda: gated_attention(q, k, v, PATTERN, hardware=PCM),
        "gated, new pattern": lambda: gated(True),
        "gated, kept pattern": lambda: gated(False),
    }
    costs = measure(arms, rounds)
    Console().print(table(f"1. 9 heads of 64, 2,048 tokens, {PATTERN}, {rounds} rounds", costs, base="attention"))
    for name in list(arms)[1:]:
        share = ratio(costs[name].seconds, costs["attention"].seconds) - 1
        say(f"{name}, share added", share, 0.15)


def timing(rounds: int) -> None:
    generator = torch.Generator().manual_seed(0)
    n = 10**7
    events = Events(
        time=torch.randint(n, (n,), generator=generator).sort().values,
        tile=torch.randint(1000, (n,), generator=generator, dtype=torch.int32),
        line=torch.zeros(n, dtype=torch.int32),
        axis=torch.randint(2, (n,), generator=generator, dtype=torch.int8),
        payload=torch.ones(n, dtype=torch.int32),
        query=torch.zeros(n, dtype=torch.int32),
    )
    start = time.perf_counter()
    found = Controller(FIFO).simulate(events)
    say(f"2. seconds for 10⁷ events, longest wait {found.longest} units", time.perf_counter() - start, 5.0)
    few = Events(*(x[: n // 100] for x in events))
    start = time.perf_counter()
    free: dict[int, int] = {}
    port = (few.tile.long() * 2 + few.axis).tolist()
    for where, came in zip(port, (3 * few.time).tolist(), strict=True):
        free[where] = max(came, free.get(where, 0)) + 2
    looped = 100 * (time.perf_counter() - start)
    Console().print(f"   a loop over the events would take {looped:.1f} s", highlight=False)
    start = time.perf_counter()
    Controller(replace(platforms.loihi1(), rows=256)).simulate(events)
    Console().print(f"   on Loihi's mesh: {time.perf_counter() - start:.1f} s", highlight=False)


def parts(rounds: int) -> None:
    controller, tokens = Controller(FIFO), 193_000
    start = time.perf_counter()
    found = controller.simulate(controller.stream(PATTERN, tokens))
    seconds = time.perf_counter() - start
    Console().print(
        f"3. {found.delivered:,} events of {tokens:,} tokens in parts: {seconds:.0f} s, peak {peak_memory():.0f} MiB",
        highlight=False,
    )


def say(what: str, found: float, bar: float) -> None:
    Console().print("   " + judge(what, found, bar), highlight=False)


if __name__ == "__main__":
    main()
