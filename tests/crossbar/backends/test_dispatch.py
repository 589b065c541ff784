"""Which backend computes: by order, by name, by what it honours and refuses; a backend of someone else's."""

import dataclasses
import inspect
import threading

import pytest
import torch

from crossbar import AnalogLinear, Hardware, InputError, backend_names, presets, register_backend, using_backend
from crossbar.backends import dispatch
from crossbar.backends.eager import of_layer
from crossbar.backends.protocol import AgedRows, Columns, Product, Read
from crossbar.features import CELLS, CONVERTERS, MISMATCH, NOISES
from tests.crossbar.backends.test_contract import CASES, COLUMNS, chip, inputs, read, require_near, rows, steps
from tests.crossbar.toys import Heated, Toy

DEVICE = torch.device("cpu")


@pytest.fixture
def toy(registries):
    made = Toy()
    register_backend(made)
    return made


def bare_read(hardware, dtype=torch.float32, gradient=False):
    """A product with random cells, used once."""
    layer = AnalogLinear.from_matrix(torch.ones(3, 4, dtype=dtype), Hardware(), "layer")
    return Read(torch.ones(2, 4, dtype=dtype, requires_grad=gradient), layer.readout(), hardware)


def test_thirty_lines_of_code_are_a_backend():
    assert len([line for line in inspect.getsource(Toy).splitlines() if line.strip()]) <= 30


def test_the_order_in_which_backends_are_asked(registries):
    assert backend_names() == ("cpu", "triton", "eager", "naive")
    first, again = Toy(), Toy()
    register_backend(first)
    assert backend_names() == ("toy", "cpu", "triton", "eager", "naive")
    register_backend(again, first=False)  # one of its name: in its place, last now
    assert backend_names() == ("cpu", "triton", "eager", "naive", "toy")
    assert dispatch.choose(bare_read(Hardware()), "toy") is again
    register_backend(first)
    assert backend_names() == ("toy", "cpu", "triton", "eager", "naive")


@pytest.mark.parametrize("case", [name for name, case in CASES.items() if case.hardware.features() <= Toy.honours])
def test_a_backend_of_someone_elses_computes_layers(toy, case):
    case = CASES[case]
    layer, x = chip(case, torch.float32), inputs(torch.float32)
    with torch.no_grad():
        found = [layer(x), layer.read_out(x)]
        assert toy.calls == {"sense": 2}
        layer.reset_reads()
        with using_backend("naive"):
            expected = [layer(x).double(), layer.read_out(x).double()]
    assert toy.calls == {"sense": 2}
    step, scales = steps(case, layer, x), layer.readout().scales.double().unsqueeze(1)
    require_near(found[0], expected[0], (step * scales).sum(0), torch.float32, COLUMNS * len(scales))
    require_near(found[1], expected[1], step, torch.float32, COLUMNS)


def test_picked_by_name(registries):
    toy = Toy()
    register_backend(toy, first=False)
    layer, x = chip(CASES["plain"], torch.float32), inputs(torch.float32)
    with torch.no_grad():
        layer(x)
        assert not toy.calls
        with using_backend("toy"):
            layer(x)
            assert toy.calls == {"sense": 1}
            with using_backend("eager"):
                layer(x)
            with using_backend(None):
                layer(x)
            assert toy.calls == {"sense": 1}
            layer(x)
        assert toy.calls == {"sense": 2}
        layer(x)
        dispatch.multiply(read(layer, x), "toy")
        dispatch.read_columns(read(layer, x), "toy")
        dispatch.sense(of_layer(x, 1.0, layer.readout(), layer.hardware, None), "toy")
        dispatch.age_rows(rows(layer.hardware.device, 1, None, torch.float32), "toy")
    assert toy.calls == {"sense": 5, "age_rows": 1}


def test_an_argument_goes_before_the_block():
    work = bare_read(Hardware())
    with using_backend("naive"):
        assert dispatch.choose(work).name == "naive"
        assert dispatch.choose(work, "eager").name == "eager"


def test_picked_by_what_no_other_honours(registries):
    hardware = Heated(heat=2.5)
    columns = Columns((Product(None, torch.ones(1, 2, 3), torch.ones(1, 3, 4)),), (1, 2, 4), 1.0, hardware, 1.0)
    aged = dataclasses.replace(rows(hardware.device, 1, None, torch.float32), hardware=hardware)
    works = [bare_read(hardware), columns, aged]
    for work in works:
        assert set(dispatch.refusals(work).values()) == {"hardware with heat"}
        with pytest.raises(InputError) as caught:
            dispatch.choose(work)
        assert str(caught.value) == (
            "no backend can compute this (cpu: hardware with heat; triton: hardware with heat; eager: hardware with "
            "heat; naive: hardware with heat): register one that can"
        )
    toy = Toy()
    register_backend(toy, first=False)
    for work in works:
        assert dispatch.choose(work) is toy
        with using_backend("eager"), pytest.raises(InputError) as caught:
            dispatch.choose(work)
        assert str(caught.value) == "backend 'eager' cannot compute this (hardware with heat): choose one of toy"
    plain = [dataclasses.replace(columns, hardware=Heated()), bare_read(Heated())]
    assert [dispatch.choose(work).name for work in plain] == ["eager", "cpu"]
    assert torch.equal(
        dispatch.sense(dataclasses.replace(columns, hardware=Heated(heat=1.0, adc=None))), 3 * torch.ones(1, 2, 4)
    )


def test_what_one_refuses_the_next_is_asked_for(toy):
    layer, x = chip(CASES["output noise"], torch.float32), inputs(torch.float32).requires_grad_()
    layer(x).sum().backward()
    assert not toy.calls
    assert x.grad.abs().max() > 0
    with torch.no_grad():
        layer(x)
    assert toy.calls == {"sense": 1}
    with (
        using_backend("toy"),
        pytest.raises(InputError, match=r"backend 'toy' cannot .* \(gradients\): choose one of (triton, )?eager"),
    ):
        layer(x)


def test_a_name_that_is_not_known():
    with (
        pytest.raises(InputError, match="backend 'cuda' is not known: choose one of cpu, triton, eager, naive"),
        using_backend("cuda"),
    ):
        pass
    with pytest.raises(InputError, match="backend 'cuda' is not known"):
        dispatch.choose(bare_read(Hardware()), "cuda")


@pytest.mark.parametrize("given", [Toy, None, "naive", object()], ids=["class", "None", "name", "object"])
def test_what_is_no_backend_is_refused(registries, given):
    with pytest.raises(InputError, match=r" is not a backend: give an object with name, honours, refuses, multiply, "):
        register_backend(given)
    assert backend_names() == ("cpu", "triton", "eager", "naive")


def test_a_block_is_left_with_its_error_and_is_of_its_thread(toy):
    with pytest.raises(ZeroDivisionError), using_backend("naive"):
        1 / 0  # noqa: B018 - for its error
    assert dispatch.choose(bare_read(Hardware())) is toy
    found = []
    with using_backend("naive"):
        thread = threading.Thread(target=lambda: found.append(dispatch.choose(bare_read(Hardware())).name))
        thread.start()
        thread.join()
        assert dispatch.choose(bare_read(Hardware())).name == "naive"
    assert found == ["toy"]


class Asked(Toy):
    """Notes what it is asked, and refuses."""

    name = "asked"
    honours = CELLS | CONVERTERS | MISMATCH | NOISES

    def __init__(self):
        self.found = []

    def refuses(self, work, device, dtype, gradient):
        self.found.append((type(work), device, dtype, gradient))
        return "everything"


def columns_with(**tensors):
    given = {"codes": torch.ones(1, 2, 3), "cells": torch.ones(1, 3, 4)} | tensors
    products = (Product(None, given.pop("codes"), given.pop("cells")),)
    return Columns(products, (1, 2, 4), 1.0, Hardware(), 1.0, **given)


def test_device_dtype_and_gradient_are_those_of_the_tensors(registries):
    asked = Asked()
    register_backend(asked)
    leaf = {"requires_grad": True}
    layer = AnalogLinear.from_matrix(torch.ones(4, 3), presets.ideal(), "layer")
    x, scalar = torch.ones(2, 3), torch.tensor(1.0, **leaf)
    seen = layer.readout()
    scales = seen.scales.clone().requires_grad_()
    works = [
        (Read(x, seen, Hardware()), torch.float32, False),
        (Read(x.double(), seen, Hardware()), torch.float64, False),
        (Read(x.clone().requires_grad_(), seen, Hardware()), torch.float32, True),
        (Read(x, seen, Hardware(), input_range=scalar), torch.float32, True),
        (Read(x, dataclasses.replace(seen, adc_range=scalar), Hardware()), torch.float32, True),
        (Read(x, dataclasses.replace(seen, scales=scales), Hardware()), torch.float32, True),
        (Read(x, dataclasses.replace(seen, digits=torch.ones(1, 3, 4, **leaf)), Hardware()), torch.float32, True),
        (columns_with(), torch.float32, False),
        (columns_with(codes=torch.ones(1, 2, 3, **leaf)), torch.float32, True),
        (columns_with(cells=torch.ones(1, 3, 4, **leaf)), torch.float32, True),
        (columns_with(spans=torch.ones(1, 2, 1, **leaf)), torch.float32, True),
        (columns_with(offset=torch.ones(1, 4, **leaf)), torch.float32, True),
        (rows(Hardware().device, 1, None, torch.float64), torch.float64, False),
    ]  # fmt: skip
    for work, dtype, gradient in works:
        dispatch.choose(work)
        assert asked.found.pop() == (type(work), DEVICE, dtype, gradient)
        with torch.no_grad():
            dispatch.choose(work)
        assert asked.found.pop() == (type(work), DEVICE, dtype, False)
    assert AgedRows in {type(work) for work, _, _ in works}


def test_learned_ranges_of_strengths_are_not_lost(registries):
    # The oracle has no gradients: columns whose ranges are learned must not go to it.
    learned = torch.full((1, 2, 1), 0.5, requires_grad=True)
    work = columns_with(spans=learned)
    with using_backend("naive"), pytest.raises(InputError, match="gradients"):
        dispatch.sense(work)
    dispatch.sense(work).sum().backward()
    assert learned.grad is not None


def test_a_device_that_is_not_a_cpus_is_refused_by_the_cpu():
    work = bare_read(Hardware())
    moved = work._replace(x=work.x.to("meta"))
    assert dispatch.refusals(moved)["cpu"] == "tensors on meta"
    assert dispatch.refusals(work._replace(x=work.x.double()))["cpu"] == "numbers in float64"
