"""What `emulate` costs for each chip and time, against plain digital evaluation of the same model.

MiniLM, code search on 150 pairs, all linear layers on PCM tiles, attention gated as in the demo. Bar: at most 4 times.
"""

import copy

from paired import Cost, measure, options, peak_memory, print_setting, ratio, table
from rich.console import Console

import calibration
from attention import attach
from calibration import tasks
from crossbar import age, convert, presets, program, reset_reads

PATTERN = "window(64) | sinks(4)"
BAR = 4.0


def main() -> None:
    rounds = options(__doc__, rounds=5).rounds
    print_setting()
    loaded = calibration.load_model("minilm")
    task = tasks.get("code-search", loaded.tokenizer, pairs=150)
    gated = copy.deepcopy(loaded.model)
    attach(gated, PATTERN)
    analog = copy.deepcopy(gated)
    convert(analog, presets.pcm())
    program(analog)
    ages = iter(range(3600, 10**9, 3600))  # every call another time, so that nothing could be kept from the last one

    def score_analog() -> None:
        reset_reads(analog)
        task.metrics(analog)

    costs = measure(
        {
            "digital, plain": lambda: task.metrics(loaded.model),
            "digital, gated": lambda: task.metrics(gated),
            "program a chip": lambda: program(analog),
            "age a chip": lambda: age(analog, next(ages)),
            "analog, gated": score_analog,
        },
        rounds,
    )
    each = [sum(parts) for parts in zip(costs["age a chip"].seconds, costs["analog, gated"].seconds, strict=True)]
    costs["age and score: one chip at one time"] = Cost(each, costs["analog, gated"].memory)
    Console().print(table(f"MiniLM, code search, 150 pairs, {rounds} rounds", costs, base="digital, plain"))
    found = ratio(each, costs["digital, plain"].seconds)
    verdict = "within" if found <= BAR else "ABOVE"
    print(f"analog / digital for a chip and time: {found:.2f}, {verdict} the bar of {BAR:g}")
    print(f"peak memory of the process: {peak_memory():.0f} MiB")


if __name__ == "__main__":
    main()
