"""A chip of a whole model on the GPU that is there: the CPU's conductances and outputs, bit for bit, and no waiting.

Without a GPU tiny models take the place of large ones and kernels are interpreted, so that what `make test-gpu` runs
has been run before it meets a card.
"""

import contextlib
import copy
import math
from functools import partial

import pytest
import torch
from transformers import BertConfig, BertModel, LlamaConfig, LlamaForCausalLM

from attention import Memory, attach, parse
from calibration import tasks
from calibration.models import load_model
from crossbar import age, analog_layers, convert, presets, program, reset_reads, using_backend
from crossbar.native import gpu

ON_GPU = not gpu.interpreted()
DEVICE = torch.device("cuda" if ON_GPU else "cpu")
CPU = torch.device("cpu")
WINDOW = parse("causal(window(8) | sinks(2))")
needs_gpu = pytest.mark.skipif(not ON_GPU, reason="needs a GPU")
pytestmark = pytest.mark.skipif(gpu.why_not() is not None, reason=f"no kernels here: {gpu.why_not()}")


def llama(hidden=768, inner=3072, layers=12, vocabulary=32_000):
    """Of random weights; as it comes of 162 million parameters."""
    config = LlamaConfig(
        vocab_size=vocabulary, hidden_size=hidden, intermediate_size=inner, num_hidden_layers=layers,
        num_attention_heads=hidden // 16 if hidden < 64 else hidden // 64, use_cache=False, max_position_embeddings=512,
    )  # fmt: skip
    torch.manual_seed(0)
    return LlamaForCausalLM(config).eval()


def small_llama():
    return llama(32, 40, 1, 50)


def small_bert():
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "intermediate_size": 40, "num_hidden_layers": 1, "num_attention_heads": 2}
    return BertModel(BertConfig(vocab_size=50, **sizes), add_pooling_layer=False).eval()


def minilm():
    return load_model("minilm").model.eval()


MODELS = [
    ("llama", llama if ON_GPU else small_llama, ()),
    ("encoder", minilm if ON_GPU else small_bert, pytest.mark.slow),
]


def by_kernels():
    """Where kernels are interpreted they are asked for by name."""
    return contextlib.nullcontext() if ON_GPU else using_backend("triton")


def on_chip(model, device, hardware=None):
    """A copy on a device, converted there, programmed, and an hour old."""
    model = copy.deepcopy(model).to(device)
    convert(model, presets.pcm() if hardware is None else hardware)
    program(model, 1)
    age(model, 3600.0)
    return model


def tokens_of(model, batch=2, n=12):
    size = model.get_input_embeddings().num_embeddings
    return torch.randint(size, (batch, n), generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[pytest.param(make, marks=marks, id=name) for name, make, marks in MODELS])
def chips(request, monkeypatch):
    """The same chip on the CPU and on the GPU."""
    digital = request.param()
    there = on_chip(digital, CPU)
    if not ON_GPU:
        monkeypatch.setattr(gpu, "serves", lambda device: True)  # cells are made by kernels
    return there, on_chip(digital, DEVICE)


@torch.no_grad()
def test_a_chip_has_the_cpus_conductances_and_every_layer_its_outputs(chips):
    there, here = chips
    given = {}

    def look(name, _, x, y):
        given[name] = x[0], y

    hooks = [layer.register_forward_hook(partial(look, name)) for name, layer in analog_layers(there).items()]
    there(tokens_of(there))
    for hook in hooks:
        hook.remove()
    layers = analog_layers(here)
    assert given.keys() == layers.keys()
    reset_reads(here)
    wrong = {}
    for name, layer in analog_layers(there).items():
        own, (x, expected) = layers[name], given[name]
        assert torch.equal(own.scales.cpu(), layer.scales), name
        assert torch.equal(own.cells.conductances().cpu(), layer.cells.conductances()), name
        with by_kernels():
            found = own(x.to(DEVICE)).cpu()
        wrong[name] = int((found.view(torch.int32) != expected.view(torch.int32)).sum())
    assert not any(wrong.values()), f"numbers that differ, by layer: {wrong}"


@torch.no_grad()
def test_its_scores_are_the_cpus_within_rounding(chips):
    # Softmax, norms and activations add and round in other orders, and a conversion at a tie makes a step of that.
    there, here = chips
    if not isinstance(there, LlamaForCausalLM):
        tokens = tokens_of(there)
        with by_kernels():
            found = here(tokens.to(DEVICE)).last_hidden_state.mean(1).cpu()
        assert torch.cosine_similarity(found, there(tokens).last_hidden_state.mean(1)).min() > 0.999
        return
    tokens = tokens_of(there, n=64 if ON_GPU else 12)
    with by_kernels():
        found = float(here(tokens.to(DEVICE), labels=tokens.to(DEVICE)).loss)
    assert math.isclose(found, float(there(tokens, labels=tokens).loss), rel_tol=1e-3)


@needs_gpu
@torch.no_grad()
def test_minilm_scores_on_a_task_as_on_the_cpu():
    loaded = load_model("minilm")
    task = tasks.get("wordsim", loaded.tokenizer)
    there, here = (task.metrics(on_chip(loaded.model, device)) for device in (CPU, DEVICE))
    assert there.keys() == here.keys()
    assert all(abs(there[name] - here[name]) < 0.005 for name in there)


@contextlib.contextmanager
def nobody_waits(monkeypatch):
    """Whoever waits for the GPU meanwhile fails, but for a question of transformers' own: whether inputs are packed."""
    monkeypatch.setattr("transformers.masking_utils.find_packed_sequence_indices", lambda *args, **kwargs: None)
    if not ON_GPU:
        yield
        return
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        yield
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.slow
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("attached", ["model's own", "digital", "rows"])
def test_a_forward_pass_of_a_llama_waits_for_nothing(attached, dtype, monkeypatch):
    model = on_chip((llama if ON_GPU else small_llama)().to(dtype), DEVICE)
    if attached != "model's own":
        attach(model, WINDOW, presets.pcm() if attached == "rows" else None)
    tokens = tokens_of(model).to(DEVICE)
    with by_kernels(), torch.no_grad():
        model(tokens)  # makes what is made once
        with nobody_waits(monkeypatch):
            logits = model(tokens).logits
        assert logits.isfinite().all()
    if not ON_GPU and dtype == torch.float32:  # once is enough where kernels are interpreted
        return
    model.train()
    for again in (False, True):  # the first time tables are made
        loss = model(tokens, labels=tokens).loss
        with nobody_waits(monkeypatch) if again else contextlib.nullcontext():
            loss.backward()


@pytest.mark.slow
@torch.no_grad()
def test_a_memory_decodes_and_waits_for_nothing(monkeypatch):
    model = on_chip((llama if ON_GPU else small_llama)(), DEVICE)
    attach(model, WINDOW, Memory(presets.pcm(), capacity=12, sinks=2))
    tokens = tokens_of(model).to(DEVICE)
    with by_kernels():
        cache = model(tokens, use_cache=True).past_key_values
        model(tokens[:, :1], past_key_values=cache, use_cache=True)
        with nobody_waits(monkeypatch):
            logits = model(tokens[:, 1:2], past_key_values=cache, use_cache=True).logits
    assert logits.isfinite().all()


@needs_gpu
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_layer_is_read_in_four_launches(dtype):
    from torch.profiler import ProfilerActivity, profile

    layer = on_chip(torch.nn.Sequential(torch.nn.Linear(1024, 512)).to(dtype), DEVICE)
    x = torch.randn(64, 1024, device=DEVICE, dtype=dtype)
    layer(x)
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        layer(x)
        torch.cuda.synchronize()
    launched = [event.name for event in seen.events() if event.device_type == torch.autograd.DeviceType.CUDA]
    assert len(launched) <= 4, launched
