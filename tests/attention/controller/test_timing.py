"""When events arrive: fast timing against slow simulations that share no code with it, and what always holds."""

from collections import deque
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from attention import Axis, Controller, Dense, Events, LocalWindow, Placement, Platform, Sinks
from attention.controller import platforms
from attention.controller.events import DROPPED
from attention.controller.timing import drop_new, drop_old, fifo
from crossbar.errors import InputError

ARRIVALS = st.lists(st.tuples(st.integers(0, 40), st.integers(0, 3)), max_size=60)
SEEDS = st.integers(0, 2**32 - 1)


def tensors(arrivals):
    pairs = torch.tensor(arrivals, dtype=torch.int64).reshape(-1, 2)
    return pairs[:, 0], pairs[:, 1]


def step_by_step(arrivals, service, queue=None, newest=True):
    """One unit of time after another: each port is a line of people and a counter that works off the first."""
    depart = [DROPPED] * len(arrivals)
    lines = {port: deque() for _, port in arrivals}
    left = dict.fromkeys(lines, 0)  # units of work on the first of each line
    depth = [0] * len(arrivals)
    todo = deque(sorted(range(len(arrivals)), key=lambda event: (arrivals[event][0], event)))
    now = 0
    while todo or any(lines.values()):
        for port, line in lines.items():
            if line and left[port] == 0:
                depart[line.popleft()] = now
                left[port] = service
        while todo and arrivals[todo[0]][0] == now:
            event = todo.popleft()
            line = lines[arrivals[event][1]]
            if not line:
                left[arrivals[event][1]] = service
            if queue is not None and len(line) == queue:
                depth[event] = queue
                if newest or queue == 1:
                    continue
                del line[1]
            line.append(event)
            depth[event] = len(line)
        now += 1
        for port in left:
            left[port] -= bool(lines[port])
    return depart, depth


@given(ARRIVALS, st.integers(1, 7))
def test_fifo_equals_a_step_by_step_simulation(arrivals, service):
    served = fifo(*tensors(arrivals), service)
    depart, depth = step_by_step(arrivals, service)
    assert served.depart.tolist() == depart
    assert served.depth.tolist() == depth


@given(ARRIVALS, st.integers(1, 7), st.integers(1, 4))
def test_full_ports_lose_what_a_step_by_step_simulation_loses(arrivals, service, queue):
    for newest, lossy in ((True, drop_new), (False, drop_old)):
        served = lossy(*tensors(arrivals), service, queue)
        depart, depth = step_by_step(arrivals, service, queue, newest)
        assert served.depart.tolist() == depart
        assert served.depth.tolist() == depth


@given(ARRIVALS, st.integers(0, 60), st.integers(1, 7), st.integers(1, 4))
def test_queues_go_on_from_part_to_part(arrivals, cut, service, queue):
    arrivals.sort()
    whole, parts = tensors(arrivals), (tensors(arrivals[:cut]), tensors(arrivals[cut:]))
    for serve, options in ((fifo, ()), (drop_new, (queue,))):
        last = torch.zeros(4, dtype=torch.int64)
        found = torch.cat([serve(*part, service, *options, last).depart for part in parts])
        assert torch.equal(found, serve(*whole, service, *options).depart)


def test_random_streams_of_many_events_equal_a_plain_recursion():
    generator = torch.Generator().manual_seed(0)
    arrive = torch.randint(10**6, (200_000,), generator=generator)
    port = torch.randint(97, (200_000,), generator=generator)
    served = fifo(arrive, port, 431).depart
    free, expected = {}, [0] * len(arrive)
    for event in arrive.argsort(stable=True).tolist():
        free[int(port[event])] = expected[event] = max(int(arrive[event]), free.get(int(port[event]), 0)) + 431
    assert served.tolist() == expected


# Streams on platforms

FIFO = Platform("fifo", rows=4, timing="fifo", unit=1e-9, step=3, service=2)
MESH = Platform(
    "mesh", rows=4, timing="mesh", unit=1e-9, step=5, service=2, link=1, hop_x=3, hop_y=7, barrier=11, barrier_wide=42,
    wide=32, width=3,
)  # fmt: skip
DROP_OLD = replace(FIFO, queue=2, full="drop_old")
KINDS = [
    platforms.ideal(rows=4),
    FIFO,
    MESH,
    *(replace(platform, queue=2, full=full) for platform in (FIFO, MESH) for full in ("wait", "drop_new", "drop_old")),
]
PATTERNS = [Dense(), Dense().causal(), LocalWindow(9) | Sinks(2), Sinks(0)]


def stream(platform, pattern, n, seed):
    spots = torch.randperm(3 * n, generator=torch.Generator().manual_seed(seed))[:n].int()
    return Controller(platform).events(pattern.rows(n), Placement(spots // 4, spots % 4))


@given(st.sampled_from(KINDS), st.sampled_from(PATTERNS), st.integers(1, 20), SEEDS, st.integers(0, 200))
def test_events_are_conserved_under_every_model_and_policy(platform, pattern, n, seed, until):
    events = stream(platform, pattern, n, seed)
    for end in (None, until):
        timing = Controller(platform).simulate(events, end)
        assert timing.injected == len(events.time) == timing.delivered + timing.dropped + timing.in_flight
        assert min(timing.delivered, timing.dropped, timing.in_flight) >= 0
        assert timing.in_flight == 0 or end is not None
        assert timing.dropped == 0 or not platform.lossless
        assert timing.dropped == int((timing.depart == DROPPED).sum())


@given(st.sampled_from(PATTERNS), st.integers(1, 20), SEEDS)
def test_parts_give_what_the_whole_gives(pattern, n, seed):
    for platform in (FIFO, MESH, replace(FIFO, queue=2, full="drop_new"), replace(MESH, queue=2, full="drop_old")):
        events, controller = stream(platform, pattern, n, seed), Controller(platform)
        whole = controller.simulate(events)
        cuts = [0, *(2 * (k + 1) for k in range(n))]
        parts = [events.where((events.time >= a) & (events.time < b)) for a, b in pairwise(cuts)]
        found = controller.simulate(iter(parts))
        assert replace(found, depart=None).__dict__ == replace(whole, depart=None).__dict__


@given(st.sampled_from(PATTERNS), st.integers(1, 20), SEEDS)
def test_6_hops_and_latency(pattern, n, seed):
    events = stream(MESH, pattern, n, seed)
    timing = Controller(MESH).simulate(events)
    hops = 0
    for tile, query in zip(events.tile.tolist(), events.query.tolist(), strict=True):
        source = query // 4
        hops += abs(tile % 3 - source % 3) + abs(tile // 3 - source // 3)
    assert timing.hops == hops
    ideal = Controller(replace(MESH, timing="ideal")).simulate(events)
    longest = ideal.longest
    for service in (1, 2, 5, 9):
        for platform in (FIFO, MESH):
            timing = Controller(replace(platform, service=service)).simulate(events)
            assert timing.longest >= ideal.longest
        assert timing.longest >= longest
        longest = timing.longest


@given(st.sampled_from(PATTERNS), st.integers(1, 12), SEEDS)
def test_a_mesh_equals_a_simulation_of_each_step(pattern, n, seed):
    events = stream(MESH, pattern, n, seed)
    timing = Controller(MESH).simulate(events)
    rows = list(zip(*(x.tolist() for x in (events.time, events.tile, events.axis, events.query)), strict=True))
    expected, clock = [0] * len(rows), 0
    for step in sorted({row[0] for row in rows}):
        sent, arrivals = {}, []
        members = [k for k, row in enumerate(rows) if row[0] == step]
        for k in members:
            _, tile, axis, query = rows[k]
            source = query // 4
            sent[source] = sent.get(source, 0) + 1
            there = sent[source] + 3 * abs(tile % 3 - source % 3) + 7 * abs(tile // 3 - source // 3)
            arrivals.append((there, 2 * tile + axis))
        depart, _ = step_by_step(arrivals, 2)
        for k, time in zip(members, depart, strict=True):
            expected[k] = clock + time
        routers = len({rows[k][1] for k in members})
        clock += max(5, *depart) + 11 + 31 * (routers - 1) // 31
    assert timing.depart.tolist() == expected
    assert (timing.duration, timing.barriers) == (clock, len({row[0] for row in rows}))


def test_a_port_serves_one_event_after_another():
    """Dense attention of three tokens in one tile: three events a stage and query, each served for 2 units."""
    events = Controller(FIFO).events(Dense().rows(3), Placement.sequential(3, 4))
    timing = Controller(FIFO).simulate(events)
    # Steps come every 3 units; K serves queries at 0, 6, 12 and V at 3, 9, 15, so that no step meets another.
    assert timing.depart.tolist() == [2, 4, 6, 5, 7, 9, 8, 10, 12, 11, 13, 15, 14, 16, 18, 17, 19, 21]
    assert (timing.duration, timing.depth, timing.longest, timing.waited) == (21, 3, 6, 6 * (2 + 4 + 6))
    assert timing.seconds == pytest.approx(21e-9)
    assert timing.latency == pytest.approx(4e-9)
    assert timing.throughput == pytest.approx(18 / 21e-9)


def test_a_bounded_queue_that_loses_nothing_holds_events_back():
    events = Controller(FIFO).events(Dense().rows(3), Placement.sequential(3, 4))
    free, bounded = (Controller(platform).simulate(events) for platform in (FIFO, replace(FIFO, queue=2)))
    assert torch.equal(free.depart, bounded.depart)
    assert (free.stalled, bounded.stalled) == (0, 6)  # the third of each stage


def test_the_stream_of_a_long_sequence_comes_in_parts_of_whole_queries():
    controller, pattern = Controller(replace(FIFO, rows=64)), (LocalWindow(9) | Sinks(2)).causal()
    whole = controller.events(pattern.rows(200), Placement.sequential(200, 64))
    parts = list(controller.stream(pattern, 200, part=100))
    assert len(parts) > 10
    assert all(len(part.time) <= 100 for part in parts)
    for name in Events._fields:
        assert torch.equal(torch.cat([getattr(part, name) for part in parts]), getattr(whole, name))


@given(st.sampled_from(PATTERNS), st.integers(1, 40), st.integers(0, 9), st.integers(1, 300))
def test_rows_come_in_parts_of_whole_queries(pattern, n, first, part):
    controller, csr, placement = Controller(FIFO), pattern.rows(n, n + first), Placement.sequential(n + first, 4)
    whole = controller.events(csr, placement, first)
    # Each part is written over the one before.
    parts = [Events(*(x.clone() for x in each)) for each in controller.parts(csr, placement, first, part=part)]
    for each in parts:
        assert len(each.time) <= part or len(each.query.unique()) == 1
    for name in Events._fields:
        assert torch.equal(torch.cat([getattr(each, name) for each in parts]), getattr(whole, name))


def test_loihi_and_truenorth_take_the_times_that_are_published():
    one = Events(*(torch.zeros(1, dtype=x) for x in (torch.int64, torch.int32, torch.int32, torch.int8)), *(
        torch.ones(1, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
    ))  # fmt: skip
    far = one._replace(tile=torch.full((1,), 4 * 8 + 4, dtype=torch.int32))  # one router right, one down
    loihi = Controller(platforms.loihi1())
    near, away = loihi.simulate(one), loihi.simulate(far)
    assert near.seconds == pytest.approx((3.5 + 3.5 + 113) * 1e-9)
    assert away.seconds - near.seconds == pytest.approx((4.1 + 6.5) * 1e-9)
    assert (away.hops_x, away.hops_y) == (1, 1)
    assert Controller(platforms.truenorth()).simulate(one).seconds == pytest.approx(1e-3)


@pytest.mark.parametrize(
    ("make", "named"),
    [
        (lambda: replace(FIFO, full="drop_new"), "needs ports that fill up"),
        (lambda: replace(platforms.ideal(), queue=2, full="drop_new"), "needs ports that fill up"),
        (lambda: replace(FIFO, timing="slow"), "timing = 'slow'"),
        (lambda: replace(FIFO, queue=0), "queue = 0"),
        (lambda: replace(FIFO, hop_x=-1), "hop_x = -1"),
        (lambda: Controller(FIFO).simulate(backwards()), "not in order of time"),
        (lambda: Controller(FIFO).simulate(one_step()._replace(tile=torch.tensor([0, -9]).int())), "negative tile"),
        (lambda: Controller(MESH).simulate(one_step()._replace(tile=torch.tensor([-9, 0]).int())), "negative tile"),
        (lambda: Controller(MESH).simulate([one_step(), one_step()]), "give whole steps"),
        (lambda: Controller(DROP_OLD).simulate([one_step(), one_step()]), "give the stream whole"),
        (lambda: list(Controller(FIFO).stream(Dense(), 3, part=0)), "part = 0"),
    ],
)
def test_bad_input_is_named(make, named):
    with pytest.raises(InputError, match=named):
        make()


def one_step():
    return Controller(FIFO).events(Dense().rows(2), Placement.sequential(2)).of(Axis.COL).where(torch.tensor([0, 1]))


def backwards():
    return one_step()._replace(time=torch.tensor([1, 0]))
