"""Attached transformers models whose attention a controller gates."""

import warnings
from dataclasses import replace

import pytest
import torch
from transformers import LlamaForCausalLM

from attention import Controller, EventsDropped, Platform, attach, detach
from attention.controller import platforms
from crossbar import InputError, Ledger, presets
from tests.attention.hf_models import HEADS, LAYERS, MODELS, SPARSE, llama, padding, run, tokens

FIFO = Platform("fifo", rows=16, timing="fifo", unit=1e-9, step=4, service=1)


def lossy(queue):
    return Controller(replace(FIFO, queue=queue, full="drop_new"))


def attached(build, **options):
    model = build()
    attach(model, SPARSE, **options)
    return model


@pytest.mark.parametrize("name", MODELS)
def test_a_platform_that_drops_nothing_gives_the_pattern_bit_for_bit(name):
    plain = run(attached(MODELS[name]), tokens(), padding())
    for platform in (platforms.ideal(), FIFO):
        gated = attached(MODELS[name], controller=Controller(platform))
        assert torch.equal(run(gated, tokens(), padding()), plain)


def test_one_that_drops_events_says_so_and_degrades_as_its_queues_shrink():
    plain, errors = run(attached(llama), tokens()), []
    for queue in (1, 3, 100):
        model = attached(llama, controller=lossy(queue))
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            errors.append(float((run(model, tokens()) - plain).norm() / plain.norm()))
        assert [w.category for w in said] == ([EventsDropped] * LAYERS if queue < 100 else [])
    assert errors[0] > errors[1] > errors[2] == 0
    detach(model)
    attach(model, SPARSE)
    assert torch.equal(run(model, tokens()), plain)


def test_generation_token_by_token():
    options = {"max_new_tokens": 8, "do_sample": False}
    plain, gated = (attached(lambda: llama(LlamaForCausalLM), **x) for x in ({}, {"controller": Controller(FIFO)}))
    ids = tokens(batch=1)
    assert torch.equal(gated.generate(ids, **options), plain.generate(ids, **options))


@pytest.mark.parametrize("mask", [None, padding()], ids=["full", "padded"])
@pytest.mark.parametrize("name", ["bert", "llama"])
def test_events_are_booked_beside_the_same_counts(name, mask):
    with Ledger() as plain:
        run(attached(MODELS[name]), tokens(), mask)
    with Ledger() as gated:
        run(attached(MODELS[name], controller=Controller(platforms.ideal())), tokens(), mask)
    for name, counts in plain.to_dict().items():
        added = {"events": 2 * counts["attended_pairs"], "events_dropped": 0, "hops_x": 0, "hops_y": 0, "barriers": 0}
        assert gated.to_dict()[name] == {**counts, **added}
    assert len(plain.to_dict()) == LAYERS
    assert counts["attended_pairs"] % HEADS == 0


def test_an_encoder_is_gated_on_analog_rows_too():
    memory = presets.ideal()
    whole = run(attached(MODELS["bert"], memory=memory), tokens())
    model = attached(MODELS["bert"], memory=memory, controller=Controller(platforms.ideal()))
    assert torch.equal(run(model, tokens()), whole)
    attach(model, SPARSE, memory, controller=Controller(replace(lossy(1).platform, rows=memory.tile.rows)))
    with pytest.warns(EventsDropped):
        assert not torch.allclose(run(model, tokens()), whole)


@pytest.mark.parametrize(
    ("build", "options", "named"),
    [
        (llama, {"controller": "ideal"}, "'ideal' is not a Controller"),
        (llama, {"controller": Controller(FIFO), "memory": presets.gain_cell()}, "give memory or controller"),
        (MODELS["bert"], {"controller": Controller(FIFO), "memory": presets.ideal()}, "16 rows and .* have 256"),
    ],
)
def test_bad_input_is_named_and_leaves_the_model_alone(build, options, named):
    model = build()
    plain = run(model, tokens())
    with pytest.raises(InputError, match=named):
        attach(model, SPARSE, **options)
    assert torch.equal(run(model, tokens()), plain)
