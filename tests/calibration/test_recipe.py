"""What every calibration step promises, and recipes made of them."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from calibration import (
    AdcRanges,
    AffineCorrection,
    DigitalLines,
    DriftCompensation,
    InputRanges,
    Recipe,
    Rotation,
    Stage,
    WeightRanges,
    recipe,
)
from crossbar import InputError, Tile, age, analog_layers, convert, presets, program, reset_reads
from crossbar.tiles.tile_array import TileArray

STEPS = {
    "balanced": InputRanges(),
    "abs_max": InputRanges("abs_max"),
    "quantile": InputRanges("quantile", quantile=0.9),
    "column": DriftCompensation(),
    "tile": DriftCompensation(per="tile"),
    "programmed": DriftCompensation(reference="programmed"),
}
HARDWARE = replace(presets.pcm(), tile=Tile(16, 16))


class Sequence(nn.Sequential):
    """Layers one after another, called with keywords as transformers models are."""

    def forward(self, x, attention_mask=None):
        return super().forward(x)


@pytest.fixture
def model():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layers = nn.Linear(20, 36), nn.GELU(), nn.Dropout(0.5), nn.Linear(36, 5)
    model = Sequence(*layers).eval()
    convert(model, HARDWARE)
    program(model, seed=3)
    age(model, "1d")
    return model


@pytest.fixture
def batches():
    draw = torch.Generator().manual_seed(1)
    mask = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    return [{"x": torch.randn(2, 4, 20, generator=draw), "attention_mask": mask} for _ in range(3)]


@pytest.fixture(params=STEPS)
def step(request):
    return STEPS[request.param]


def everything(model):
    """All that a model holds and is: modules, hooks, plain attributes, parameters, buffers and their bits.

    The digits of the cells are read: whether they are held, or found from the others at the next read, is their affair.
    """
    digits = {f"{n}.digits": m.digits.clone() for n, m in model.named_modules() if isinstance(m, TileArray)}
    found = {}
    for name, module in model.named_modules():
        kinds = int | float | str | tuple | type(None)
        plain = {k: v for k, v in vars(module).items() if isinstance(v, kinds) and k not in ("_seen", "_asked")}
        found[name] = (type(module), len(module._forward_pre_hooks), len(module._forward_hooks), plain)
    tensors = dict(model.named_parameters()) | dict(model.named_buffers())
    kept = {name: tensor.clone() for name, tensor in tensors.items() if not name.endswith("._digits")}
    return found, kept | digits


def assert_unchanged(model, before):
    modules, tensors = everything(model)
    assert modules == before[0]
    assert tensors.keys() == before[1].keys()
    assert all(torch.equal(tensor, before[1][name]) for name, tensor in tensors.items())


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def output(model, batch):
    reset_reads(model)
    with torch.no_grad():
        return model(**batch)


def test_fit_leaves_the_model_as_it_was(step, model, batches):
    expected = output(model, batches[0])
    reset_reads(model)
    before = everything(model)
    step.fit(model, batches)
    reset_reads(model)
    assert_unchanged(model, before)
    assert torch.equal(output(model, batches[0]), expected)


def test_fit_twice_gives_the_same_bits(step, model, batches):
    assert same(step.fit(model, batches), step.fit(model, batches))


def test_fit_does_not_depend_on_what_was_read_before(step, model, batches):
    twin = copy.deepcopy(model)
    with torch.no_grad():
        twin(**batches[0])
    assert same(step.fit(model, batches), step.fit(twin, batches))


def test_fit_does_not_depend_on_the_global_generator(step, model, batches):
    torch.manual_seed(1)
    first = step.fit(copy.deepcopy(model), batches)
    torch.manual_seed(2)
    state = torch.random.get_rng_state()
    assert same(step.fit(model, batches), first)
    assert torch.equal(torch.random.get_rng_state(), state)


def test_fit_of_a_model_in_training_is_the_same(step, model, batches):
    expected = step.fit(copy.deepcopy(model), batches)
    assert same(step.fit(model.train(), batches), expected)
    assert all(module.training for module in model.modules())


def test_fit_takes_batches_that_can_be_read_once(step, model, batches):
    expected = step.fit(copy.deepcopy(model), batches)
    assert same(step.fit(model, iter(batches)), expected)


def test_fitted_values_are_finite_tensors_by_layer(step, model, batches):
    fitted = step.fit(model, batches)
    assert fitted.keys() == analog_layers(model).keys()
    assert all(value.isfinite().all() and (value > 0).all() and not value.requires_grad for value in fitted.values())


def test_applying_is_deterministic_and_changes_the_outputs(step, model, batches):
    fitted = step.fit(copy.deepcopy(model), batches)
    twin, plain = copy.deepcopy(model), output(model, batches[0])
    for one in (model, twin):
        step.apply(one, fitted)
    assert torch.equal(output(model, batches[0]), output(twin, batches[0]))
    assert not torch.equal(output(model, batches[0]), plain)
    step.apply(model, fitted)
    assert torch.equal(output(model, batches[0]), output(twin, batches[0]))


def test_fit_after_apply_finds_the_same(step, model, batches):
    reset_reads(model)
    fitted = step.fit(model, batches)
    step.apply(model, fitted)
    reset_reads(model)
    for name, value in step.fit(model, batches).items():
        torch.testing.assert_close(value, fitted[name], rtol=1e-6, atol=0)


def test_a_model_that_was_not_converted_is_refused(step, batches):
    with pytest.raises(InputError, match="has no analog layers"):
        step.fit(Sequence(nn.Linear(20, 5)), batches)


# Recipes


def test_quick_and_fast():
    fast = recipe.get("fast")
    quick = InputRanges(), WeightRanges(), DriftCompensation()
    written = DigitalLines(0.01), InputRanges(), Rotation(512), WeightRanges()
    assert fast == Recipe("fast", (*written, DriftCompensation(), AdcRanges(), AffineCorrection()))
    assert [step.stage for step in fast.steps] == [Stage.BEFORE_PROGRAMMING] * 4 + [Stage.IN_USE] * 3
    assert recipe.get("quick") == Recipe("quick", quick)


def test_refusals():
    with pytest.raises(InputError, match="recipe 'best' is unknown: choose quick, fast"):
        recipe.get("best")
    with pytest.raises(InputError, match="recipe 'empty' has no steps"):
        Recipe("empty", ())
    with pytest.raises(InputError, match="recipe 'late' is out of order: put InputRanges before DriftCompensation"):
        Recipe("late", (DriftCompensation(), InputRanges()))
