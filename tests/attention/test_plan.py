"""What runs for a call: the implementation of each part, and the backend that senses analog memory."""

from dataclasses import dataclass, field, replace

import pytest
import torch

from attention import (
    AnalogMemory,
    Controller,
    Dense,
    Hierarchical,
    LocalWindow,
    Memory,
    PerHead,
    PerSequence,
    Platform,
    Protected,
    Sinks,
    TopK,
    gated_attention,
)
from attention.controller.delivery import _deliver_head_cached
from attention.kernel.analog import ReadNoise
from attention.kernel.blocks import Options
from attention.kernel.schedule import schedule
from attention.kernel.token_rows import error_statistics, write
from attention.memory.open_rows import open_rows
from attention.plan import Analog, Digital, Part, decide
from crossbar import presets, register_backend
from crossbar.backends.eager import Eager
from crossbar.errors import InputError
from crossbar.hardware import CellNoise, Converter, Tile

HEADS = PerHead([Dense(), LocalWindow(3)])
SEQUENCES = PerSequence([Dense(), HEADS])
TREE = Hierarchical(2, 2)
PCM = replace(presets.pcm(), tile=Tile(rows=8, cols=5), output_noise=0.05)


def draw(dtype=torch.float64):
    generator = torch.Generator().manual_seed(0)
    shapes = ((2, 4, 20, 6), (2, 2, 20, 6), (2, 2, 20, 6))
    return [torch.randn(shape, generator=generator, dtype=torch.float64).to(dtype) for shape in shapes]


@pytest.mark.parametrize(
    ("pattern", "fixed", "impl", "digital", "analog"),
    [
        (Dense(), True, "auto", "blocks", "analog"),
        (Dense(), False, "blocks", "blocks", "analog"),
        (HEADS, True, "auto", "heads", "heads"),
        (HEADS, False, "auto", "stacked", "heads"),
        (SEQUENCES, True, "auto", "sequences", "sequences"),
        (SEQUENCES, False, "auto", "stacked", "sequences"),
        (TREE, True, "auto", "hierarchical", "analog"),
        (Dense(), True, "reference", "reference", None),
        (HEADS, False, "flex", "flex", None),
        (Dense(), True, "naive", None, "analog"),
    ],
)
def test_each_kind_of_part_has_its_way(pattern, fixed, impl, digital, analog):
    q, k, v = draw()
    options = Options(1.0, None, 0.0, 0, False)
    if digital is not None:
        assert decide(Part(q, Digital(k, v), pattern, options, 0, fixed, impl)) == digital
    if analog is not None:
        rows = Analog(*(write(x, PCM, (0,)) for x in (k, v)), PCM, "layer", ReadNoise((0,)), None, counted=True)
        assert decide(Part(q, rows, pattern, options, 0, fixed, impl)) == analog


@pytest.mark.parametrize(
    "hardware",
    [
        PCM,
        replace(PCM, dac=None, adc=Converter(range="active_rows", bits=6, full_scale=4.0)),
        replace(PCM, adc=None, read_noise=CellNoise(constant=0.3, relative=0.02)),
    ],
    ids=["pcm", "active rows", "cell noise"],
)
@pytest.mark.parametrize("pattern", [Dense().causal(), LocalWindow(5) | Sinks(2), PerHead([TopK(4)] * 4)])
def test_the_oracle_senses_what_the_others_sense(hardware, pattern):
    q, k, v = draw()
    with torch.no_grad():
        found = {
            impl: gated_attention(q, k, v, pattern, hardware=hardware, return_lse=True, impl=impl, seed=3)
            for impl in ("auto", "blocks", "eager", "naive")
        }
    for one, two in (("auto", "blocks"), ("auto", "eager")):
        assert torch.equal(found[one][0], found[two][0])
    for own, oracle in zip(found["eager"], found["naive"], strict=True):
        torch.testing.assert_close(own, oracle, rtol=0, atol=1e-12)
    digital = gated_attention(q, k, v, pattern)
    assert float((found["naive"][0] - digital).square().mean().sqrt()) > 1e-3  # it is the analog one


@dataclass(frozen=True)
class Counting(Eager):
    """The eager backend, by another name, that notes what it senses."""

    name: str = "counting"
    sensed: list = field(default_factory=list)

    def sense(self, columns):
        self.sensed.append(columns.shape)
        return super().sense(columns)


def test_a_backend_by_name_senses_forward_and_backward(registries):
    backend = Counting()
    register_backend(backend, first=False)
    q, k, v = draw()
    plain = gated_attention(q, k, v, Dense(), hardware=PCM)
    assert not backend.sensed
    q.requires_grad_()
    output = gated_attention(q, k, v, Dense(), hardware=PCM, impl="counting")
    torch.testing.assert_close(output, plain, rtol=0, atol=1e-12)
    forward = list(backend.sensed)
    assert forward
    output.sum().backward()
    assert backend.sensed == 2 * forward  # the draws of the forward pass again, and the sums with their gradients


def test_what_an_impl_cannot_have_is_refused():
    q, k, v = draw()
    with pytest.raises(InputError, match="impl 'naive' reads analog memory: give hardware"):
        gated_attention(q, k, v, Dense(), impl="naive")
    with pytest.raises(InputError, match=r"impl 'fast' is not known: choose one of auto, .*, reference, .*naive"):
        gated_attention(q, k, v, Dense(), hardware=PCM, impl="fast")
    output = gated_attention(q.requires_grad_(), k, v, Dense(), hardware=PCM, impl="naive")
    with pytest.raises(InputError, match=r"'naive' cannot compute this \(gradients\)"):
        output.sum().backward()


DROPPING = Platform("dropping", rows=8, timing="fifo", unit=1e-9, step=1, service=3, queue=2, full="drop_new")


@pytest.mark.filterwarnings("ignore::attention.EventsDropped")
@pytest.mark.parametrize(
    "options",
    [
        {"pattern": LocalWindow(7).causal()},
        {"pattern": Dense(), "dropout": 0.3},
        {"pattern": Dense(), "impl": "reference"},
        {"pattern": PerHead([Dense(), LocalWindow(7)] * 2)},
        {"pattern": TopK(5) | Sinks(1)},
        {"pattern": TopK(6, "straight")},
        {"pattern": Hierarchical(4, 2)},
        {"pattern": LocalWindow(6) | Sinks(2), "hardware": PCM},
        {"pattern": PerHead([Dense(), LocalWindow(5)] * 2), "hardware": PCM, "impl": "eager"},
        {"pattern": LocalWindow(8), "controller": Controller(DROPPING)},
        {"pattern": LocalWindow(9), "controller": Controller(DROPPING), "hardware": PCM},
    ],
    ids=lambda options: ", ".join(str(options[name]) if name == "pattern" else name for name in options),
)
def test_another_default_device_changes_nothing(options):
    options = dict(options)
    pattern = options.pop("pattern")
    inputs = [x.requires_grad_() for x in draw(torch.float32)]

    def attend():
        for cache in (schedule, error_statistics, _deliver_head_cached):
            cache.cache_clear()
        output, lse = gated_attention(*inputs, pattern, return_lse=True, **options)
        total = output.sum() + lse[lse > -torch.inf].sum()
        return [output, lse, *torch.autograd.grad(total, inputs)]

    with torch.device("meta"):
        found = attend()
    for own, expected in zip(found, attend(), strict=True):
        assert own.device.type == "cpu"
        assert torch.equal(own, expected)


def test_another_default_device_changes_no_memory():
    x = draw(torch.float32)[1]
    description = Memory(PCM, capacity=16, sinks=1, token_seconds=1e-3, protected=Protected(sinks=1, recent=2))
    pattern = PerHead([(LocalWindow(6) | Sinks(1)).causal(), Dense().causal()])

    def read():
        open_rows.cache_clear()
        memory = AnalogMemory(description)
        memory.append(x, x)
        memory.append(x[:, :, :3], x[:, :, :3])
        memory.select(torch.tensor([1, 1, 0], device="cpu"))
        return memory.read(x[[1, 1, 0], :, :3], pattern, return_lse=True)

    with torch.device("meta"):
        found = read()
    for own, expected in zip(found, read(), strict=True):
        assert torch.equal(own, expected)
