"""How much of what drift compensation leaves lost does training through the tiles recover? SmolLM2 on PCM.

    python benchmarks/finetuning.py drift thorough plain population --keep results

Arms, each of which can be run on its own:
    drift       balanced inputs and drift compensation by column: the yardstick is the log-perplexity still lost there
    thorough    the recipe `thorough`: adapters, gains, offsets and ADC ranges of the chip, scored after every step
    plain       all weights trained as aihwkit's tools do it, for as many steps: next-token loss and Gaussian noise of a
                part of each column's largest weight at each step (its ADD_NORMAL modifier with std_dev); then `fast`
    population  all weights trained once, for any chip, by `Finetune`, before programming; then `fast` on each chip

Perplexity of held-out text, in windows of 512 tokens. With ``--keep``, what an arm found is kept in the folder, and the
table has every arm that is there, so that arms can be run side by side.
"""

import copy
import json
import math
import time
from dataclasses import replace
from pathlib import Path
from statistics import mean
from typing import NamedTuple

import paired
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table

from calibration import DriftCompensation, Finetune, InputRanges, Recipe, calibrate, load_model, tasks
from calibration import recipe as recipes
from calibration.results.emulation import Calibration
from crossbar import format_seconds

YARDSTICKS = {"drift": "drift", "quick": "thorough: after DriftCompensation"}


class Found(NamedTuple):
    """Perplexities: of the digital model, and by arm, seconds since programming and chip.

    Attributes:
        digital: the one of the model.
        arms: arm: {seconds: {chip: perplexity}}, seconds and chips as texts.
    """

    digital: float
    arms: dict[str, dict[str, dict[str, float]]]


def main() -> None:
    parser = paired.option_parser(__doc__, rounds=1)
    parser.add_argument("arms", nargs="+", choices=["drift", "thorough", "plain", "population"])
    parser.add_argument("--steps", type=int, default=50)
    parser.add_argument("--accumulate", type=int, default=2, help="windows of a step")
    parser.add_argument("--rate", type=float, default=5e-4, help="of adapters and ranges")
    parser.add_argument("--weights-rate", type=float, default=1e-5, help="of weights, in plain and population")
    parser.add_argument("--deviation", type=float, default=0.03, help="plain noise, part of a column's largest weight")
    parser.add_argument("--windows", type=int, default=16, help="scored, and as many that calibrate")
    parser.add_argument("--times", nargs="+", default=["1d"])
    parser.add_argument("--chips", type=int, default=1)
    parser.add_argument("--keep", type=Path, help="folder for what arms found")
    options = paired.use(parser)
    paired.print_setting()
    loaded = load_model("smollm2")
    task = tasks.Perplexity(
        loaded.tokenizer, windows=options.windows, training_windows=options.steps * options.accumulate
    )
    shared = {"steps": options.steps, "accumulate": options.accumulate, "checkpoint": False}  # takes 12 GB
    found = {}
    for arm in options.arms:
        began, model = time.monotonic(), loaded
        fast = recipes.get("fast").steps
        if arm == "plain":
            model = noise_trained(loaded, task, options)
            print(f"plain weight noise: trained for {time.monotonic() - began:.0f} s", flush=True)
        steps = {
            "drift": (InputRanges(), DriftCompensation()),
            "thorough": (*recipes.get("thorough").steps[:-1], Finetune(rate=options.rate, **shared)),
            "plain": fast,
            "population": (*fast[:3], Finetune("weights", "any", rate=options.weights_rate, **shared), *fast[3:]),
        }[arm]
        recipe = Recipe(arm, steps)
        stairs = arm == "thorough"
        result = calibrate(
            model, task, "pcm", recipe, times=options.times, chips=options.chips, staircase=stairs, progress=_tell
        )
        found[arm] = Found(task.metrics(loaded.model)["perplexity"], _by_arm(arm, result))
        print(f"{arm}: {time.monotonic() - began:.0f} s with scoring, peak memory {paired.peak_memory():.0f} MiB")
        if options.keep is not None:
            options.keep.mkdir(parents=True, exist_ok=True)
            (options.keep / f"{arm}.json").write_text(json.dumps(found[arm]._asdict()))
    if options.keep is not None:
        found = {path.stem: Found(**json.loads(path.read_text())) for path in sorted(options.keep.glob("*.json"))}
    Console(width=150).print(table(found))


def noise_trained(loaded, task, options):
    """A copy of the model, trained in digital with noise on its linear weights."""
    model = copy.deepcopy(loaded.model).train()
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=options.weights_rate, weight_decay=0.0)
    batches, generator = list(task.training_batches()), torch.Generator().manual_seed(0)
    for step in track(range(options.steps), "plain weight noise"):
        for index in range(step * options.accumulate, (step + 1) * options.accumulate):
            ids = batches[index % len(batches)]["input_ids"]
            kept = [weight.detach().clone() for weight in linear]
            with torch.no_grad():
                for weight in linear:
                    noise = torch.randn(weight.shape, generator=generator)
                    weight += options.deviation * weight.abs().amax(1, keepdim=True) * noise
            scores = model(input_ids=ids, use_cache=False).logits[:, :-1]
            (F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten()) / options.accumulate).backward()
            with torch.no_grad():
                for weight, before in zip(linear, kept, strict=True):
                    weight.copy_(before)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        warm = min(1.0, (step + 1) / max(1, options.steps // 10))
        for group in optimizer.param_groups:
            group["lr"] = options.weights_rate * warm * (1 - step / options.steps)
        optimizer.step()
        optimizer.zero_grad()
    return replace(loaded, model=model.eval())


def _by_arm(arm: str, result: Calibration) -> dict[str, dict[str, dict[str, float]]]:
    arms: dict[str, dict[str, dict[str, float]]] = {}
    for each in result.measurements:
        if each.fitted is not None:
            name = arm if each.arm == "calibrated" else f"{arm}: {each.arm}"
            arms.setdefault(name, {}).setdefault(repr(each.fitted), {})[str(each.chip)] = each.value
    return arms


def table(found: dict[str, Found]) -> Table:
    """Perplexities, and the part of each yardstick's lost logarithm that comes back, means over chips in common."""
    arms = {name: values for each in found.values() for name, values in each.arms.items()}
    digital = math.log(next(iter(found.values())).digital)
    view = Table(title=f"perplexity; digital {math.exp(digital):.2f}", title_justify="left")
    for column in ("fitted at", "arm", "chips", "perplexity", *(f"recovered of {name}" for name in YARDSTICKS)):
        view.add_column(column, justify="left" if column == "arm" else "right")
    for seconds in sorted({when for values in arms.values() for when in values}, key=float):
        for name, values in arms.items():
            chips = values.get(seconds, {})
            if not chips:
                continue
            parts = []
            for yardstick in YARDSTICKS.values():
                base = arms.get(yardstick, {}).get(seconds, {})
                both = [
                    (math.log(base[chip]) - math.log(chips[chip])) / (math.log(base[chip]) - digital)
                    for chip in chips.keys() & base.keys()
                ]
                parts.append(f"{mean(both):.0%}" if both else "")
            perplexity = math.exp(mean(map(math.log, chips.values())))
            view.add_row(format_seconds(float(seconds)), name, str(len(chips)), f"{perplexity:.2f}", *parts)
    return view


def _tell(done: int, total: int, text: str) -> None:
    print(f"{done}/{total} {text}", flush=True)


if __name__ == "__main__":
    main()
