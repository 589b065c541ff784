"""Analog layers in graphs of torch's compiler: one operation each, with the reads and gradients of the layer."""

import copy
import gc
import warnings

import pytest
import torch
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.mixtral.modeling_mixtral import MixtralConfig, MixtralExperts

from crossbar import Hardware, InputError, Ledger, Tile, analog_layers, convert, learn_ranges, presets, program
from tests.crossbar.conftest import inputs

NOISY = Hardware(tile=Tile(8, 8))


@pytest.fixture(autouse=True)
def fresh():
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch within torch
        warnings.filterwarnings("ignore", message="The .grad attribute")  # torch looking at its own tensors
        yield


def model_of(hardware=NOISY, bias=True):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 12, bias=bias), nn.ReLU(), nn.Linear(12, 5))
    convert(model, hardware)
    program(model, 1)
    return model


def compiled(model, backend):
    return torch.compile(model, backend=backend, fullgraph=True)


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
def test_a_graph_holds_layers_whole_and_reads_them_as_they_are(backend):
    model, twin, x = model_of(), model_of(), inputs(6, 20)
    run = compiled(model, backend)
    with torch.no_grad():
        for _ in range(3):  # each read has noise of its own
            assert torch.equal(run(x), twin(x))
        program(model, 2)
        program(twin, 2)
        with Ledger() as ledger:
            found = run(x)
        with Ledger() as expected:
            assert torch.equal(found, twin(x))
    assert ledger.totals() == expected.totals()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 1


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_gradients_of_a_graph_are_the_layers_own(train):
    found, x = [], inputs(6, 20)
    for backend in ("aot_eager", None):
        model = model_of(presets.pcm() if train else NOISY)
        for layer in analog_layers(model).values():
            layer.input_range = torch.tensor(2.0)
        ranges = learn_ranges(model)
        model.train(train)
        run = model if backend is None else compiled(model, backend)
        own = x.clone().requires_grad_()
        with Ledger() as ledger:
            y = run(own)
            (y.square().sum() + run(own).sum()).backward()  # another read, of the same inputs
        learned = [*model.parameters()] if train else ranges
        gradients = [own.grad, *(p.grad for p in learned)]
        reads = [layer.reads for layer in analog_layers(model).values()]
        found.append((y, gradients, ledger.totals(), reads))
    assert torch.equal(found[0][0], found[1][0])
    for one, other in zip(found[0][1], found[1][1], strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-6, atol=1e-7)
    assert found[0][2:] == found[1][2:]
    assert found[0][3] == [2, 2]


class Around(nn.Module):
    """A layer of any kind between digital operations."""

    def __init__(self, layer, call=lambda layer, x: layer(x)):
        super().__init__()
        self.layer, self.call = layer, call

    def forward(self, x):
        return self.call(self.layer, 2 * x).relu()


def routed(layer, x):
    index = torch.tensor([[0, 1], [2, 0], [1, 0], [2, 1], [0, 2]])
    return layer(x, index, x[:, :2].softmax(1))


def experts():
    config = MixtralConfig(hidden_size=20, intermediate_size=6, num_local_experts=3)
    config._experts_implementation = "eager"
    return MixtralExperts(config)


def attended(layer, x):
    y, weights = layer(x, x[:, :3], value=x[:, :3], key_padding_mask=x[:, :3, 0] > 9)
    return y + weights.sum()


LAYERS = {
    "convolution": (lambda: Around(nn.Conv1d(4, 6, 3, padding=1)), (2, 4, 9)),
    "attention": (lambda: Around(nn.MultiheadAttention(8, 2, batch_first=True), attended), (2, 5, 8)),
    "experts": (lambda: Around(experts(), routed), (5, 20)),
}


@pytest.mark.parametrize(("make", "shape"), LAYERS.values(), ids=LAYERS)
def test_layers_of_several_products_are_one_operation(make, shape):
    def of_chip():
        torch.manual_seed(0)
        model = make().eval()
        for parameter in model.parameters():
            nn.init.normal_(parameter)
        convert(model, NOISY)
        program(model, 1)
        return model

    found, x = [], inputs(*shape)
    for backend in ("aot_eager", None):
        model = of_chip()
        run = model if backend is None else compiled(model, backend)
        outputs = []
        with Ledger() as ledger, torch.no_grad():
            outputs += [run(x), run(x)]
        model.train()
        own = x.clone().requires_grad_()
        first = run(own)
        y = first.square().sum() + run(own).sum()  # another read, of the same inputs
        y.backward()
        gradients = [own.grad, *(p.grad for p in model.parameters())]
        reads = [layer.reads for layer in analog_layers(model).values()]
        found.append(([*outputs, first, y, *gradients], ledger.totals(), reads))
    assert not torch.equal(*found[0][0][:2])
    for one, other in zip(found[0][0], found[1][0], strict=True):
        assert other.abs().max() > 0
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)
    assert found[0][1:] == found[1][1:]
    assert torch._dynamo.utils.counters["graph_break"] == {}


def test_gradients_have_the_strides_that_graphs_are_promised():
    model = model_of().train()
    layer, x = model[0], inputs(20, 6).t()
    given = [x], [*layer.trained()], layer.number
    call = torch.ops.ohmformer.analog_layer(*given, layer.calls, "(({0}, ), {})", 1, [6, 12], [2], [True])
    found = torch.ops.ohmformer.analog_layer_backward([call[0]], *given, call[1], "(({0}, ), {})", [True])
    assert [grad.stride() for grad in found] == [each.stride() for each in (x, *layer.trained())]
    assert [x.stride(), layer.digital.weight.stride()] == [(1, 6), (20, 1)]
    assert all(grad.abs().max() > 0 for grad in found)


def test_a_graph_breaks_where_attention_weights_are_dropped_out():
    torch.manual_seed(0)
    model = Around(nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True), attended)
    convert(model, NOISY)
    model.train()
    assert torch.compile(model, backend="eager")(inputs(2, 5, 8)).shape == (2, 5, 8)
    assert torch._dynamo.utils.counters["graph_break"]


def test_a_llama_is_one_graph():
    config = LlamaConfig(
        vocab_size=60, hidden_size=32, intermediate_size=48, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, use_cache=False,
    )  # fmt: skip
    torch.manual_seed(0)
    model = LlamaForCausalLM(config).eval()
    convert(model, NOISY)
    twin = copy.deepcopy(model)
    tokens = torch.arange(14).view(2, 7)
    with torch.no_grad():
        found = torch.compile(model, backend="eager", fullgraph=True)(tokens).logits
        torch.testing.assert_close(found, twin(tokens).logits, rtol=0, atol=1e-6)


def test_an_exported_program_calls_the_model_that_it_was_made_of():
    model, twin, x = model_of(), model_of(), inputs(6, 20)
    with torch.no_grad():
        program_of = torch.export.export(model, (x,))
        assert torch.equal(program_of.module()(x), twin(x))
    targets = [str(node.target) for node in program_of.graph.nodes]
    assert targets.count("ohmformer.analog_layer.default") == 2


def test_copies_are_layers_of_their_own_and_a_graph_needs_its_layer():
    model = model_of()
    numbers = {int(layer.number) for own in (model, copy.deepcopy(model)) for layer in analog_layers(own).values()}
    assert len(numbers) == 4
    layer = copy.deepcopy(model)[0]
    given = [inputs(2, 20)], [], layer.number, layer.calls, "(({0}, ), {})", 1, [2, 12], [2], [False]
    call = torch.ops.ohmformer.analog_layer, given
    assert call[0](*call[1])[0].shape == (2, 12)
    del layer
    gc.collect()
    with pytest.raises(InputError, match="which is not in this process"):
        call[0](*call[1])
