"""Programming and ageing a layer against aihwkit's: one layer of 768 x 768 on tiles of 256 x 256, PCM.

Every call programs another chip, or ages it to another time and reads its cells, so that nothing could be kept from the
last one. Bar: at least twice as fast as aihwkit's torch tile; its compiled tile programs with the same code.
"""

from collections.abc import Callable, Iterator
from functools import partial
from itertools import count

import torch
from aihwkit.inference.utils import drift_analog_weights, program_analog_weights
from linear import INPUTS, PEERS, peer
from paired import Arms, judge, measure, options, print_setting, ratio, table
from rich.console import Console
from torch import nn

from crossbar import age, analog_layers, convert, presets, program


def main() -> None:
    rounds = options(__doc__, rounds=9).rounds
    print_setting()
    torch.manual_seed(0)
    digital = nn.Linear(INPUTS, INPUTS)
    ours = nn.Sequential(digital)
    convert(ours, presets.pcm())

    def age_and_read(seconds: int) -> object:
        age(ours, seconds)
        return analog_layers(ours)["0"].cells.digits  # left until it is needed

    jobs: dict[str, Arms] = {
        "program": {"ohmformer": each(partial(program, ours), count())},
        "age": {"ohmformer": each(age_and_read, count(3600, 3600))},
    }
    for name, kind in PEERS.items():
        model = peer(digital, kind, 0.04).eval()
        jobs["program"][f"aihwkit {name}"] = partial(program_analog_weights, model, None)
        jobs["age"][f"aihwkit {name}"] = each(partial(drift_analog_weights, model), count(3600, 3600))
    for job, arms in jobs.items():
        with torch.inference_mode():
            costs = measure(arms, rounds)
        Console().print(table(f"{job} {INPUTS} x {INPUTS}, {rounds} rounds", costs, base="ohmformer"))
        found = ratio(costs["aihwkit torch tile"].seconds, costs["ohmformer"].seconds)
        print(judge(f"{job}: aihwkit torch tile / ours", found, 2.0, least=True))


def each(job: Callable[[int], object], values: Iterator[int]) -> Callable[[], object]:
    """The job with the next value at every call."""
    return lambda: job(next(values))


if __name__ == "__main__":
    main()
