"""How often a chip loses the attention sink of a text, and what that costs: SmolLM2 on PCM, drift compensated, 1 d.

    python benchmarks/lost_sinks.py
    python benchmarks/lost_sinks.py --windows 16 --starts 0 4 10

In the digital model the first token of any text gets an activation a hundred times larger than all others, which heads
of later layers attend to when they have nothing to say (a sink: Xiao et al., ICLR 2024; Sun et al., COLM 2024). It is
written by two layers in a row, so noise of the first can keep the second from writing. The first table counts first
tokens, of the windows that `perplexity` scores and a token that the model knows texts to start with, whose activation
is below a tenth of what it is in digital, over reads; the second, with ``--starts``, scores the windows with reads that
start at these numbers. Arms: all layers analog; single layers digital, as ``exclude`` leaves them; the first token
digital in all layers, as if its keys and values had been computed once and kept.
"""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import paired
import torch
from rich.console import Console
from rich.table import Table

from calibration import DriftCompensation, InputRanges, load_model, tasks
from crossbar import age, analog_layers, convert, presets, program, reset_reads, to_seconds

WRITERS = ("model.layers.2.mlp.down_proj", "model.layers.11.mlp.down_proj")
"""What writes the activation of SmolLM2's first token: 800 at first, taken away by layer 8, then 24,000."""
LAST = 11
START = "<|im_start|>"
ROWS = 16  # copies of each token in a batch
ARMS = ("analog", *WRITERS, "first token")


def main() -> None:
    parser = paired.option_parser(__doc__, rounds=16)
    parser.add_argument("--windows", type=int, default=16)
    parser.add_argument("--chip", type=int, default=0)
    parser.add_argument("--starts", type=int, nargs="*", default=[], help="score windows with reads from these numbers")
    options = paired.use(parser)
    paired.print_setting()
    loaded = load_model("smollm2")
    task = tasks.Perplexity(loaded.tokenizer, windows=options.windows, calibration_windows=16)
    model = loaded.model
    first = torch.cat([batch["input_ids"][:, 0] for batch in task.batches("evaluation")])
    tokens = torch.cat([first, torch.tensor([loaded.tokenizer.convert_tokens_to_ids(START)])])
    digital = sinks(model, tokens)
    compensate(model, task, options.chip)
    names = [repr(loaded.tokenizer.decode([token])) for token in tokens.tolist()]
    counted = Table(title=f"first tokens that lose their activation, of {ROWS * options.rounds} reads each")
    counted.add_column("token")
    columns = []
    for arm in ARMS[:-1]:
        reset_reads(model)
        with left_digital(model, arm):
            found = [sinks(model, tokens.repeat_interleave(ROWS)).view(-1, ROWS) for _ in range(options.rounds)]
        lost = torch.cat(found, 1) < 0.1 * digital.unsqueeze(1)
        columns.append([*lost.double().mean(1).tolist(), float(lost[:-1].double().mean())])
        counted.add_column(arm, justify="right")
    for name, *parts in zip([*names, "all windows"], *columns, strict=True):
        counted.add_row(name, *(f"{part:.1%}" for part in parts))
    Console(width=140).print(counted)
    if options.starts:
        scored = Table(title="perplexity, mean and median window, and the worst window")
        for name in ("digital", *(f"reads from {start}" for start in options.starts)):
            scored.add_column(name, justify="left" if name == "digital" else "right")
        for arm in ARMS:
            cells = []
            for start in options.starts:
                for layer in analog_layers(model).values():
                    layer.reads = start
                with left_digital(model, arm):
                    losses = task.losses(model)
                values = (losses.mean(), losses.quantile(0.5), losses.max())
                cells.append(", ".join(f"{math.exp(value):,.1f}" for value in values))
            scored.add_row("none" if arm == "analog" else arm, *cells)
        Console(width=140).print(scored)


def compensate(model, task, chip: int) -> None:
    """The yardstick of docs/calibration.md: balanced inputs and drift compensation, fitted at 1 d, an hour ago."""
    convert(model, presets.pcm())
    ranges, drift = InputRanges(), DriftCompensation()
    ranges.apply(model, ranges.fit(model, task.batches("calibration")))
    program(model, chip)
    age(model, "1d")
    drift.apply(model, drift.fit(model, []))
    age(model, to_seconds("1d") + to_seconds("1h"))


@torch.inference_mode()
def sinks(model, tokens: torch.Tensor) -> torch.Tensor:
    """The norm of the hidden state behind both writers for texts of one token each, ``[texts]``."""
    norms = []

    def see(module, inputs, output) -> None:
        norms.append((output[0] if isinstance(output, tuple) else output)[:, 0].norm(dim=-1))

    decoder = model.model
    layers = decoder.layers
    hook = layers[LAST].register_forward_hook(see)
    decoder.layers = layers[: LAST + 1]  # later ones change it no more
    try:
        decoder(input_ids=tokens.unsqueeze(1), use_cache=False)
    finally:
        decoder.layers = layers
        hook.remove()
    return norms[0]


@contextmanager
def left_digital(model, arm: str) -> Iterator[None]:
    """Compute a layer, or the first token in all layers, in digital for a while."""
    layers = analog_layers(model)
    hooks = []
    if arm == "first token":
        hooks = [layer.register_forward_hook(_first_digital) for layer in layers.values()]
    elif arm in layers:
        layers[arm].bypass = True
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
        if arm in layers:
            layers[arm].bypass = False


def _first_digital(layer, inputs, output):
    output = output.clone()
    output[:, 0] = layer.digital(inputs[0][:, 0])
    return output


if __name__ == "__main__":
    main()
