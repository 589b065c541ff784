"""One place for each decision: where columns are sensed and rounded to codes, and where a processor is chosen."""

import ast
from collections import Counter
from functools import cache
from pathlib import Path

import pytest
import torch

from attention import AnalogMemory, LearnedStrengths, LocalWindow, Memory, gated_attention
from crossbar import AnalogLinear, presets
from crossbar.backends.eager import Eager
from tests.crossbar.conftest import inputs

ROOT = Path(__file__).parents[1]


@cache
def sources():
    """The tree of each module of the packages, by file."""
    return {
        str(path.relative_to(ROOT)): ast.parse(path.read_text(encoding="utf-8"))
        for package in ("crossbar", "attention", "calibration")
        for path in sorted((ROOT / package).rglob("*.py"))
    }


def is_backend(name):
    return name.startswith("crossbar/backends/")


@cache
def nodes_of(name):
    """Each node of a module with the function it is in, methods as ``Class.method``."""

    def visit(node, path):
        for child in ast.iter_child_nodes(node):
            inner = (*path, child.name) if isinstance(child, ast.ClassDef | ast.FunctionDef) else path
            yield ".".join(inner), child
            yield from visit(child, inner)

    return [*visit(sources()[name], ())]


def places(wanted, names=None):
    """Where nodes are, by file and function: those for which ``wanted`` is true."""
    found = {}
    for name in sources() if names is None else names:
        for function, node in nodes_of(name):
            if wanted(node):
                found.setdefault((name, function), []).append(node)
    return found


def called(node, *names):
    """Whether a node calls a function or method of one of these names."""
    if not isinstance(node, ast.Call):
        return False
    function = node.func
    return (function.attr if isinstance(function, ast.Attribute) else getattr(function, "id", None)) in names


def imports(tree):
    """Modules and names that a module imports, dotted."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


# Sensing


def test_torch_rounds_to_codes_of_an_adc_in_one_function():
    # `convert` of crossbar.backends.converters is for DACs and ADCs: which one is its second argument.
    users = {name for name, tree in sources().items() if "crossbar.backends.converters.convert" in imports(tree)}
    users.add("crossbar/backends/converters.py")
    calls = places(lambda node: called(node, "convert"), users)
    of_adc = {place for place, nodes in calls.items() for node in nodes if ast.unparse(node.args[1]) != "dac"}
    assert of_adc == {("crossbar/backends/eager.py", "Eager.sense")}
    assert ("crossbar/backends/converters.py", "drive") in calls


def test_kernels_round_to_codes_of_an_adc_in_one_function():
    users = places(
        lambda node: (
            isinstance(node, ast.Attribute) and node.attr == "convert" and ast.unparse(node) == "kernels.convert"
        )
    )
    assert set(users) == {("crossbar/backends/cpu/integers.py", "sense")}
    rounding = places(lambda node: called(node, "rint", "round"), {"crossbar/backends/cpu/kernels.py"})
    assert {function for _, function in rounding} == {
        "_halved",
        "fix",
        "_driven",
        "_deliver",
    }  # powers, cells, DAC, ADC


def test_kernels_of_gpus_round_to_codes_of_an_adc_in_one_function():
    rounding = places(lambda node: called(node, "nearest"), {"crossbar/backends/triton/triton_kernels.py"})
    assert {function for _, function in rounding} == {
        "fix",
        "_encode",
        "_codes",
        "_halved",
    }  # cells, DAC, ADC, powers


def test_the_oracle_rounds_to_codes_in_one_function():
    rounding = places(lambda node: called(node, "round"), {"crossbar/backends/naive.py"})
    assert {function for _, function in rounding} == {"_convert", "_bit"}  # a bit of a code that is whole already


def test_nobody_else_rounds_what_an_adc_delivers():
    def of_adc(node):
        return getattr(node, "attr", getattr(node, "id", None)) == "adc"

    rounding = places(lambda node: called(node, "round", "round_", "rint", "clamp", "clamp_") or of_adc(node))
    both = {
        place
        for place, nodes in rounding.items()
        if any(map(of_adc, nodes)) and any(called(node, "round", "round_", "rint") for node in nodes)
    }
    assert both == {("attention/kernel/analog_reference.py", "_convert")}  # the oracle of attention


def test_who_asks_for_columns_asks_the_dispatcher():
    asked = places(lambda node: called(node, "sense") and ast.unparse(node.func).startswith("dispatch."))
    assert {name for name, _ in asked} == {"attention/kernel/analog.py", "attention/learned/strength_tiles.py"}
    others = places(lambda node: called(node, "sense", "multiply", "read_columns", "age_rows"))
    outside = {ast.unparse(node.func) for (name, _), nodes in others.items() if not is_backend(name) for node in nodes}
    assert outside == {"dispatch.sense", "dispatch.multiply", "dispatch.read_columns", "dispatch.age_rows"}


@torch.no_grad()
def test_a_layer_attention_strengths_and_memory_meet_in_one_function(monkeypatch):
    sense, calls = Eager.sense, Counter()

    def counted(self, columns):
        calls[reader] += 1
        return sense(self, columns)

    monkeypatch.setattr(Eager, "sense", counted)
    hardware, pattern = presets.pcm(), LocalWindow(3).causal()
    q, k, v = (inputs(1, 2, 6, 8, seed=seed, dtype=torch.float64) for seed in range(3))
    reader = "layer"
    AnalogLinear.from_matrix(inputs(7, 8, dtype=torch.float64), hardware, "layer")(q)
    reader = "attention"
    gated_attention(q, k, v, pattern, hardware=hardware)
    reader = "strengths"
    strengths = LearnedStrengths(2, 6, pattern).double()
    strengths.place(hardware)
    strengths(v, q, k)
    reader = "memory"
    memory = AnalogMemory(Memory(hardware, capacity=8))
    memory.append(k, v)
    memory.read(q, pattern)
    assert calls == {"layer": 1, "attention": 2, "strengths": 1, "memory": 2}


# Choosing a processor


def test_backends_are_imported_by_the_dispatcher_alone():
    allowed = {
        "crossbar/nn/linear.py": {"crossbar.backends.eager"},  # for what ideal ADCs would deliver, which is no read
    }
    for name, tree in sources().items():
        if is_backend(name):
            continue
        found = {
            module
            for module in imports(tree)
            if module.startswith(("crossbar.backends.cpu", "crossbar.backends.eager", "crossbar.backends.naive"))
        }
        assert found <= allowed.get(name, set()), name


def test_who_has_cells_does_not_look_at_processors():
    # Sizes of pieces, and autocast, which is told for which kind of device: nothing is chosen by these. Cells that are
    # made again have a kernel of their own on CPUs, which gives the bits of torch's operations.
    # Circuits have a compiled solver on CPUs.
    allowed = {
        ("crossbar/circuit/currents.py", "_solved"),
        ("crossbar/circuit/ladders.py", "is_compiled"),
        ("crossbar/nn/linear.py", "AnalogLinear._forward"),
        ("crossbar/nn/shard.py", "AnalogShard.forward"),
        ("crossbar/native/functions.py", "_is_compiled"),  # loops on CPUs, which give the bits of torch's operations
        ("crossbar/native/gpu.py", "serves"),  # whether Triton's kernels run at all
        ("crossbar/native/gpu.py", "why_not"),
        ("crossbar/native/gpu.py", "sent"),  # copies that a GPU need not finish work for
        ("crossbar/native/gpu.py", "on"),  # launches go to the GPU that the tensors are on
        ("crossbar/nn/convert.py", "convert"),  # the report of a model on a GPU says which backend computes what
        ("crossbar/native/sizes.py", "at_once"),
        ("crossbar/tiles/ageing.py", "_pieces"),
        ("crossbar/tiles/ageing.py", "reads_again"),
    }

    def looks(node):
        if not isinstance(node, ast.Attribute):
            return False
        if node.attr in ("type", "cuda", "backends"):
            return ast.unparse(node).endswith(("device.type", "torch.cuda", "torch.backends"))
        return node.attr in ("is_cuda", "is_cpu", "is_mps")

    readers = {
        name
        for name in sources()
        if name.startswith(("crossbar/", "attention/kernel/analog", "attention/learned/", "attention/memory/"))
        and not is_backend(name)
        and not name.startswith("crossbar/random/")
    }
    assert len(readers) > 40
    assert set(places(looks, readers)) <= allowed


@pytest.mark.parametrize("asked", ["requires_grad", "is_grad_enabled", "dtype"])
def test_who_has_cells_does_not_choose_by_gradients_or_dtype(asked):
    def chooses(node):
        if not isinstance(node, ast.If | ast.IfExp):
            return False
        names = {getattr(part, "attr", getattr(part, "id", None)) for part in ast.walk(node.test)}
        if asked not in names:
            return False
        body = node.body if isinstance(node.body, list) else [node.body]
        branches = [
            part
            for branch in (*body, *(node.orelse if isinstance(node.orelse, list) else [node.orelse]))
            for part in ast.walk(branch)
        ]
        return any(called(part, "sense", "multiply", "read_columns", "age_rows") for part in branches)

    assert places(chooses, [name for name in sources() if not is_backend(name)]) == {}


# Where tensors are made


def test_every_tensor_that_is_made_says_where():
    # Else a user's `with torch.device("cuda")` around a call puts some of a CPU model's tensors on the GPU.
    makers = {
        *("arange", "as_tensor", "asarray", "empty", "empty_strided", "eye", "full", "linspace", "logspace", "ones"),
        *("rand", "randint", "randn", "randperm", "range", "scalar_tensor", "tensor", "tril_indices", "triu_indices"),
        "zeros",
    }
    of_a_user = {  # parameters of modules are where torch's own modules have theirs
        ("attention/neuromorphic/lif.py", "LIF.__init__"),
        ("attention/learned/router.py", "Router.__init__"),
        ("attention/learned/strengths.py", "LearnedStrengths.__init__"),
    }

    def is_anywhere(node):
        makes = called(node, *makers) and ast.unparse(node.func).startswith("torch.")
        return makes and "device" not in {keyword.arg for keyword in node.keywords}

    assert set(places(is_anywhere)) - of_a_user == set()
