"""The controller gates: attention over the pairs whose events were delivered."""

import dataclasses
import math
import warnings

import pytest
import torch

from attention import (
    Axis,
    Controller,
    Dense,
    EventsDropped,
    LocalWindow,
    PerHead,
    Placement,
    Platform,
    Sinks,
    TopK,
    gated_attention,
)
from attention.controller import platforms
from attention.controller.events import DROPPED
from crossbar import Converter, Hardware, InputError, Ledger, Tile, devices

SPARSE = (LocalWindow(9) | Sinks(2)).causal()
IDEAL = Controller(platforms.ideal(rows=16))
FIFO = Platform("fifo", rows=16, timing="fifo", unit=1e-9, step=4, service=1)
LOSSY = Controller(dataclasses.replace(FIFO, queue=2, full="drop_new"))
OLDEST = Controller(dataclasses.replace(FIFO, queue=2, full="drop_old"))
HARDWARE = Hardware(
    device=devices.Ideal(), tile=Tile(16, 8), dac=Converter(range="per_token"), adc=None, output_noise=0.0
)
N, D = 40, 8


def draw(heads=4, kv_heads=2, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(3)
    q = torch.randn(batch, heads, N, D, generator=generator, dtype=dtype)
    return q, *torch.randn(2, batch, kv_heads, N, D, generator=generator, dtype=dtype)


def padding():
    mask = torch.ones(2, N, dtype=torch.bool)
    mask[1, 25:] = False
    return mask


@pytest.mark.parametrize("mask", [None, padding()], ids=["whole", "padded"])
@pytest.mark.parametrize("hardware", [None, HARDWARE], ids=["digital", "analog"])
@pytest.mark.parametrize(
    "pattern", [SPARSE, Dense(), PerHead([SPARSE, Dense(), Sinks(0), SPARSE]), TopK(5).causal()], ids=str
)
def test_where_nothing_is_dropped_it_is_the_pattern_bit_for_bit(pattern, hardware, mask):
    q, k, v = draw()
    plain = gated_attention(q, k, v, pattern, mask=mask, hardware=hardware)
    for platform in (IDEAL.platform, FIFO, dataclasses.replace(FIFO, timing="mesh")):
        gated = gated_attention(q, k, v, pattern, mask=mask, hardware=hardware, controller=Controller(platform))
        assert torch.equal(gated, plain)


def by_hand(q, k, v, controller, pattern, mask):
    """One query at a time, over the pairs that a stream of one head says were delivered."""
    output = torch.zeros_like(q)
    for b in range(len(q)):
        events = controller.events(pattern.rows(N), Placement.sequential(N, 16))
        if mask is not None:
            events = events.where(mask[b][Placement.sequential(N, 16).tokens(events)] & mask[b][events.query.long()])
        arrived = controller.simulate(events).depart != DROPPED
        token = Placement.sequential(N, 16).tokens(events)
        pairs = {
            axis: {
                (int(i), int(j))
                for i, j in zip(
                    events.query[arrived & (events.axis == axis)],
                    token[arrived & (events.axis == axis)],
                    strict=True,
                )
            }
            for axis in Axis
        }
        for h in range(q.shape[1]):
            for i in range(N):
                scored = [j for j in range(N) if (i, j) in pairs[Axis.COL]]
                weights = {j: math.exp(float(q[b, h, i] @ k[b, h // 2, j]) / math.sqrt(D)) for j in scored}
                for j in scored:
                    if (i, j) in pairs[Axis.ROW]:
                        output[b, h, i] += weights[j] / sum(weights.values()) * v[b, h // 2, j]
    return output


@pytest.mark.parametrize("mask", [None, padding()], ids=["whole", "padded"])
@pytest.mark.parametrize("controller", [LOSSY, OLDEST], ids=["new", "old"])
@pytest.mark.parametrize("impl", ["blocks", "reference"])
def test_with_drops_it_is_attention_over_what_arrived(controller, mask, impl):
    q, k, v = draw()
    with pytest.warns(EventsDropped, match=r"dropped [\d,]+ of [\d,]+ events"):
        output = gated_attention(q, k, v, SPARSE, mask=mask, controller=controller, impl=impl)
    torch.testing.assert_close(output, by_hand(q, k, v, controller, SPARSE, mask))
    assert not torch.allclose(output, gated_attention(q, k, v, SPARSE, mask=mask))


def test_drops_on_analog_memory_are_those_of_digital_attention():
    q, k, v = draw()
    exact = dataclasses.replace(HARDWARE, dac=None)
    with pytest.warns(EventsDropped):
        analog = gated_attention(q, k, v, SPARSE, controller=LOSSY, hardware=exact)
    with pytest.warns(EventsDropped):
        torch.testing.assert_close(analog, gated_attention(q, k, v, SPARSE, controller=LOSSY))


def test_a_tighter_queue_loses_more():
    q, k, v = draw()
    plain, errors = gated_attention(q, k, v, Dense().causal()), []
    for queue in (1, 4, 12, 2000):
        controller = Controller(dataclasses.replace(FIFO, queue=queue, full="drop_new"))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", EventsDropped)
            gated = gated_attention(q, k, v, Dense().causal(), controller=controller)
        errors.append(float((gated - plain).norm() / plain.norm()))
    assert errors == sorted(errors, reverse=True)
    assert errors[0] > 0.1
    assert errors[-1] == 0


def test_gradients_flow_through_what_arrived():
    q, k, v = draw()
    inputs = [x.requires_grad_() for x in (q, k, v)]
    with pytest.warns(EventsDropped):
        gated_attention(*inputs, SPARSE, controller=LOSSY).sum().backward()
    for x in inputs:
        assert x.grad.isfinite().all()
        assert (x.grad != 0).any()


# Counts


@pytest.mark.parametrize("pattern", [SPARSE, PerHead([SPARSE, Dense(), Sinks(0), SPARSE])], ids=str)
def test_counts_of_events_are_those_of_the_schedule(pattern):
    q, k, v = draw()
    with Ledger() as plain:
        gated_attention(q, k, v, pattern, hardware=HARDWARE, layer="a")
    with Ledger() as gated:
        gated_attention(q, k, v, pattern, hardware=HARDWARE, layer="a", controller=IDEAL)
    pairs = plain.to_dict()["a"]["attended_pairs"]
    assert gated.to_dict()["a"] == {
        **plain.to_dict()["a"], "events": 2 * pairs, "events_dropped": 0, "hops_x": 0, "hops_y": 0, "barriers": 0
    }  # fmt: skip


def test_digital_attention_books_its_events_too():
    q, k, v = draw()
    with Ledger() as ledger:
        gated_attention(q, k, v, SPARSE, controller=IDEAL, layer="a")
    assert ledger.to_dict()["a"]["attended_pairs"] == 8 * len(SPARSE.rows(N).indices)


def test_dropped_events_are_booked_and_take_no_conversions():
    q, k, v = draw()
    with Ledger() as ledger, pytest.warns(EventsDropped):
        gated_attention(q, k, v, SPARSE, controller=LOSSY, hardware=HARDWARE, layer="a")
    counts = ledger.to_dict()["a"]
    events = LOSSY.events(SPARSE.rows(N), Placement.sequential(N, 16))
    arrived = LOSSY.simulate(events).depart != DROPPED
    assert counts["events"] == 8 * len(events.time)
    assert counts["events_dropped"] == 8 * int((~arrived).sum())
    assert counts["column_activations"] == 8 * int((arrived & (events.axis == Axis.COL)).sum())
    assert counts["row_activations"] == 8 * int((arrived & (events.axis == Axis.ROW)).sum())


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"controller": "ideal"}, "'ideal' is not a Controller"),
        ({"controller": Controller(platforms.ideal(rows=32)), "hardware": HARDWARE}, "32 rows and .* have 16"),
    ],
)
def test_bad_input_is_named(options, named):
    with pytest.raises(InputError, match=named):
        gated_attention(*draw(), SPARSE, **options)
