"""The contract of layer adapters: on ideal tiles a layer of each kind is the digital one; it trains and comes back."""

import copy
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import nn
from transformers.models.falcon.modeling_falcon import FalconLinear
from transformers.models.gpt_oss.modeling_gpt_oss import GptOssConfig, GptOssExperts
from transformers.models.llama4.configuration_llama4 import Llama4TextConfig
from transformers.models.llama4.modeling_llama4 import Llama4Router, Llama4TextExperts
from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralExperts
from transformers.pytorch_utils import Conv1D

from crossbar import (
    AnalogLinear,
    Converter,
    Hardware,
    InputError,
    Ledger,
    Tile,
    age,
    analog_layers,
    bypassed,
    clip_weights,
    convert,
    learn_ranges,
    load_state,
    program,
    register_adapter,
    reset_reads,
    restore,
    save_state,
)
from crossbar.adapters import (
    Convolution,
    OwnForward,
    Part,
    Shaped,
    adapter_of,
    digital_parts,
    digital_products,
    find_adapter,
    is_convertible,
    registry,
)
from crossbar.adapters.linear import Linear
from crossbar.adapters.own_forward import Experts
from tests.crossbar.conftest import QUIET, inputs, inputs64

CHIP = Hardware(tile=Tile(4, 3), adc=Converter(full_scale=4.0))
HIDDEN, EXPERTS = 10, 3


class Scaled(nn.Linear):
    """A class made from nn.Linear."""

    def __init__(self, *size, scale=2.0, **options):
        super().__init__(*size, **options)
        self.scale = scale


class Doubled(nn.Linear):
    """A class made from nn.Linear that computes something else."""

    def forward(self, x):
        return 2 * super().forward(x)


class Pair(nn.Module):
    """A user's layer: the products of two matrices with its inputs, multiplied by each other."""

    def __init__(self, dtype):
        super().__init__()
        self.first = nn.Parameter(torch.empty(7, 10, dtype=dtype))
        self.second = nn.Parameter(torch.empty(10, 7, dtype=dtype))
        self.shift = nn.Parameter(torch.empty(7, dtype=dtype))

    def forward(self, x):
        return (x @ self.first.t() + self.shift) * (x @ self.second)


class PairAdapter:
    """A user's adapter."""

    name = "a Pair"

    def matches(self, module):
        return isinstance(module, Pair)

    def parts(self, module):
        return {"first": Part(module.first, module.shift), "second": Part(module.second.t())}

    def compute(self, module, products, x):
        return products["first"](x) * products["second"](x)


def mixtral(dtype):
    config = MixtralConfig(hidden_size=HIDDEN, intermediate_size=4, num_local_experts=EXPERTS)
    config._experts_implementation = "batched_mm"  # whatever transformers chooses in digital
    return MixtralExperts(config).to(dtype)


def gpt_oss(dtype):
    config = GptOssConfig(hidden_size=HIDDEN, intermediate_size=4, num_local_experts=EXPERTS)
    config._experts_implementation = "eager"
    return GptOssExperts(config).to(dtype)


def llama4(dtype):
    config = Llama4TextConfig(hidden_size=HIDDEN, intermediate_size=4, num_local_experts=EXPERTS)
    return Llama4TextExperts(config).to(dtype)


def routed(layer, x):
    """Two experts a token; the last one, and the token before it, are left out."""
    tokens = len(x)
    index = torch.stack([torch.zeros(tokens, dtype=torch.long), torch.ones(tokens, dtype=torch.long)], 1)
    weights = torch.linspace(0.2, 0.8, 2 * tokens, dtype=x.dtype).view(tokens, 2)
    return layer(x, index, weights)


def attended(layer, x):
    return layer(x, x, x, need_weights=False)[0]


class Kind(NamedTuple):
    """How to make a layer, how to call it with inputs of these shapes, and the sizes [O, I] of its matrices."""

    make: Callable
    shapes: tuple[tuple[int, ...], ...]
    matrices: dict[str, tuple[int, int]]
    call: Callable = lambda layer, x: layer(x)
    single: bool = False  # the layer itself becomes an AnalogLinear


ROWS = {"shapes": ((10,), (5, 10), (2, 3, 10), (2, 0, 10)), "matrices": {"weight": (7, 10)}, "single": True}
RECURRENT = {f"weight_{kind}_l0": (9, size) for kind, size in (("ih", 10), ("hh", 3))}
KINDS = {
    "linear": Kind(lambda dtype: nn.Linear(10, 7, dtype=dtype), **ROWS),
    "linear without bias": Kind(lambda dtype: nn.Linear(10, 7, bias=False, dtype=dtype), **ROWS),
    "class made from it": Kind(lambda dtype: Scaled(10, 7, dtype=dtype), **ROWS),
    "falcon's": Kind(lambda dtype: FalconLinear(10, 7, dtype=dtype), **ROWS),
    "conv1d of transformers": Kind(lambda dtype: Conv1D(7, 10).to(dtype), **ROWS),
    "user's": Kind(Pair, ((5, 10), (2, 3, 10)), {"first": (7, 10), "second": (7, 10)}),
    "own forward": Kind(lambda dtype: Doubled(10, 7, dtype=dtype), ((5, 10), (2, 3, 10)), {"weight": (7, 10)}),
    "convolution": Kind(
        lambda dtype: nn.Conv2d(2, 7, 3, padding=1, stride=2, dtype=dtype),
        ((2, 2, 5, 4), (2, 5, 4), (0, 2, 5, 4)),
        {"weight": (7, 18)},
    ),
    "convolution of many channels": Kind(
        lambda dtype: nn.Conv2d(16, 3, (2, 1), padding=1, dilation=2, dtype=dtype),
        ((2, 16, 3, 4),),
        {"weight": (3, 32)},
    ),
    "convolution of groups": Kind(
        lambda dtype: nn.Conv1d(4, 6, 3, groups=2, bias=False, dtype=dtype), ((2, 4, 6),), {"weight": (6, 12)}
    ),
    "attention": Kind(
        lambda dtype: nn.MultiheadAttention(10, 2, batch_first=True, dtype=dtype),
        ((2, 3, 10), (4, 10)),
        dict.fromkeys(("query", "key", "value", "out"), (10, 10)),
        attended,
    ),
    "lstm": Kind(
        lambda dtype: nn.LSTM(10, 3, dtype=dtype),
        ((4, 2, 10), (4, 10)),
        {f"weight_{kind}_l0": (12, size) for kind, size in (("ih", 10), ("hh", 3))},
        lambda layer, x: layer(x)[0],
    ),
    "gru": Kind(lambda dtype: nn.GRU(10, 3, dtype=dtype), ((4, 2, 10),), RECURRENT, lambda layer, x: layer(x)[0]),
    "experts": Kind(
        mixtral,
        ((5, 10),),
        {f"gate_up_proj_{e}": (8, 10) for e in range(EXPERTS)} | {f"down_proj_{e}": (10, 4) for e in range(EXPERTS)},
        routed,
    ),
    "experts with bias": Kind(
        gpt_oss,
        ((5, 10),),
        {f"gate_up_proj_{e}": (8, 10) for e in range(EXPERTS)} | {f"down_proj_{e}": (10, 4) for e in range(EXPERTS)},
        routed,
    ),
    "experts, all driven": Kind(
        llama4,
        ((6, 10),),
        {f"gate_up_proj_{e}": (8, 10) for e in range(EXPERTS)} | {f"down_proj_{e}": (10, 4) for e in range(EXPERTS)},
    ),
}


@pytest.fixture(autouse=True)
def own_kinds(registries):
    register_adapter(PairAdapter())
    register_adapter(OwnForward(Doubled))


@pytest.fixture(params=KINDS.values(), ids=KINDS)
def kind(request):
    return request.param


class Model(nn.Module):
    def __init__(self, layer, call):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, x)


def model_of(kind, dtype=torch.float64):
    """A model of one layer, drawn anew in the same way each time."""
    layer, generator = kind.make(dtype=dtype), torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in layer.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return Model(layer, kind.call)


def analog_of(kind, hardware, dtype=torch.float64):
    model = model_of(kind, dtype)
    convert(model, hardware)
    return model


def paths(kind):
    return ["layer"] if kind.single else [f"layer.tiles.{name}" for name in kind.matrices]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_on_ideal_tiles_it_is_the_digital_layer(kind, dtype):
    digital, analog = model_of(kind, dtype), model_of(kind, dtype)
    report = convert(analog, QUIET)
    sizes = [(r.out_features, r.in_features) for r in report.analog]
    assert [r.name for r in report.analog] == paths(kind) == list(analog_layers(analog))
    assert sizes == [*kind.matrices.values()]
    assert {r.kind for r in report.analog} == {type(digital.layer).__name__}
    assert report.parameters == sum(p.numel() for p in digital.parameters())
    for shape in kind.shapes:
        x = inputs(*shape, dtype=dtype)
        found, expected = analog(x), digital(x)
        assert found.dtype == dtype
        assert found.shape == expected.shape
        # a few tens of products and their sums, mapping and unmapping, of terms up to 30
        torch.testing.assert_close(found, expected, rtol=0, atol=3000 * torch.finfo(dtype).eps)


def test_in_digital_its_adapter_computes_its_forward(kind):
    model = model_of(kind)
    layer = model.layer
    adapter, products = adapter_of(layer), digital_products(digital_parts(layer))

    def computed(*inputs, **options):
        return adapter.compute(layer, products, *inputs, **options)

    for shape in kind.shapes:
        x = inputs64(*shape)
        torch.testing.assert_close(kind.call(computed, x), model(x), rtol=0, atol=1e-12)


def test_outputs_are_in_the_dtype_of_a_model_that_was_cast(kind):
    analog = analog_of(kind, QUIET, torch.float32).to(torch.bfloat16)
    x = inputs(*kind.shapes[0]).to(torch.bfloat16)
    assert analog(x).dtype == torch.bfloat16
    assert {layer.scales.dtype for layer in analog_layers(analog).values()} == {torch.float32}


def test_shapes_are_those_that_forward_gives(kind):
    model, seen = model_of(kind), []
    adapter = adapter_of(model.layer)
    if not isinstance(adapter, Shaped):
        return

    def look(module, args, options, outputs):
        seen.append((adapter.shapes(module, *args, **options), outputs))

    model.layer.register_forward_hook(look, with_kwargs=True)
    for shape in kind.shapes:
        model(inputs64(*shape))
    assert [shapes for shapes, _ in seen] == [shapes_of(outputs) for _, outputs in seen]


def shapes_of(outputs):
    if isinstance(outputs, tuple):
        return tuple(map(shapes_of, outputs))
    return None if outputs is None else [*outputs.shape]


X = torch.zeros(3, 4, 10)
CONV = torch.zeros(2, 4, 9, 8)
LAYERS = {
    "same padding": (lambda: nn.Conv2d(4, 6, (3, 2), padding="same", dilation=2), (CONV,)),
    "reflected": (lambda: nn.Conv2d(4, 6, 3, padding=(2, 1), stride=(1, 3), padding_mode="reflect"), (CONV,)),
    "three dimensions": (lambda: nn.Conv3d(2, 3, (1, 2, 3)), (torch.zeros(1, 2, 3, 4, 5),)),
    "attention weights": (lambda: nn.MultiheadAttention(10, 2), (X, X[:2], X[:2])),
    "weights of heads": (
        lambda: nn.MultiheadAttention(10, 2, batch_first=True, add_bias_kv=True, add_zero_attn=True),
        (X, X[:, :2], X[:, :2], None, True, None, False),
    ),
    "weights of a sequence": (lambda: nn.MultiheadAttention(10, 2, add_zero_attn=True), (X[0], X[1], X[1])),
}


@pytest.mark.parametrize(("make", "given"), LAYERS.values(), ids=LAYERS)
def test_shapes_with_options_are_those_that_forward_gives(make, given):
    layer = make()
    assert adapter_of(layer).shapes(layer, *given) == shapes_of(layer(*given))


def test_graphs_break_at_what_has_no_shapes():
    attention = nn.MultiheadAttention(10, 2, dropout=0.5)
    assert adapter_of(attention).shapes(attention, X, X, X) is None
    assert adapter_of(attention).shapes(attention.eval(), X, X, X)[0] == [3, 4, 10]
    assert Experts().shapes(nn.Module(), X, [1, 2]) is None


def test_gradients_reach_the_digital_parameters_in_training(kind):
    digital, analog = model_of(kind), analog_of(kind, QUIET)
    analog.train()
    found = []
    for model in (digital, analog):
        x = inputs64(*kind.shapes[0]).requires_grad_()
        y = model(x)
        y.backward(inputs64(*y.shape, seed=2))
        layer = model.layer if model is digital else model.layer.digital
        found.append([x.grad, *(parameter.grad for parameter in layer.parameters())])
    for one, other in zip(*found, strict=True):
        assert one.abs().max() > 0
        torch.testing.assert_close(other, one, rtol=0, atol=1e-11)


def test_a_step_of_training_moves_the_cells(kind):
    analog = analog_of(kind, CHIP, torch.float32)
    x = inputs(*kind.shapes[0])
    assert {name for name, _ in analog.named_parameters()} == {
        f"layer.digital.{name}" for name, _ in model_of(kind).layer.named_parameters()
    }
    layer = next(iter(analog_layers(analog).values()))
    before = layer.target_weight().clone()
    targets = layer.cells.targets()
    analog.train()
    analog(x).square().sum().backward()
    with torch.no_grad():
        for parameter in analog.parameters():
            parameter -= 0.1 * parameter.grad / parameter.grad.abs().max()
    analog.eval()
    assert (layer.target_weight() - before).abs().max() > 1e-3
    assert not torch.equal(layer.cells.targets(), targets)
    torch.testing.assert_close(layer.effective_weight(), layer.target_weight(), rtol=1e-5, atol=1e-5)


def test_restore_gives_the_very_modules_back(kind):
    model = model_of(kind)
    layer, x = model.layer, inputs64(*kind.shapes[0])
    expected, weights = model(x), copy.deepcopy(layer.state_dict())
    convert(model, CHIP)
    assert model.layer is not layer
    program(model, 1)
    model(x)
    restore(model)
    assert model.layer is layer
    assert torch.equal(model(x), expected)
    assert all(torch.equal(weights[name], value) for name, value in layer.state_dict().items())


def test_weights_are_views_of_parameters_and_take_what_is_written(kind):
    layer = model_of(kind).layer
    own = {id(parameter) for parameter in layer.parameters()}
    assert is_convertible(layer)
    assert {name: part.shape for name, part in digital_parts(layer).items()} == kind.matrices
    for name, part in digital_parts(layer).items():
        assert part.weight.requires_grad
        assert id(part.root) in own
        assert part.bias is None or id(part.bias if part.bias._base is None else part.bias._base) in own
        written = torch.where(part.matrix == 0, 0.0, inputs64(*part.shape, seed=5))
        part.write(written)
        assert torch.equal(digital_parts(layer)[name].matrix, written)


def test_clipping_reaches_the_digital_weights(kind):
    analog = analog_of(kind, CHIP)
    before = {name: layer.source.part().weight.detach().clone() for name, layer in analog_layers(analog).items()}
    clip_weights(analog, 1.0)
    for name, layer in analog_layers(analog).items():
        bound = float(before[name].square().mean().sqrt())
        found = layer.source.part().weight.detach()
        torch.testing.assert_close(found, before[name].clamp(-bound, bound), rtol=1e-6, atol=1e-6)
        assert float(found.abs().max()) < float(before[name].abs().max())


def test_a_chip_is_the_same_after_reload(kind, tmp_path):
    first, second = (analog_of(kind, CHIP, torch.float32) for _ in range(2))
    x = inputs(*kind.shapes[0])
    program(first, 5)
    age(first, "1h")
    assert not torch.equal(first(x), second(x))
    save_state(first, tmp_path / "chip.safetensors")
    load_state(second, tmp_path / "chip.safetensors")
    for model in (first, second):
        reset_reads(model)
    assert torch.equal(first(x), second(x))
    assert {(layer.seed, layer.seconds) for layer in analog_layers(second).values()} == {(5, 3600.0)}


def test_copies_and_state_dicts_are_those_of_the_digital_layer(kind):
    analog = analog_of(kind, CHIP, torch.float32)
    program(analog, 5)
    assert set(analog.state_dict()) == {f"layer.digital.{name}" for name in model_of(kind).layer.state_dict()}
    other, x = copy.deepcopy(analog), inputs(*kind.shapes[0])
    assert torch.equal(other(x), analog(x))
    with torch.no_grad():
        for parameter in other.parameters():
            parameter.zero_()
    program(other, 5)
    program(analog, 5)
    assert all(layer.cells.matrix().abs().max() > 0 for layer in analog_layers(analog).values())
    assert all(layer.cells.matrix().abs().max() == 0 for layer in analog_layers(other).values())


def test_what_a_read_costs_is_counted_by_vectors(kind):
    """Against the vectors that reach each product in digital."""
    analog, digital, x = analog_of(kind, CHIP, torch.float32), model_of(kind, torch.float32), inputs(*kind.shapes[0])
    layer, vectors = digital.layer, dict.fromkeys(kind.matrices, 0)
    adapter, products = adapter_of(layer), digital_products(digital_parts(layer))

    def seen(name):
        def product(x):
            vectors[name] += x[..., 0].numel()
            return products[name](x)

        return product

    kind.call(lambda *x, **o: adapter.compute(layer, {n: seen(n) for n in products}, *x, **o), x)
    with Ledger() as ledger:
        analog(x)
    assert any(vectors.values())
    for path, (name, (outputs, lines)) in zip(paths(kind), kind.matrices.items(), strict=True):
        counts = {counter.name: n for counter, n in ledger.by_layer.get(path, {}).items()}
        assert counts.get("dac_conversions", 0) == vectors[name] * lines * -(-outputs // 3)
        assert counts.get("adc_conversions", 0) == vectors[name] * outputs * -(-lines // 4)
        assert counts.get("cell_macs", 0) == vectors[name] * outputs * lines


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
    assert len(ranges) == 2 * len(kind.matrices)
    driven = [parameter.grad for parameter in ranges if parameter.grad is not None]  # not those of unrouted experts
    assert driven
    assert all(grad.abs() > 0 for grad in driven)


def test_inputs_that_do_not_fit_are_refused_with_what_fits():
    analog = analog_of(KINDS["linear"], QUIET, torch.float32)
    for shape in ((), (5, 9), (10, 5)):
        with pytest.raises(InputError) as caught:
            analog(torch.zeros(shape))
        assert str(caught.value) == f"layer got torch.float32 inputs {list(shape)}: give floating point [..., 10]"
    with pytest.raises(InputError) as caught:
        analog(torch.zeros(3, 10, dtype=torch.int64))
    assert str(caught.value) == "layer got torch.int64 inputs [3, 10]: give floating point [..., 10]"


# Which adapter


def test_other_kinds_stay_digital_with_a_reason():
    model = nn.Sequential(
        nn.ConvTranspose2d(3, 3, 2), nn.Embedding(2, 2), nn.BatchNorm1d(2), Doubled(2, 2), nn.Linear(2, 2)
    )
    registry._adapters.pop("a Doubled")
    report = convert(model, QUIET)
    assert [layer.name for layer in report.analog] == ["4"]
    assert {layer.name: layer.reason for layer in report.digital} == {
        "0": "it has a matrix and no adapter takes it: register one if inputs are multiplied with it",
        "1": "a look-up, no matrix product",
        "2": "no matrix product",
        "3": "its class computes otherwise than nn.Linear: register an adapter",
    }
    with pytest.raises(
        InputError, match=r"^a Embedding cannot become analog: give an nn.Linear or a transformers Conv1D or "
    ):
        AnalogLinear.from_digital(nn.Embedding(3, 4), QUIET)
    with pytest.raises(InputError, match=r"^a convolution is no linear layer: put it into a model"):
        AnalogLinear.from_digital(nn.Conv1d(3, 4, 1), QUIET)


def test_a_layer_that_has_a_forward_of_its_own_stays_digital():
    """As tools leave it that wrap single layers."""
    model = nn.Sequential(
        nn.Linear(2, 2), nn.Conv1d(2, 2, 1), nn.LSTM(2, 2), nn.MultiheadAttention(2, 1), nn.Linear(2, 2)
    )
    for layer in model[:4]:
        layer.forward = layer.forward
    assert [layer.name for layer in convert(model, QUIET).analog] == ["4"]


def test_hooks_of_a_layer_go_along(kind):
    """They see what the analog layer gets and gives, and their handles take them away from both."""
    digital, analog = model_of(kind), model_of(kind)
    seen = []
    handle = analog.layer.register_forward_hook(lambda *call: seen.append(call))
    before = analog.layer.register_forward_pre_hook(lambda module, inputs: (3.0 * inputs[0], *inputs[1:]))
    layer, x = analog.layer, inputs64(*kind.shapes[0])

    def tripled(*inputs, **options):
        return digital.layer(3.0 * inputs[0], *inputs[1:], **options)

    convert(analog, QUIET)
    expected = kind.call(tripled, x)
    torch.testing.assert_close(analog(x), expected, rtol=0, atol=1e-11)
    assert len(seen) == 1
    assert torch.equal(seen[0][1][0], 3.0 * x if seen[0][1][0].shape == x.shape else seen[0][1][0])
    with bypassed(analog):
        assert torch.equal(analog(x), expected)
    handle.remove()
    before.remove()
    analog(x)
    assert len(seen) == 2
    restore(analog)
    assert torch.equal(analog(x), digital(x))
    assert not layer._forward_hooks


def test_patterns_of_names_mean_layers_or_their_matrices():
    def model():
        return nn.Sequential(nn.Conv1d(2, 3, 2), nn.LSTM(3, 2), nn.LazyConv1d(2, 2), nn.Linear(2, 2))

    lstm = ["1.tiles.weight_ih_l0", "1.tiles.weight_hh_l0"]
    for include, expected in (
        ("1", lstm),
        ("*.weight_hh_l0", lstm),
        (["0.tiles.weight", "3"], ["0.tiles.weight", "3"]),
    ):
        assert [layer.name for layer in convert(model(), QUIET, include=include).analog] == expected
    assert [layer.name for layer in convert(model(), QUIET, exclude=["*.weight", "1"]).analog] == ["3"]
    other = Hardware(tile=Tile(2, 2))
    one = model()
    convert(one, QUIET, per_layer={"1.tiles.weight_hh_l0": other, "0": other})
    assert [name for name, layer in analog_layers(one).items() if layer.hardware == other] == [
        "0.tiles.weight",
        lstm[1],
    ]


def test_depthwise_convolutions_are_taken_on_request():
    model = nn.Sequential(nn.Conv2d(8, 16, 3, groups=8), nn.Conv2d(16, 4, 1)).double()
    digital, x = copy.deepcopy(model), inputs64(2, 8, 5, 5)
    report = convert(model, QUIET)
    assert report.digital[0].reason == (
        "a depthwise convolution of 9 taps would use 12.5% of the cells between its word lines and bit lines: register "
        "crossbar.adapters.Convolution(depthwise=True) to take it"
    )
    restore(model)
    register_adapter(Convolution(depthwise=True))
    (first, _) = convert(model, QUIET).analog
    assert (first.name, first.in_features, first.out_features, first.blocks) == ("0.tiles.weight", 72, 16, 8)
    assert first.utilisation == 16 * 9 / (first.tiles * 12)
    torch.testing.assert_close(model(x), digital(x), rtol=0, atol=1e-12)


def test_the_adapter_that_was_registered_last_is_asked_first():
    class Own(Linear):
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


@pytest.mark.parametrize("given", [PairAdapter, nn.Conv2d(1, 1, 1), None], ids=["class", "layer", "None"])
def test_what_is_no_adapter_is_refused(given):
    with pytest.raises(InputError, match=r" is not an adapter: give an object with name, matches, parts and compute$"):
        register_adapter(given)
    assert find_adapter(Pair(torch.float32)).name == PairAdapter.name


def test_what_computes_otherwise_stays_digital_until_it_has_an_adapter():
    class Twice(Conv1D):
        def forward(self, x):
            return super().forward(super().forward(x))

    registry._adapters.pop("a Doubled")
    model = nn.Sequential(Doubled(4, 4), Twice(4, 4), nn.Linear(4, 4)).double()
    digital, x = copy.deepcopy(model), inputs64(3, 4)
    report = convert(model, QUIET)
    assert {layer.name: layer.reason for layer in report.digital} == {
        "0": "its class computes otherwise than nn.Linear: register an adapter",
        "1": "it has a matrix and no adapter takes it: register one if inputs are multiplied with it",
    }
    torch.testing.assert_close(model(x), digital(x), rtol=0, atol=1e-12)

    class Adapter(Linear):
        name = "a Doubled"

        def matches(self, module):
            return isinstance(module, Doubled)

        def compute(self, module, products, x):
            return 2 * super().compute(module, products, x)

    register_adapter(Adapter())
    assert [layer.name for layer in convert(model, QUIET).analog] == ["0.tiles.weight"]
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
    assert [layer.name for layer in report.analog] == ["0.tiles.weight", "2"]
    torch.testing.assert_close(model(x), digital(x), rtol=0, atol=1e-12)
    first, last = analog_layers(model).values()
    assert not torch.equal(first.cells.targets()[0, :2, :2], last.cells.targets()[0, :2, :2])


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
