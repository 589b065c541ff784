"""A training step as torch's own tools run it: half precision, autocast, compilation, checkpointing, an optimizer."""

import copy
import shutil
import warnings

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from crossbar import (
    Hardware,
    InputError,
    Ledger,
    Tile,
    age,
    analog_layers,
    bypassed,
    convert,
    presets,
    program,
    replayed_reads,
    reset_reads,
)
from tests.crossbar.conftest import inputs

NOISY = Hardware(tile=Tile(8, 8))
DAY = 86400.0


class Block(nn.Module):
    """Two layers with a residual, so that an input is used twice."""

    def __init__(self, size=20):
        super().__init__()
        self.up, self.down = nn.Linear(size, 2 * size), nn.Linear(2 * size, size)

    def forward(self, x):
        return x + self.down(self.up(x).relu())


def model_of(hardware=NOISY, dtype=torch.float32, seed=0, size=20):
    model = nn.Sequential(Block(size), Block(size), nn.Linear(size, 5))
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter.shape[-1] ** 0.5)
    convert(model.to(dtype), hardware)
    program(model, 1)
    age(model, "1d")
    return model


def step(model, x, run=None, autocast=False):
    """Output and gradients of a training step: of the inputs first, then of the parameters."""
    x = x.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16, enabled=autocast):  # for the forward pass only, as torch advises
        y = (model if run is None else run)(x)
    grads = torch.autograd.grad(y.float().square().sum(), [x, *model.parameters()], materialize_grads=True)
    return [y.detach(), *grads]


def same(found, expected):
    return all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


# Precision


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_a_half_precision_step_is_the_full_one_rounded(dtype):
    layer = nn.Sequential(nn.Linear(20, 7))
    convert(layer, NOISY)
    layer.train().to(dtype)
    full = copy.deepcopy(layer).float()
    x, upstream = inputs(6, 20, dtype=dtype), inputs(6, 7, seed=2, dtype=dtype)
    found, expected = ([], [])
    for model, data, results in ((layer, x, found), (full, x.float(), expected)):
        data = data.clone().requires_grad_()
        y = model(data)
        assert y.dtype == data.dtype
        results += [y.detach(), *torch.autograd.grad(y, [data, *model.parameters()], upstream.to(y.dtype))]
    assert {tensor.dtype for tensor in found} == {dtype}
    assert same(found, [tensor.to(dtype) for tensor in expected])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("train", [False, True])
def test_half_precision_models_run_and_learn(dtype, train):
    model = model_of().to(dtype).train(train)
    found = step(model, inputs(6, 20, dtype=dtype)) if train else [model(inputs(6, 20, dtype=dtype))]
    assert all(tensor.dtype == dtype and tensor.isfinite().all() for tensor in found)
    if train:
        weights = {id(layer.digital.weight) for layer in analog_layers(model).values()}
        grads = dict(zip(map(id, model.parameters()), found[2:], strict=True))
        assert all((grads[weight] != 0).any() for weight in weights)


@pytest.mark.parametrize("train", [False, True])
def test_autocast_leaves_the_tiles_alone(train):
    model = nn.Sequential(nn.Linear(20, 7))
    convert(model, NOISY)
    model.train(train)
    x = inputs(6, 20)
    expected = step(model, x)
    reset_reads(model)
    assert same(step(model, x, autocast=True), expected)


# Compilation


compilers = [
    "aot_eager",
    pytest.param(  # takes a minute where torch's headers have to be compiled first
        "inductor",
        marks=[pytest.mark.slow, pytest.mark.skipif(not shutil.which("g++"), reason="inductor needs a C++ compiler")],
    ),
]


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("backend", compilers)
def test_compiled_models_compute_the_same(backend, train):
    model, x = model_of().train(train), inputs(6, 20)
    twin = copy.deepcopy(model)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="The .grad attribute")  # torch looking at its own tensors
        warnings.simplefilter("ignore", DeprecationWarning)  # of torch within torch
        compiled = torch.compile(twin, backend=backend)
        for turn in range(4):
            if turn % 2:
                with Ledger() as ledger:
                    found = step(twin, x, compiled)
                assert ledger.totals()["cell_macs"] == 6 * (2 * 2 * 20 * 40 + 20 * 5)
            else:
                found = step(twin, x, compiled)
            expected = step(model, x)
            # around the tiles there are sums, products and maxima, which have one result
            assert same(found, expected)
        with torch.no_grad():
            assert torch.equal(compiled(x), model(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 8  # not one for each read


# Checkpointing


def checkpointed(model, **options):
    def run(x):
        for block in model[:2]:
            x = checkpoint(block, x, use_reentrant=False, **options)
        return model[2](x)

    return run


@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_checkpointing_replays_the_noise(train):
    model, x = model_of().train(train), inputs(6, 20)
    plain = [step(model, x) for _ in range(3)]
    reset_reads(model)
    run = checkpointed(model, context_fn=replayed_reads(model))
    assert all(same(step(model, x, run), expected) for expected in plain)


def test_a_block_that_is_used_twice_replays_each_use():
    model, x = model_of().train(), inputs(6, 20)

    def once(data, **options):
        for _ in range(2):
            data = checkpoint(model[0], data, use_reentrant=False, **options) if options else model[0](data)
        return model[2](model[1](data))

    expected = step(model, x, once)
    reset_reads(model)
    replay = replayed_reads(model[0])
    assert same(step(model, x, lambda data: once(data, context_fn=replay)), expected)


def test_checkpoints_within_checkpoints_replay():
    model, x = model_of().train(), inputs(6, 20)
    expected = step(model, x)
    reset_reads(model)
    options = {"use_reentrant": False, "context_fn": replayed_reads(model)}

    def inner(data):
        return checkpoint(model[1], checkpoint(model[0], data, **options), **options)

    assert same(step(model, x, lambda data: model[2](checkpoint(inner, data, **options))), expected)
    reset_reads(model)
    assert same(step(model, x), expected)


def test_several_forward_passes_before_the_backward_pass_replay():
    model, batches = model_of().train(), [inputs(6, 20, seed=seed) for seed in range(3)]

    def losses(run):
        return sum(run(batch).square().sum() for batch in batches)

    expected = torch.autograd.grad(losses(model), list(model.parameters()))
    reset_reads(model)
    run = checkpointed(model, context_fn=replayed_reads(model))
    assert same(torch.autograd.grad(losses(run), list(model.parameters())), expected)


@pytest.mark.parametrize("reentrant", [False, True])
@pytest.mark.parametrize("train", [False, True], ids=["eval", "train"])
def test_checkpointing_with_other_noise_is_refused(train, reentrant):
    model = model_of().train(train)
    x = inputs(6, 20).requires_grad_()
    y = model[2](checkpoint(model[0], x, use_reentrant=reentrant))
    with pytest.raises(InputError, match=r"0\.up is read again in the backward pass .*=crossbar\.replayed_reads"):
        y.sum().backward()


def test_quiet_and_bypassed_layers_need_no_replay():
    x = inputs(6, 20).requires_grad_()
    quiet = model_of(presets.ideal())
    checkpointed(quiet)(x).sum().backward()
    model = model_of().train()
    with bypassed(model):
        checkpointed(model)(x).sum().backward()


# Copies and an optimizer


def test_a_step_leaves_the_state_dict_and_copies():
    model = model_of().train()
    before, twin = set(model.state_dict()), copy.deepcopy(model)
    assert all(".digital." in name for name in before)
    x = inputs(6, 20)
    first = step(model, x)
    assert set(model.state_dict()) == before
    assert same(step(twin, x), first)
    other = model_of(seed=5).train()
    other.load_state_dict(model.state_dict())
    assert same(step(other, x), first)


def test_training_through_the_tiles_lowers_the_loss_of_fresh_chips():
    # The sign of a product of two inputs, which a digital network learns to a loss of 0.001.
    x = inputs(600, 2, seed=3)
    label = (x[:, 0] * x[:, 1] > 0).long()

    def network():
        model = nn.Sequential(nn.Linear(2, 16), nn.Tanh(), nn.Linear(16, 16), nn.Tanh(), nn.Linear(16, 2))
        with torch.no_grad():
            for seed, parameter in enumerate(model.parameters()):
                parameter.copy_(inputs(*parameter.shape, seed=10 + seed) / parameter.shape[-1] ** 0.5)
        return model

    def learn(model, steps, rate):
        optimizer = torch.optim.Adam(model.parameters(), lr=rate)
        for _ in range(steps):
            optimizer.zero_grad()
            nn.functional.cross_entropy(model(x), label).backward()
            optimizer.step()
        return model

    def analog_loss(model):
        losses = []
        model.eval()
        for seed in range(100, 110):  # chips that training has not seen
            program(model, seed)
            age(model, DAY)
            with torch.no_grad():
                losses.append(float(nn.functional.cross_entropy(model(x), label)))
        return sum(losses) / len(losses)

    start = learn(network(), 300, 0.03)
    digital = learn(copy.deepcopy(start), 100, 0.01)
    convert(digital, presets.pcm())
    trained = copy.deepcopy(start)
    convert(trained, presets.pcm())
    program(trained, 0)
    age(trained, DAY)
    learn(trained.train(), 100, 0.01)
    assert analog_loss(trained) < 0.8 * analog_loss(digital)
