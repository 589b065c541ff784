"""Ohmformer beside aihwkit, aihwkit-lightning, badcrossbar, torch's dense attention and FlexAttention.

`make comparison` installs what is missing of them and writes docs/comparison.md. Each entry of each table is what this
process found by running it; what is not installed is said, and so is every row in which a peer is better. Speed is one
thread's processor time, peers in turn, the median of the rounds' ratios.
"""

import contextlib
import copy
import io
import logging
import tempfile
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from paired import Arms, Cost, measure, option_parser, ratio, use
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from attention import gated_attention, parse
from calibration.doctor import versions
from calibration.versions import version_of
from crossbar import age, analog_layers, convert, load_state, presets, program, save_state, transfer_matrix

OURS, AIHWKIT, LIGHTNING, BADCROSSBAR = "Ohmformer", "aihwkit", "aihwkit-lightning", "badcrossbar"
HOUR = 3600.0
WINDOW = parse("causal(window(256) | sinks(4))")


@dataclass
class Part:
    """A table: a title, what its columns are, rows of texts, and the rows in which a peer is better."""

    title: str
    columns: tuple[str, ...]
    rows: list[tuple[str, ...]] = field(default_factory=list)
    lost: list[str] = field(default_factory=list)


def main() -> None:
    parser = option_parser(__doc__, rounds=3)
    parser.add_argument("--page", type=Path, help="write the tables as this page")
    parser.add_argument("--tokens", type=int, default=2048, help="of attention (default 2048)")
    chosen = use(parser)
    torch.set_num_threads(1)
    began, parts = time.process_time(), []
    for make in (features, layers, training, partial(attention, tokens=chosen.tokens), circuits, fidelity):
        parts.append(make(chosen.rounds))
        view = Table(title=parts[-1].title, title_justify="left")
        for k, column in enumerate(parts[-1].columns):
            view.add_column(column, justify="left" if k == 0 or make is features else "right")
        for row in parts[-1].rows:
            view.add_row(*row)
        Console().print(view)
    seconds = time.process_time() - began
    if chosen.page:
        chosen.page.write_text(page(parts, seconds), encoding="utf-8")


def page(parts: list[Part], seconds: float) -> str:
    """The tables as Markdown."""
    lost = [f"- {line}" for part in parts for line in part.lost]
    found = {name: version_of(name) for name in (AIHWKIT, LIGHTNING, BADCROSSBAR)}
    tools = ", ".join(f"{name} {version or 'not installed'}" for name, version in found.items())
    known = ", ".join(f"{name} {version}" for name, version in versions().items() if name in ("python", "torch"))
    lines = [
        "# Comparison",
        "",
        "Written by `make comparison` (`benchmarks/comparison.py`): entries are what it found by running the tools; in",
        "the last two rows of features, and for `no chip`, a tool that has no such function was not run. It took one",
        f"thread of a CPU {seconds:.0f} s beside what compiling FlexAttention takes.",
        f"{tools}; {known}.",
        "Figures of peers in their own field, such as aihwkit-lightning on GPUs, are not here: nothing was run on one.",
        "",
        "## Where a peer is better",
        *(lost or ["- In no row of the tables."]),
    ]
    for part in parts:
        lines += ["", f"## {part.title}", f"| {' | '.join(part.columns)} |", "|" + "---|" * len(part.columns)]
        lines += [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in part.rows]
    return "\n".join(lines) + "\n"


def tried(run: Callable[[], str]) -> str:
    """What a tool answers: a text, that it is not installed, or the first line of its error."""
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            return run()
    except ModuleNotFoundError as error:
        return f"not installed ({error.name})"
    except Exception as error:  # noqa: BLE001 - what a peer raises is its answer
        return f"{type(error).__name__}: {str(error).splitlines()[0][:60] if str(error) else ''}"


def close(found: Tensor, wanted: Tensor) -> float:
    """Root mean square of the difference, of that of what is wanted."""
    return float((found - wanted).square().mean().sqrt() / wanted.square().mean().sqrt())


# What each tool does


def features(_: int) -> Part:
    """Each tool asked the same thing."""
    part = Part("Features", ("asked", OURS, AIHWKIT, LIGHTNING))
    for asked, answers in QUESTIONS.items():
        part.rows.append((asked, *(tried(answer) for answer in answers)))
    part.lost.append(f"Training in memory with pulses: {AIHWKIT} has it, {OURS} does not.")
    return part


def gpt2() -> nn.Module:
    from transformers import GPT2Config, GPT2Model

    return GPT2Model(GPT2Config(n_layer=2, n_embd=64, n_head=4, vocab_size=100, n_positions=32)).eval()


def encoder() -> nn.Module:
    return nn.TransformerEncoderLayer(64, 4, 128, batch_first=True).eval()


def converted(model: nn.Module, tool: str) -> str:
    """How much of the weights in matrices, embeddings aside, a tool puts on tiles, and what it says of the rest."""
    whole = sum(p.numel() for p in model.parameters() if p.ndim == 2)
    looked_up = sum(m.weight.numel() for m in model.modules() if isinstance(m, nn.Embedding))
    if tool == OURS:
        report = convert(model, presets.pcm())
        held, says = analog_layers(model).values(), f"{len(report.digital)} that stay digital are named"
    else:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            modules = aihwkit_model(model, tool).modules()
        held = [m for m in modules if type(m).__name__.startswith("Analog") and hasattr(m, "in_features")]
        says = f"{len(said)} warnings" if said else "of the rest no word"
    share = sum(layer.in_features * layer.out_features for layer in held) / (whole - looked_up)
    return f"{share:.0%}; {says}"


def aihwkit_model(model: nn.Module, tool: str = AIHWKIT) -> nn.Module:
    """A copy of a model on a peer's tiles, with its own default configuration for inference."""
    if tool == AIHWKIT:
        from aihwkit.nn.conversion import convert_to_analog
        from aihwkit.simulator.configs import InferenceRPUConfig

        config = InferenceRPUConfig()
        config.drift_compensation = None
        return convert_to_analog(copy.deepcopy(model), config)
    from aihwkit_lightning.nn.conversion import convert_to_analog as lightning
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig

    return lightning(copy.deepcopy(model), TorchInferenceRPUConfig())


def aged(seed: int = 0) -> nn.Module:
    """Our layer on a chip of an hour."""
    model = small()
    convert(model, presets.pcm())
    program(model, seed=seed)
    age(model, HOUR)
    return model


def small() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64))


def weights_of(model: nn.Module) -> Tensor:
    """What the one layer of `small` holds on aihwkit's tiles."""
    return next(model.analog_tiles()).get_weights()[0].clone()


def our_drift() -> str:
    model = aged()
    (layer,) = analog_layers(model).values()
    first = layer.effective_weight()
    age(model, 86400.0)
    age(model, HOUR)
    return f"the same: {close(layer.effective_weight(), first):.1%} apart"


def aihwkit_drift() -> str:
    model = aihwkit_model(small()).eval()
    model.program_analog_weights()
    model.drift_analog_weights(HOUR)
    first = weights_of(model)
    model.drift_analog_weights(HOUR)
    return f"{close(weights_of(model), first):.1%} apart"


def lightning_drift() -> str:
    model = aihwkit_model(small(), LIGHTNING)
    found = [name for module in model.modules() for name in dir(module) if "drift" in name]
    return f"methods: {', '.join(sorted(set(found)))}" if found else "no drift: exports to aihwkit"


def our_reload() -> str:
    model, other, x = aged(), small(), torch.randn(8, 64)
    convert(other, presets.pcm())
    with tempfile.TemporaryDirectory() as folder, torch.no_grad():
        save_state(model, f"{folder}/chip.safetensors")
        load_state(other, f"{folder}/chip.safetensors")
        return "the same bits, read noise too" if torch.equal(model(x), other(x)) else "other bits"


def aihwkit_reload() -> str:
    model, other, x = aihwkit_model(small()).eval(), aihwkit_model(small()).eval(), torch.randn(8, 64)
    model.program_analog_weights()
    model.drift_analog_weights(HOUR)
    other.load_state_dict(model.state_dict())
    held = torch.equal(weights_of(model), weights_of(other))
    with torch.no_grad():
        apart, reads = close(other(x), model(x)), close(model(x), model(x))
    return (
        f"{'the same' if held else 'other'} weights; outputs {apart:.0%} apart, as two reads of one are ({reads:.0%})"
    )


def aihwkit_pulses() -> str:
    from aihwkit.nn import AnalogLinear
    from aihwkit.optim import AnalogSGD
    from aihwkit.simulator.configs import ConstantStepDevice, SingleRPUConfig

    layer = AnalogLinear(8, 4, rpu_config=SingleRPUConfig(device=ConstantStepDevice()))
    optimizer = AnalogSGD(layer.parameters(), lr=0.1)
    optimizer.regroup_param_groups(layer)
    before = layer.get_weights()[0].clone()
    layer(torch.ones(2, 8)).square().sum().backward()
    optimizer.step()
    return "yes" if not torch.equal(layer.get_weights()[0], before) else "weights did not move"


def gradients(model: nn.Module) -> str:
    """Whether a step through the tiles has finite gradients."""
    model.train()
    model(torch.randn(8, 64)).square().sum().backward()
    return (
        "yes"
        if all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters() if p.ndim == 2)
        else "no"
    )


def our_rows() -> str:
    q, k, v = (torch.randn(1, 2, 64, 32) for _ in range(3))
    dense = gated_attention(q, k, v, parse("window(16)"))
    return f"yes, {close(gated_attention(q, k, v, parse('window(16)'), hardware=presets.pcm()), dense):.1%} off"


QUESTIONS: dict[str, tuple[Callable[[], str], ...]] = {
    "matrices of a two-layer GPT-2 (`Conv1D`) on tiles": tuple(
        partial(lambda tool: converted(gpt2(), tool), tool) for tool in (OURS, AIHWKIT, LIGHTNING)
    ),
    "matrices of `nn.TransformerEncoderLayer` on tiles": tuple(
        partial(lambda tool: converted(encoder(), tool), tool) for tool in (OURS, AIHWKIT, LIGHTNING)
    ),
    "the weights of one chip at 1 h, asked twice": (our_drift, aihwkit_drift, lightning_drift),
    "a chip of 1 h, saved and loaded": (our_reload, aihwkit_reload, lambda: "no chip: nothing ages"),
    "a training step through the tiles": (
        lambda: gradients(aged()),
        lambda: gradients(aihwkit_model(small())),
        lambda: gradients(aihwkit_model(small(), LIGHTNING)),
    ),
    "training in memory with pulses": (lambda: "no", aihwkit_pulses, lambda: "no"),
    "keys and values in analog rows, sparse": (our_rows, lambda: "no", lambda: "no"),
}
"""What each of the three emulators is asked; a ``no`` that is written here is of one that has no such function."""


# Speed and memory


def timed(part: Part, arms: Arms, rounds: int, base: str) -> dict[str, Cost]:
    """Fill a table with medians, ratios and memory; a peer with a lower ratio than ours is a loss."""
    costs = measure(arms, rounds, twice=True, clock=time.process_time)
    for name, (seconds, memory) in costs.items():
        share = ratio(seconds, costs[base].seconds)
        part.rows.append(
            (name, f"{1e3 * sorted(seconds)[len(seconds) // 2]:.1f} ms", f"{share:.2f}", f"{memory:.0f} MiB")
        )
    ours = next(name for name in costs if name.startswith(OURS))
    for name, (seconds, _) in costs.items():
        faster = ratio(costs[ours].seconds, seconds)
        if not name.startswith(OURS) and faster > 1.05:
            part.lost.append(f"{part.title.partition(':')[0]}: {name} takes 1 / {faster:.1f} of the time of {ours}.")
    return costs


def on_tiles(digital: nn.Linear, train: bool) -> dict[str, nn.Module]:
    """One layer on every tool's tiles of 256 x 256 with 8-bit converters and output noise 0.04, by name."""
    ours = nn.Sequential(copy.deepcopy(digital))
    convert(ours, presets.pcm())
    program(ours, seed=0)
    age(ours, 86400.0)
    found: dict[str, nn.Module] = {"nn.Linear": digital, OURS: ours}
    with contextlib.suppress(ModuleNotFoundError):
        from aihwkit.simulator.configs import InferenceRPUConfig, TorchInferenceRPUConfig
        from linear import peer

        found[f"{AIHWKIT}, compiled tile"] = peer(digital, InferenceRPUConfig, 0.04)
        found[f"{AIHWKIT}, torch tile"] = peer(digital, TorchInferenceRPUConfig, 0.04)
    with contextlib.suppress(ModuleNotFoundError):
        found[LIGHTNING] = lightning_layer(digital)
    return {name: module.train(train) for name, module in found.items()}


def lightning_layer(digital: nn.Linear) -> nn.Module:
    """aihwkit-lightning's layer with tiles of 256 word lines, an 8-bit range for each vector and output noise."""
    from aihwkit_lightning.nn.conversion import convert_to_analog
    from aihwkit_lightning.simulator.configs import TorchInferenceRPUConfig, WeightModifierType

    config = TorchInferenceRPUConfig()
    config.mapping.max_input_size = 256
    config.forward.inp_res, config.forward.out_res = 254, 254
    config.forward.out_bound, config.forward.out_noise = 10.0, 0.04
    config.pre_post.input_range.enable = config.pre_post.input_range.dynamic = True
    config.modifier.type = WeightModifierType.NONE
    return convert_to_analog(nn.Sequential(copy.deepcopy(digital)), config)


def layers(rounds: int) -> Part:
    """A layer's forward."""
    torch.manual_seed(0)
    digital, x = nn.Linear(768, 768), torch.randn(512, 768)
    part = Part("A layer, forward: 512 x 768 to 768", ("arm", "median", "ratio to nn.Linear", "extra memory"))
    with torch.inference_mode():
        timed(
            part,
            {name: partial(module, x) for name, module in on_tiles(digital, train=False).items()},
            rounds,
            "nn.Linear",
        )
    return part


def training(rounds: int) -> Part:
    """A layer's forward and backward."""
    torch.manual_seed(0)
    digital, x = nn.Linear(768, 768), torch.randn(512, 768)

    def step(module: nn.Module) -> None:
        module(x).square().mean().backward()

    part = Part("A training step: the same layer, both ways", ("arm", "median", "ratio to nn.Linear", "extra memory"))
    timed(
        part,
        {name: partial(step, module) for name, module in on_tiles(digital, train=True).items()},
        rounds,
        "nn.Linear",
    )
    return part


def attention(rounds: int, tokens: int) -> Part:
    """Causal attention of 4 heads of 64 in a window of 256."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, 4, tokens, 64) for _ in range(3))
    title = f"Attention: {tokens} tokens, 4 heads of 64, {WINDOW}"
    part = Part(title, ("arm", "median", "ratio to dense", "extra memory"))
    arms: Arms = {
        "dense SDPA": partial(F.scaled_dot_product_attention, q, k, v, is_causal=True),
        OURS: partial(gated_attention, q, k, v, WINDOW),
        f"{OURS}, analog rows": partial(gated_attention, q, k, v, WINDOW, hardware=presets.pcm()),
    }
    flex = flex_attention_of(tokens)
    if flex is None:
        part.rows.append(("FlexAttention", "does not compile here", "", ""))
    else:
        arms["FlexAttention"] = partial(flex, q, k, v)
    with torch.inference_mode():
        timed(part, arms, rounds, "dense SDPA")
        wanted = F.scaled_dot_product_attention(q, k, v, attn_mask=WINDOW.to_dense(tokens)) if tokens <= 4096 else None
        if wanted is not None:
            for name in (OURS, "FlexAttention"):
                if name in arms:
                    part.rows.append((f"{name}: error", f"{close(arms[name](), wanted):.0e}", "", ""))
    return part


def flex_attention_of(tokens: int) -> Callable[..., Tensor] | None:
    """FlexAttention compiled for the pattern; None where torch cannot compile it on this machine."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    try:
        mask = create_block_mask(WINDOW.mask_mod, None, None, tokens, tokens, device="cpu")
        compiled = torch.compile(flex_attention)
        with torch.inference_mode():
            compiled(*(torch.randn(1, 4, tokens, 64) for _ in range(3)), block_mask=mask)
    except Exception as error:  # noqa: BLE001 - a missing compiler has many names
        print(f"FlexAttention: {type(error).__name__}: {str(error).splitlines()[0][:100]}")
        return None
    return partial(compiled, block_mask=mask)


def circuits(rounds: int) -> Part:
    """Currents of an array with wires of 1 ohm a segment."""
    size = 128
    part = Part(
        f"A circuit: {size} x {size} cells, wires of 1 Ω, {size} inputs",
        ("arm", "median", "ratio to badcrossbar", "error"),
    )
    drawn = torch.Generator().manual_seed(0)
    conductance = 1 + 24 * torch.rand(size, size, generator=drawn, dtype=torch.float64)  # µS
    volts = torch.eye(size, dtype=torch.float64)
    seconds: dict[str, list[float]] = {OURS: [], BADCROSSBAR: []}
    try:
        import badcrossbar
    except ImportError as error:  # its drawing may need cairo
        part.rows.append((BADCROSSBAR, f"not installed ({error.name})", "", ""))
        return part
    options = {"r_i": 1.0, "node_voltages": False, "all_currents": False}
    logging.disable(logging.INFO)
    transfer_matrix(conductance, 1.0, 1.0)  # its kernels are compiled at the first call
    for _ in range(max(1, min(rounds, 2))):
        start = time.process_time()
        ours = volts @ transfer_matrix(conductance, 1.0, 1.0)
        seconds[OURS].append(time.process_time() - start)
        start = time.process_time()
        with contextlib.redirect_stdout(io.StringIO()):
            theirs = badcrossbar.compute(np.eye(size), 1e6 / conductance.numpy(), **options)
        seconds[BADCROSSBAR].append(time.process_time() - start)
    logging.disable(logging.NOTSET)
    currents = torch.as_tensor(np.asarray(theirs.currents.output)) * 1e6  # A to µA
    for name, taken in seconds.items():
        error = f"{close(ours, currents):.0e} from badcrossbar" if name == OURS else ""
        part.rows.append(
            (name, f"{sorted(taken)[len(taken) // 2]:.2f} s", f"{ratio(taken, seconds[BADCROSSBAR]):.3f}", error)
        )
    return part


def fidelity(_: int) -> Part:
    """What converters and cells take from one layer, by the tools' own statistics."""
    torch.manual_seed(0)
    digital, x = nn.Linear(768, 768), torch.randn(256, 768)
    part = Part(
        "Fidelity: error of a layer 768 to 768, of its output's size",
        ("arm", "converters and noise", "cells at 1 h alone"),
    )
    errors: dict[str, float] = {}
    with torch.no_grad():
        wanted = digital(x)
    for name, module in on_tiles(digital, train=False).items():
        if name == "nn.Linear":
            continue
        cells = ""
        if name == OURS:
            (layer,) = analog_layers(module).values()
            age(module, HOUR)
            cells = f"{close(layer.effective_weight(), digital.weight.detach()):.3f}"
            module = nn.Sequential(copy.deepcopy(digital))
            convert(module, replace(presets.pcm(), device=presets.ideal().device))
            program(module, seed=0)
        with torch.inference_mode():
            error = errors[name] = close(module(x), wanted)
        if name == f"{AIHWKIT}, compiled tile":
            module.program_analog_weights()
            module.drift_analog_weights(HOUR)
            cells = f"{close(dense_weights(module), digital.weight.detach()):.3f}"
        part.rows.append((name, f"{error:.4f}", cells))
        if error < 0.95 * errors[OURS]:
            part.lost.append(
                f"Fidelity: converters and noise of {name} take {error / errors[OURS]:.2f} of what ours take."
            )
    return part


def dense_weights(module: nn.Module) -> Tensor:
    """What a layer on aihwkit's tiles multiplies with."""
    (layer,) = [m for m in module.modules() if hasattr(m, "get_weights") and hasattr(m, "in_features")]
    return layer.get_weights()[0]


if __name__ == "__main__":
    main()
