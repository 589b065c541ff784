"""Analog layers and models on one GPU, against digital ones in the same process.

Peers take turns, round after round, and are timed by the GPU's own clock; a ratio is the median of the rounds' ratios.
Beside each line: its bar and goal, peak memory above what was held, launches of kernels in a call, and the least time
that the arithmetic and bytes of the work take on an H100 (roofline: 1,979 TOPS of int8, 989 TFLOPS of bfloat16, 33.5
trillion float32 or int32 instructions and 3.35 TB of memory a second). A ratio is printed only where the check of the
line's result passed. Needs a CUDA GPU and Triton; under 5 minutes.
"""

import argparse
import copy
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from paired import judge, print_setting
from rich.console import Console
from rich.table import Table
from torch import nn
from torch.nn import functional as F

from attention import gated_attention, parse
from attention.kernel import fused
from crossbar import AnalogLinear, age, analog_layers, convert, presets, program, reset_reads, using_backend
from crossbar.backends import dispatch
from crossbar.backends.protocol import Read
from crossbar.native import gpu
from crossbar.random.streams import Stream
from crossbar.tiles.readout import Readout

INT8, BF16, ISSUED, BYTES = 1979e12, 989e12, 33.5e12, 3.35e12  # a second; NVIDIA H100 SXM data sheet, dense
SLOTS = 54  # instructions of a conversion with a normal number, and 18.4 of one without: `gpu_kernels.py`, over 32
QUIET_SLOTS = 18.4
PATTERN = parse("causal(window(256) | sinks(4))")


@dataclass(frozen=True)
class Line:
    """A line of the table.

    Attributes:
        name: what is measured.
        ours, peer: calls that are timed.
        peer_name: for the table.
        check: what is wrong with ours; None: nothing.
        bar, goal: of the ratio, ours over the peer's.
        roofline: least milliseconds of ours on an H100; None: not stated.
    """

    name: str
    ours: Callable[[], object]
    peer: Callable[[], object]
    peer_name: str
    check: Callable[[], str | None]
    bar: float
    goal: float
    roofline: float | None = None


@dataclass(frozen=True)
class Setting:
    """Where and how large: ``scale`` divides sizes, so that the lines can be tried on any machine."""

    device: torch.device
    scale: int = 1

    def size(self, full: int) -> int:
        """A size of the work."""
        return max(full // self.scale, 8)


def product_milliseconds(vectors: int, inputs: int, outputs: int, noisy: bool, rows: int = 256) -> float:
    """Roofline of a tile product: the tensor cores' and the other units' work is done at the same time."""
    conversions = vectors * outputs * -(-inputs // rows)
    tensor = 2 * 2 * vectors * inputs * outputs / INT8
    others = conversions * (SLOTS if noisy else QUIET_SLOTS) / ISSUED
    moved = (2 * inputs * outputs + 2 * vectors * inputs + 2 * vectors * outputs) / BYTES
    return 1e3 * max(tensor, others, moved)


def rows_milliseconds(tokens: int, heads: int, size: int, rows: int = 256) -> float:
    """Roofline of `PATTERN` on rows: scores are converted twice, and tensor cores take cells as two numbers each."""
    queries, lines = fused.block_for(tokens, size, noisy=False)
    lists = fused.chunks(PATTERN, tokens, tokens, 0, rows, torch.device("cpu"), queries, lines)
    pairs = heads * len(lists.entries) * queries * lists.size
    sensed = heads * int((lists.entries % 2).sum()) * queries * size  # values, once a tile
    return 1e3 * max(3 * 2 * 2 * pairs * size / BF16, (2 * pairs + sensed) * SLOTS / ISSUED)


def layer_of(setting: Setting, inputs: int, outputs: int, noise: float) -> tuple[AnalogLinear, nn.Linear]:
    """An analog layer of PCM, an hour old, in bfloat16, and its digital one."""
    torch.manual_seed(0)
    digital = nn.Linear(inputs, outputs, bias=False, device=setting.device, dtype=torch.bfloat16)
    hardware = dataclasses.replace(presets.pcm(), output_noise=noise)
    layer = AnalogLinear.from_digital(copy.deepcopy(digital), hardware)
    layer.program(0)
    layer.age(3600.0)
    return layer, digital


def of_cpu(layer: AnalogLinear, x: torch.Tensor, vectors: int = 16) -> str | None:
    """Whether products of some vectors have the bits of the CPU's, with the same digits."""
    cells, noise = layer.readout(), layer.read_noise("read", 0)
    found = dispatch.multiply(Read(x[:vectors], cells, layer.hardware, None, noise)).cpu()
    digits, drawn = layer.cells.digits.cpu(), None if noise is None else Stream(noise.key)
    there = Readout(digits, cells.scales.cpu(), forms=lambda _, make: make(digits))
    expected = dispatch.multiply(Read(x[:vectors].cpu(), there, layer.hardware, None, drawn), "cpu")
    differ = int((found != expected).sum())
    return f"{differ} of {found.numel()} numbers differ from the CPU's" if differ else None


def products(setting: Setting) -> Iterator[Line]:
    """A layer's forward pass."""
    size = setting.size(4096)
    for vectors, noise, bar, goal in ((size, 0.04, 5, 3), (size, 0.0, 2.5, 1.6), (1, 0.04, 1.5, 1.0)):
        layer, digital = layer_of(setting, size, size, noise)
        x = torch.randn(vectors, size, device=setting.device).bfloat16()
        yield Line(
            f"{vectors} vectors, {size} -> {size}, {'output noise' if noise else 'quiet'}",
            partial(layer, x), partial(digital, x), "nn.Linear bf16", partial(of_cpu, layer, x), bar, goal,
            product_milliseconds(vectors, size, size, noise > 0),
        )  # fmt: skip
    layer, _ = layer_of(setting, size, size, 0.04)
    x = torch.randn(size, size, device=setting.device).bfloat16()

    def by_torch() -> torch.Tensor:
        with using_backend("eager"):
            found: torch.Tensor = layer(x)
        return found

    yield Line(
        f"{size} vectors, {size} -> {size}, output noise, over torch's operations, as fast as aihwkit-lightning's",
        partial(layer, x), by_torch, "eager", partial(of_cpu, layer, x), 1 / 8, 1 / 14,
        product_milliseconds(size, size, size, noisy=True),
    )  # fmt: skip


def llama(setting: Setting, hidden: int, inner: int, layers: int) -> nn.Module:
    """A Llama of random weights, bfloat16."""
    from transformers import LlamaConfig, LlamaForCausalLM

    hidden, inner = setting.size(hidden), setting.size(inner)
    config = LlamaConfig(
        vocab_size=setting.size(32_000), hidden_size=hidden, intermediate_size=inner,
        num_hidden_layers=max(layers // setting.scale, 1), num_attention_heads=max(hidden // 64, 1), use_cache=False,
        max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    with setting.device:
        return LlamaForCausalLM(config).bfloat16().eval()


def analog_of(model: nn.Module) -> nn.Module:
    """A copy on PCM tiles, an hour old."""
    analog = copy.deepcopy(model)
    convert(analog, presets.pcm())
    program(analog, 0)
    age(analog, 3600.0)
    return analog


def repeats(model: nn.Module, tokens: torch.Tensor) -> str | None:
    """Whether a model gives finite logits, the same ones when its reads start again."""
    found = []
    for _ in range(2):
        reset_reads(model)
        found.append(model(tokens).logits)
    if not found[0].isfinite().all():
        return "logits are not finite"
    return None if torch.equal(*found) else "the same reads give other logits"


def models(setting: Setting) -> Iterator[Line]:
    """Forward passes of a model of 1.2 billion parameters."""
    model = llama(setting, 2048, 5632, 22)
    analog, count = analog_of(model), sum(p.numel() for p in model.parameters())
    tokens = torch.randint(0, setting.size(32_000), (4, setting.size(2048)), device=setting.device)
    yield Line(
        f"{count / 1e6:.0f} million parameters, forward of 4 x {tokens.shape[1]} tokens",
        lambda: analog(tokens), lambda: model(tokens), "digital bf16", lambda: repeats(analog, tokens[:, :64]), 5, 3,
        sum(
            product_milliseconds(tokens.numel(), layer.in_features, layer.out_features, noisy=True)
            for layer in analog_layers(analog).values()
        ),
    )  # fmt: skip


def training_steps(setting: Setting) -> Iterator[Line]:
    """A training step of a model of 162 million parameters."""
    model = llama(setting, 768, 3072, 12).float()
    analog, count = copy.deepcopy(model), sum(p.numel() for p in model.parameters())
    convert(analog, presets.pcm())
    tokens = torch.randint(0, setting.size(32_000), (8, setting.size(512)), device=setting.device)

    @torch.enable_grad()
    def step(trained: nn.Module) -> torch.Tensor:
        trained.train()
        trained.zero_grad()
        loss: torch.Tensor = trained(tokens, labels=tokens).loss
        loss.backward()
        return loss.detach()

    def check() -> str | None:
        loss, digital = float(step(analog)), float(step(model))
        missing = sum(p.grad is None or not bool(p.grad.isfinite().all()) for p in analog.parameters())
        if missing:
            return f"{missing} parameters have no finite gradient"
        return None if abs(loss - digital) < 0.2 * digital else f"loss {loss:.3f}, and {digital:.3f} in digital"

    yield Line(
        f"{count / 1e6:.0f} million parameters, forward and backward of 8 x {tokens.shape[1]} tokens, float32",
        partial(step, analog), partial(step, model), "digital", check, 5, 2.5,
    )  # fmt: skip


def flex_of(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> Callable[[], torch.Tensor]:
    """FlexAttention with torch's own block mask of the pattern, compiled at the first call."""
    from torch.nn.attention.flex_attention import create_block_mask, flex_attention

    attend, made = torch.compile(flex_attention, dynamic=False), {}

    def call() -> torch.Tensor:
        if not made:
            made["mask"] = create_block_mask(PATTERN.mask_mod, None, None, q.shape[2], q.shape[2], device=str(q.device))
        found: torch.Tensor = attend(q, k, v, block_mask=made["mask"])
        return found

    return call


def off(found: torch.Tensor, expected: torch.Tensor) -> str | None:
    """Whether more than 1% of the numbers are off by more than bfloat16 makes them."""
    share = float(((found - expected).abs() > 0.05).float().mean())
    return f"{share:.1%} of the numbers are off" if share > 0.01 or not found.isfinite().all() else None


def attending(setting: Setting) -> Iterator[Line]:
    """Sparse attention of 16 heads of 64 over 32,768 tokens: digital, and on rows of PCM."""
    torch.manual_seed(0)
    n = setting.size(32_768)
    q, k, v = (x.requires_grad_() for x in torch.randn(3, 1, 16, n, 64, device=setting.device).bfloat16())
    flash = partial(F.scaled_dot_product_attention, q, k, v, is_causal=True)
    digital, flex = partial(gated_attention, q, k, v, PATTERN), flex_of(q, k, v)
    analog = partial(gated_attention, q, k, v, PATTERN, hardware=presets.pcm())

    def trained(call: Callable[..., Any]) -> Callable[[], object]:
        """Forward and backward."""

        @torch.enable_grad()
        def both() -> object:
            return torch.autograd.grad(call().float().sum(), (q, k, v))

        return both

    def check(call: Callable[..., Any], impl: str) -> Callable[[], str | None]:
        return lambda: off(call(), call(impl=impl))

    sparse, rows = check(digital, "blocks"), check(analog, "eager")
    name = f"{PATTERN}, {n} tokens"
    yield Line(f"{name}, digital", digital, flex, "FlexAttention", sparse, 1.2, 1.0)
    yield Line(f"{name}, digital, and backward", trained(digital), trained(flex), "FlexAttention", sparse, 1.2, 1.0)
    least = rows_milliseconds(n, 16, 64)
    yield Line(f"{name}, analog", analog, flash, "dense flash", rows, 1 / 1.5, 1 / 5, least)
    yield Line(f"{name}, analog, and backward", trained(analog), trained(flash), "dense flash", rows, 1 / 1.5, 1 / 5)


LINES: list[Callable[[Setting], Iterator[Line]]] = [products, attending, training_steps, models]
"""Functions that give the lines of the table; each frees what the one before held."""


def milliseconds(call: Callable[[], object], device: torch.device) -> float:
    """Of one call, by the GPU's clock."""
    if device.type != "cuda":
        start = time.perf_counter()
        call()
        return 1e3 * (time.perf_counter() - start)
    first, last = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    first.record()
    call()
    last.record()
    torch.cuda.synchronize()
    return first.elapsed_time(last)


def launches(call: Callable[[], object]) -> int:
    """Kernels, copies and fills of a call."""
    from torch.profiler import ProfilerActivity, profile

    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        call()
        torch.cuda.synchronize()
    return sum(event.device_type == torch.autograd.DeviceType.CUDA for event in seen.events())


def measured(line: Line, device: torch.device, rounds: int) -> list[str]:
    """Cells of a line of the table, without its name."""
    wrong = line.check()
    for call in (line.ours, line.peer) * 2:
        call()
    times: dict[str, list[float]] = {"ours": [], "peer": []}
    for _ in range(rounds):
        for name, call in (("ours", line.ours), ("peer", line.peer)):
            times[name].append(milliseconds(call, device))
    ratio = statistics.median(a / b for a, b in zip(times["ours"], times["peer"], strict=True))
    extra, count = "", ""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
        held = torch.cuda.memory_allocated()
        line.ours()
        extra = f"{(torch.cuda.max_memory_allocated() - held) / 2**20:.0f} MiB"
        count = str(launches(line.ours))
    verdict = f"wrong: {wrong}" if wrong else judge("", ratio, line.bar, line.goal).removeprefix(": ")
    roofline = "" if line.roofline is None else f"{line.roofline:.3f}"
    ours, peer = (f"{statistics.median(times[name]):.3f}" for name in ("ours", "peer"))
    return [ours, roofline, f"{peer} ({line.peer_name})", "" if wrong else f"{ratio:.2f}", verdict, extra, count]


def bytes_a_weight(setting: Setting) -> str:
    """What a layer of bfloat16 holds for each weight, the digital one included, once it has been read."""
    if setting.device.type != "cuda":
        return ""
    size = setting.size(4096)
    before = torch.cuda.memory_allocated()
    layer, digital = layer_of(setting, size, size, 0.04)
    del digital
    layer(torch.ones(1, size, device=setting.device, dtype=torch.bfloat16))
    return judge("bytes a weight held", (torch.cuda.memory_allocated() - before) / size**2, 8, 4)


def table(setting: Setting, rounds: int, console: Console) -> None:
    """Measure every line, and print it."""
    view = Table(title="milliseconds, medians", title_justify="left")
    for name in ("work", "ours", "roofline", "peer", "ratio", "verdict", "peak memory", "launches"):
        view.add_column(name, justify="left" if name in ("work", "peer", "verdict") else "right")
    for lines in LINES:
        for line in lines(setting):
            view.add_row(line.name, *measured(line, setting.device, rounds))
    console.print(view)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="timed rounds (default 9)")
    rounds = parser.parse_args().rounds
    reason = "kernels are interpreted" if gpu.interpreted() else gpu.why_not()
    if reason is not None:
        print(f"benchmarks/gpu.py needs an NVIDIA GPU of compute capability 8.0 or more, and Triton ({reason})")
        return 2
    print_setting()
    print(torch.cuda.get_device_name())
    setting: Any = Setting(torch.device("cuda"))
    with torch.no_grad():
        table(setting, rounds, Console(width=200))
        print(bytes_a_weight(setting))
    return 0


if __name__ == "__main__":
    sys.exit(main())
