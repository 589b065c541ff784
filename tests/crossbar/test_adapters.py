"""The contract of layer adapters: on ideal tiles a layer of each kind is the digital one; it trains and comes back."""

import copy
from typing import NamedTuple

import pytest
import torch
from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.llama4.configuration_llama4 import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4Router
from transformers.pytorch_utils import Conv1D

from crossbar import (
    AnalogLinear,
    Converter,
    Hardware,
    InputError,
    Ledger,
    Tile,
    age,
    bypassed,
    clip_weights,
    convert,
    learn_ranges,
    load_state,
    program,
    register_adapter,
    restore,
    save_state,
)
from crossbar.adapters import Linear, adapter_of, digital_weight, find_adapter, is_convertible
from tests.crossbar.conftest import QUIET, inputs, inputs64

CHIP = Hardware(tile=Tile(4, 3), adc=Converter(full_scale=4.0))


class Scaled(nn.Linear):
    """A class made from nn.Linear."""

    def __init__(self, *size, scale=2.0, **options):
        super().__init__(*size, **options)
        self.scale = scale


class Doubled(nn.Linear):
    """A class made from nn.Linear that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class Pointwise:
    """A user's adapter: convolutions that see one pixel, whose channels are the inputs."""

    name = "an nn.Conv2d of one pixel"

    def matches(self, module):
        one = isinstance(module, nn.Conv2d) and module.kernel_size == module.stride == (1, 1) and module.groups == 1
        return one and module.padding == (0, 0)

    def weight(self, module):
        return module.weight.flatten(1)

    def bias(self, module):
        return module.bias

    def vectors(self, module, x):
        fits = x.dim() == 4 and x.shape[1] == module.in_channels
        return x.movedim(1, 3).reshape(-1, module.in_channels) if fits else None

    def expects(self, module):
        return f"[N, {module.in_channels}, H, W]"

    def outputs(self, module, y, x):
        return y.view(len(x), *x.shape[2:], y.shape[1]).movedim(3, 1)


class Kind(NamedTuple):
    """How to make a layer of 10 inputs and 7 outputs, shapes that it takes, and what it says of others."""

    make: object
    shapes: tuple[tuple[int, ...], ...]
    wrong: tuple[tuple[int, ...], ...]
    expects: str


ROWS = {"shapes": ((10,), (5, 10), (2, 3, 10), (2, 0, 10)), "wrong": ((), (5, 9), (10, 5)), "expects": "[..., 10]"}
KINDS = {
    "linear": Kind(lambda **options: nn.Linear(10, 7, **options), **ROWS),
    "linear without bias": Kind(lambda **options: nn.Linear(10, 7, bias=False, **options), **ROWS),
    "class made from it": Kind(lambda **options: Scaled(10, 7, **options), **ROWS),
    "falcon's": Kind(lambda **options: FalconLinear(10, 7, **options), **ROWS),
    "conv1d of transformers": Kind(lambda dtype: Conv1D(7, 10).to(dtype), **ROWS),
    "user's": Kind(
        lambda **options: nn.Conv2d(10, 7, 1, **options),
        ((2, 10, 3, 4), (1, 10, 1, 1), (0, 10, 2, 2)),
        ((2, 9, 3, 4), (10, 3, 4), (2, 3, 4, 10)),
        "[N, 10, H, W]",
    ),
    "user's without bias": Kind(
        lambda **options: nn.Conv2d(10, 7, 1, bias=False, **options),
        ((2, 10, 3, 4),),
        ((2, 10, 3),),
        "[N, 10, H, W]",
    ),
}


@pytest.fixture(autouse=True)
def pointwise(registries):
    register_adapter(Pointwise())


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


def model_of(kind, dtype=torch.float64):
    """A model of one layer, drawn anew in the same way each time."""
    layer, generator = kind.make(dtype=dtype), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return nn.Sequential(layer)


def analog_of(kind, hardware, dtype=torch.float64):
    model = model_of(kind, dtype)
    convert(model, hardware)
    return model


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_ideal_tiles_it_is_the_digital_layer(kind, dtype):
    digital, analog = model_of(kind, dtype), model_of(kind, dtype)
    report = convert(analog, QUIET).analog
    assert [(r.name, r.kind, r.in_features, r.out_features, r.tiles) for r in report] == [
        ("0", type(digital[0]).__name__, 10, 7, 9)
    ]
    for shape in kind.shapes:
        x = inputs(*shape, dtype=dtype)
        found, expected = analog(x), digital(x)
        assert found.dtype == dtype
        assert found.shape == expected.shape
        # ten products and their sum, mapping and unmapping, of terms of order 1
        torch.testing.assert_close(found, expected, rtol=0, atol=100 * torch.finfo(dtype).eps)


def test_outputs_are_in_the_dtype_of_inputs(kind):
    analog = analog_of(kind, QUIET, torch.float32)
    x = inputs(*kind.shapes[-1]).to(torch.bfloat16)
    assert analog(x).dtype == torch.bfloat16
    torch.testing.assert_close(analog(x), analog(x.float()).to(torch.bfloat16))


def test_gradients_reach_the_digital_parameters_in_training(kind):
    digital, analog = model_of(kind), analog_of(kind, QUIET)
    analog.train()
    found = []
    for model in (digital, analog):
        x = inputs64(*kind.shapes[0]).requires_grad_()
        y = model(x)
        y.backward(inputs64(*y.shape, seed=2))
        layer = model[0] if model is digital else model[0].digital
        found.append([x.grad, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(other, one, rtol=0, atol=1e-13)


def test_a_step_of_training_moves_the_cells(kind):
    analog = analog_of(kind, CHIP, torch.float32)
    x = inputs(*kind.shapes[0])
    assert {name for name, _ in analog.named_parameters()} == {
        f"0.digital.{name}" for name, _ in model_of(kind)[0].named_parameters()
    }
    before = analog[0].target_weight().clone()
    targets = analog[0].cells.targets()
    analog.train()
    analog(x).square().sum().backward()
    with torch.no_grad():
        for parameter in analog.parameters():
            parameter -= 0.1 * parameter.grad
    analog.eval()
    assert (analog[0].target_weight() - before).abs().max() > 1e-3
    assert not torch.equal(analog[0].cells.targets(), targets)
    torch.testing.assert_close(analog[0].effective_weight(), analog[0].target_weight(), rtol=1e-5, atol=1e-5)


def test_restore_gives_the_very_modules_back(kind):
    model = model_of(kind)
    layer, x = model[0], inputs64(*kind.shapes[0])
    expected, weights = model(x), copy.deepcopy(layer.state_dict())
    convert(model, CHIP)
    assert isinstance(model[0], AnalogLinear)
    program(model, 1)
    model(x)
    restore(model)
    assert model[0] is layer
    assert torch.equal(model(x), expected)
    assert all(torch.equal(weights[name], value) for name, value in layer.state_dict().items())


def test_weights_are_a_view_of_the_parameter(kind):
    layer = model_of(kind)[0]
    weight = digital_weight(layer)
    assert weight.shape == (7, 10)
    assert weight.requires_grad
    assert weight.data_ptr() == layer.weight.data_ptr()
    assert is_convertible(layer)
    bias = adapter_of(layer).bias(layer)
    assert bias is (layer.bias if getattr(layer, "bias", None) is not None else None)


def test_clipping_reaches_the_digital_weights(kind):
    analog = analog_of(kind, CHIP)
    layer = analog[0].digital
    before = layer.weight.detach().clone()
    clip_weights(analog, 1.0)
    bound = float(before.square().mean().sqrt())
    torch.testing.assert_close(layer.weight.detach(), before.clamp(-bound, bound), rtol=1e-6, atol=1e-6)
    assert float(layer.weight.detach().abs().max()) < float(before.abs().max())


def test_a_chip_is_the_same_after_reload(kind, tmp_path):
    first, second = (analog_of(kind, CHIP, torch.float32) for _ in range(2))
    x = inputs(*kind.shapes[0])
    program(first, 5)
    age(first, "1h")
    assert not torch.equal(first(x), second(x))
    save_state(first, tmp_path / "chip.safetensors")
    load_state(second, tmp_path / "chip.safetensors")
    for model in (first, second):
        model[0].reset_reads()
    assert torch.equal(first(x), second(x))
    assert second[0].seed == 5
    assert second[0].seconds == 3600.0


def test_copies_and_state_dicts_are_those_of_the_digital_layer(kind):
    analog = analog_of(kind, CHIP, torch.float32)
    program(analog, 5)
    names = {f"0.digital.{name}" for name in model_of(kind)[0].state_dict()}
    assert set(analog.state_dict()) == names
    other, x = copy.deepcopy(analog), inputs(*kind.shapes[0])
    assert torch.equal(other(x), analog(x))
    with torch.no_grad():
        other[0].digital.weight.zero_()
    program(other, 5)
    program(analog, 5)
    assert analog[0].cells.matrix().abs().max() > 0  # a copy's cells hold its own weights
    assert other[0].cells.matrix().abs().max() == 0


def test_the_bias_is_added_behind_the_tiles(kind):
    analog, digital = analog_of(kind, CHIP, torch.float32), model_of(kind, torch.float32)
    x = torch.zeros(kind.shapes[0])
    quiet = analog_of(kind, QUIET, torch.float32)
    assert torch.equal(quiet(x), digital(x))
    bias = getattr(digital[0], "bias", None)
    assert (analog[0].bias is None) == (bias is None)
    if bias is not None:
        assert torch.equal(analog[0].bias, bias)


def test_what_a_read_costs_is_counted_by_vectors(kind):
    analog = analog_of(kind, CHIP, torch.float32)
    x = inputs(*kind.shapes[0])
    vectors = x.numel() // 10
    with Ledger() as ledger:
        analog(x)
    assert ledger.totals()["dac_conversions"] == vectors * 10 * 3  # of three column tiles
    assert ledger.totals()["adc_conversions"] == vectors * 7 * 3  # of three row tiles
    assert ledger.totals()["cell_macs"] == vectors * 70


def test_bypassed_it_computes_in_digital(kind):
    analog, digital, x = analog_of(kind, CHIP), model_of(kind), inputs64(*kind.shapes[0])
    program(analog, 1)
    with bypassed(analog):
        assert torch.equal(analog(x), digital(x))
    assert not torch.equal(analog(x), digital(x))


def test_learned_ranges_train(kind):
    hardware = Hardware(tile=Tile(4, 3), dac=Converter(full_scale=1.0), adc=Converter(full_scale=1.0))
    analog = analog_of(kind, hardware, torch.float32)
    ranges = learn_ranges(analog)
    analog.train()
    analog(inputs(*kind.shapes[0])).square().sum().backward()
    assert len(ranges) == 2
    assert all(parameter.grad.abs() > 0 for parameter in ranges)


def test_inputs_that_do_not_fit_are_refused_with_what_fits(kind):
    analog = analog_of(kind, QUIET, torch.float32)
    for shape in kind.wrong:
        with pytest.raises(InputError) as caught:
            analog(torch.zeros(shape))
        assert str(caught.value) == f"0 got torch.float32 inputs {list(shape)}: give floating point {kind.expects}"
    with pytest.raises(InputError) as caught:
        analog(torch.zeros(kind.shapes[0], dtype=torch.int64))
    shape = list(kind.shapes[0])
    assert str(caught.value) == f"0 got torch.int64 inputs {shape}: give floating point {kind.expects}"


# Which adapter


def test_other_kinds_stay_digital():
    model = nn.Sequential(
        nn.Conv2d(10, 7, 3), nn.Conv2d(10, 6, 1, stride=2), nn.Conv2d(10, 10, 1, groups=2), nn.Linear(2, 2)
    )
    assert [layer.name for layer in convert(model, QUIET).analog] == ["3"]
    assert not is_convertible(model[0])
    with pytest.raises(InputError) as caught:
        AnalogLinear.from_digital(nn.Embedding(3, 4), QUIET)
    assert str(caught.value) == (
        "a Embedding cannot become analog: give an nn.Linear or a transformers Conv1D or an nn.Conv2d of one pixel"
    )


def test_the_adapter_that_was_registered_last_is_asked_first():
    class Own(Pointwise):
        name = "a Scaled"

        def matches(self, module):
            return isinstance(module, Scaled)

    scaled, linear = Scaled(2, 3), nn.Linear(2, 3)
    assert find_adapter(scaled) is find_adapter(linear)
    own, again = Own(), Own()
    register_adapter(own)
    assert find_adapter(scaled) is own
    register_adapter(again)  # one of its name takes its place
    assert find_adapter(scaled) is again
    assert find_adapter(linear).name == "an nn.Linear"
    assert find_adapter(nn.ReLU()) is None


@pytest.mark.parametrize("given", [Pointwise, nn.Conv2d(1, 1, 1), None], ids=["class", "layer", "None"])
def test_what_is_no_adapter_is_refused(given):
    with pytest.raises(InputError, match=r" is not an adapter: give an object with name, matches, weight, bias, "):
        register_adapter(given)
    assert find_adapter(nn.Conv2d(2, 2, 1)).name == Pointwise.name


def test_what_computes_otherwise_stays_digital_until_it_has_an_adapter():
    class Twice(Conv1D):
        def forward(self, x):
            return super().forward(super().forward(x))

    model = nn.Sequential(Doubled(4, 4), Twice(4, 4), nn.Linear(4, 4)).double()
    digital, x = copy.deepcopy(model), inputs64(3, 4)
    report = convert(model, QUIET)
    assert {layer.name: layer.reason for layer in report.digital} == {
        "0": "its class computes otherwise than nn.Linear: register an adapter",
        "1": "not a linear layer",
    }
    torch.testing.assert_close(model(x), digital(x), rtol=0, atol=1e-12)

    class Adapter(Linear):
        name = "a Doubled"

        def matches(self, module):
            return isinstance(module, Doubled)

        def vectors(self, module, x):
            return super().vectors(module, 2 * x)

        def bias(self, module):
            return 2 * module.bias

    register_adapter(Adapter())
    assert [layer.name for layer in convert(model, QUIET).analog] == ["0"]
    torch.testing.assert_close(model(x), digital(x), rtol=0, atol=1e-12)


def test_a_router_of_experts_that_is_made_from_a_linear_layer_stays_digital():
    config = Llama4TextConfig(hidden_size=4, num_local_experts=3, num_experts_per_tok=1)
    model = nn.ModuleDict({"router": Llama4Router(config), "next": nn.Linear(4, 4)})
    assert [layer.name for layer in convert(model, QUIET).analog] == ["next"]
    scores, logits = model["router"](inputs(5, 4))  # it returns two tensors, which a layer on tiles would not
    assert scores.shape == logits.shape == (5, 3)


def test_layers_of_two_kinds_are_one_chip():
    model = nn.Sequential(nn.Conv2d(10, 7, 1), nn.Flatten(), nn.Linear(7 * 6, 5)).double()
    digital, x = copy.deepcopy(model), inputs64(2, 10, 2, 3)
    report = convert(model, QUIET)
    assert [layer.name for layer in report.analog] == ["0", "2"]
    torch.testing.assert_close(model(x), digital(x), rtol=0, atol=1e-12)
    assert not torch.equal(model[0].cells.targets()[0, :2, :2], model[2].cells.targets()[0, :2, :2])


# A matrix without a layer


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_matrix_on_ideal_tiles_is_the_matrix(dtype):
    weight, x = inputs(7, 10, seed=3, dtype=dtype), inputs(2, 3, 10, dtype=dtype)
    layer = AnalogLinear.from_matrix(weight, QUIET, "matrix")
    atol = 100 * torch.finfo(dtype).eps
    torch.testing.assert_close(layer(x), x @ weight.t(), rtol=0, atol=atol)
    torch.testing.assert_close(layer.effective_weight(), weight, rtol=0, atol=atol)
    assert torch.equal(layer.target_weight(), weight)
    assert (layer.digital, layer.bias, list(layer.parameters())) == (None, None, [])
    assert layer.name == "matrix"
    assert layer.extra_repr() == "10, 7, not programmed"
    model = nn.ModuleList([layer])
    with bypassed(model):
        assert torch.equal(layer(x), nn.functional.linear(x, weight))
    restore(model)
    assert model[0] is layer  # there is nothing to put back


def test_a_matrix_refuses_what_a_layer_refuses():
    layer = AnalogLinear.from_matrix(torch.ones(7, 10), QUIET, "matrix")
    with pytest.raises(
        InputError, match=r"^matrix got torch\.float32 inputs \[2, 9\]: give floating point \[\.\.\., 10\]$"
    ):
        layer(torch.ones(2, 9))
    with pytest.raises(InputError, match="matrix"):
        AnalogLinear.from_matrix(torch.full((7, 10), torch.nan), QUIET, "matrix")


def test_where_a_matrix_has_no_devices_nothing_flows():
    weight = inputs(7, 10, seed=3)
    devices = inputs(7, 10, seed=4) > 0
    layer = AnalogLinear.from_matrix(weight, CHIP, "matrix", devices)
    for step in (lambda: layer.program(1), lambda: layer.age(60.0)):
        step()
        assert (layer.effective_weight()[~devices] == 0).all()
        assert (layer.effective_weight()[devices] != 0).all()


@pytest.mark.parametrize("coding", ["pwm", "bit_serial", "rate"])
@pytest.mark.parametrize("slices", [1, 2])
def test_what_a_matrix_costs_is_counted_where_it_has_devices(coding, slices):
    hardware = Hardware(tile=Tile(4, 3, slices=slices), dac=Converter(bits=4, coding=coding))
    weight, devices = inputs(7, 10, seed=3), torch.zeros(7, 10, dtype=torch.bool)
    devices[0, :2] = devices[6, 9] = True  # the first tile of the first row tile, and the last of the last
    found = {}
    for name, mask in (("some", devices), ("all", torch.ones_like(devices)), ("whole", None)):
        layer = AnalogLinear.from_matrix(weight, hardware, "matrix", mask)
        with Ledger() as ledger:
            layer(inputs(5, 10))
        found[name] = ledger.totals()
    pulses, senses = {"pwm": (1, 1), "bit_serial": (3, 3), "rate": (7, 1)}[coding]
    assert found["some"]["row_activations"] == 5 * 3 * slices * pulses
    assert found["some"]["dac_conversions"] == 5 * 3 * slices
    assert found["some"]["adc_conversions"] == 5 * 2 * slices * senses
    assert found["some"]["cell_macs"] == 5 * 3 * slices * pulses
    for name in ("row_activations", "dac_conversions", "adc_conversions", "cell_macs", "digital_macs"):
        assert found["all"][name] == found["whole"][name]
