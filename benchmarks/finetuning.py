"""How much of what drift compensation leaves lost does the recipe `thorough` recover? SmolLM2 on PCM, one chip.

The yardstick is the log-perplexity still lost at the fitted time after per-column drift compensation alone. Beside it
stands plain weight-noise training of the same number of steps as aihwkit's tools do it: all weights, next-token loss,
Gaussian noise of a part of each column's largest weight drawn anew at each step (aihwkit's ADD_NORMAL modifier with
std_dev), then the recipe `fast` on the same chip. In full, about an hour on 2 cores for each time:

    python benchmarks/finetuning.py --steps 150 --accumulate 4 --times 1d 30d 1y --windows 16
"""

import math
import time
from dataclasses import replace

import paired
import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track

from calibration import Finetune, Recipe, calibrate, load_model, tasks
from calibration import recipe as recipes
from crossbar import to_seconds

_BASE = "after DriftCompensation"


def noise_trained(loaded, task, steps: int, accumulate: int, deviation: float, rate: float):
    """A copy of the model, trained in digital with noise on its linear weights."""
    import copy

    model = copy.deepcopy(loaded.model).train()
    linear = [module.weight for module in model.modules() if isinstance(module, torch.nn.Linear)]
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, weight_decay=0.0)
    batches, generator = list(task.batches("calibration")), torch.Generator().manual_seed(0)
    for step in track(range(steps), "plain weight noise"):
        for index in range(step * accumulate, (step + 1) * accumulate):
            ids = batches[index % len(batches)]["input_ids"]
            kept = [weight.detach().clone() for weight in linear]
            with torch.no_grad():
                for weight in linear:
                    noise = torch.randn(weight.shape, generator=generator)
                    weight += deviation * weight.abs().amax(1, keepdim=True) * noise
            scores = model(input_ids=ids, use_cache=False).logits[:, :-1]
            (F.cross_entropy(scores.flatten(0, 1), ids[:, 1:].flatten()) / accumulate).backward()
            with torch.no_grad():
                for weight, before in zip(linear, kept, strict=True):
                    weight.copy_(before)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / max(1, steps // 10)) * (1 - step / steps)
        optimizer.step()
        optimizer.zero_grad()
    return replace(loaded, model=model.eval())


def main() -> None:
    parser = paired.option_parser(__doc__, rounds=1)
    parser.add_argument("--steps", type=int, default=150)
    parser.add_argument("--accumulate", type=int, default=1, help="windows' batches of a step")
    parser.add_argument("--rate", type=float, default=1e-3, help="of adapters and ranges")
    parser.add_argument("--plain-rate", type=float, default=1e-5, help="of weights, with plain noise")
    parser.add_argument(
        "--deviation", type=float, default=0.03, help="of plain noise, part of a column's largest weight"
    )
    parser.add_argument("--windows", type=int, default=16, help="of 512 tokens, scored")
    parser.add_argument("--calibration-windows", type=int, default=None, help="that calibrate; as many unless given")
    parser.add_argument("--times", nargs="+", default=["1d"])
    parser.add_argument("--chips", type=int, default=1)
    parser.add_argument("--skip-plain", action="store_true", help="leave plain weight noise out")
    options = paired.use(parser)
    paired.print_setting()
    loaded = load_model("smollm2")
    task = tasks.Perplexity(loaded.tokenizer, windows=options.windows, calibration_windows=options.calibration_windows)
    finetune = Finetune(steps=options.steps, accumulate=options.accumulate, rate=options.rate)
    recipe = Recipe("thorough", (*recipes.get("thorough").steps[:-1], finetune))
    arms = {}
    began = time.monotonic()
    result = calibrate(loaded, task, "pcm", recipe, times=options.times, chips=options.chips, progress=_tell)
    arms |= dict.fromkeys((_BASE, "after AffineCorrection", "after LowRankAdapter", "calibrated"), result)
    print(f"thorough: {time.monotonic() - began:.0f} s with scoring, peak memory {paired.peak_memory():.0f} MiB")
    if not options.skip_plain:
        began = time.monotonic()
        noisy = noise_trained(loaded, task, options.steps, options.accumulate, options.deviation, options.plain_rate)
        print(f"plain weight noise: {time.monotonic() - began:.0f} s")
        plain = calibrate(noisy, task, "pcm", "fast", times=options.times, chips=options.chips, staircase=False)
        arms["plain weight noise, fast"] = plain
    digital = math.log(result.values("digital")[0])
    for when in options.times:
        fitted = to_seconds(when)
        base = [math.log(x) for x in result.values(_BASE, fitted=fitted)]
        for arm, found in arms.items():
            values = found.values("calibrated" if found is not result else arm, fitted=fitted)
            parts = [(b - math.log(x)) / (b - digital) for b, x in zip(base, values, strict=True)]
            mean = math.exp(sum(map(math.log, values)) / len(values))
            Console().print(
                f"{when}, {arm}: perplexity {mean:.2f}, recovers {sum(parts) / len(parts):.0%}", highlight=False
            )
    print(f"digital: {math.exp(digital):.2f}")


def _tell(done: int, total: int, text: str) -> None:
    print(f"{done}/{total} {text}", flush=True)


if __name__ == "__main__":
    main()
