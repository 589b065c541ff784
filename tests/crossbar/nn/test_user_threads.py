"""One model, run by several threads at once."""

import copy
import dataclasses
import threading
from concurrent.futures import ThreadPoolExecutor

import torch
from torch import nn

from crossbar import Ledger, Tile, bypassed, convert, presets, program, reset_reads
from tests.crossbar.conftest import inputs

NOISY = dataclasses.replace(presets.pcm(), tile=Tile(16, 8))


class Slow(nn.Module):
    """Lets other threads in."""

    def forward(self, x):
        threading.Event().wait(0.002)
        return x


def model(hardware=NOISY):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Linear(40, 30), Slow(), nn.Linear(30, 20), Slow(), nn.Linear(20, 10), nn.GELU())
    convert(net, hardware)
    program(net, 0)
    return net


def test_threads_get_what_each_would_get_alone():
    net, x = model(), inputs(5, 40)
    alone = [net(x) for _ in range(3)]
    assert not torch.equal(alone[0], alone[1])
    net = model()  # whose cells no thread has read yet
    ready = threading.Barrier(8)

    def run():
        ready.wait()
        return [net(x) for _ in range(3)]

    with ThreadPoolExecutor(8) as pool:
        found = [future.result() for future in [pool.submit(run) for _ in range(8)]]
    for outputs in found:
        assert all(torch.equal(*pair) for pair in zip(outputs, alone, strict=True))
    assert net[0].reads == 0  # this thread's


def test_a_reset_is_for_every_thread():
    net, x = model(), inputs(5, 40)
    with ThreadPoolExecutor(1) as pool:
        first, second = pool.submit(net, x).result(), pool.submit(net, x).result()
        assert not torch.equal(first, second)
        reset_reads(net)
        assert torch.equal(pool.submit(net, x).result(), first)


def test_a_copy_goes_on_where_its_model_was():
    net, x = model(), inputs(5, 40)
    net(x)
    assert torch.equal(copy.deepcopy(net)(x), net(x))


def test_bypassing_is_for_the_thread_that_asks():
    net, x = model(), inputs(5, 40)
    analog = net(x)
    reset_reads(net)
    with ThreadPoolExecutor(1) as pool, bypassed(net):
        digital = net(x)
        assert torch.equal(pool.submit(net, x).result(), analog)
        assert torch.equal(net(x), digital)
    assert not torch.equal(digital, analog)


def test_a_ledger_counts_what_its_own_thread_runs():
    net, x = model(), inputs(5, 40)
    with Ledger(net) as alone:
        net(x)
    with ThreadPoolExecutor(1) as pool, Ledger(net) as ledger:
        pool.submit(net, x).result()
        assert not ledger.by_layer
        net(x)
    assert ledger.to_dict() == alone.to_dict()
    assert alone.totals()["special_functions"] == 50
