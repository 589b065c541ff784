"""Chunks of blocks: rows taken out and put back, in sizes that suit the device."""

import torch

import attention.kernel.chunks
from attention import BigBird, Dense, LocalWindow, Sinks, Strided
from attention.kernel.chunks import SCORES, chunks
from attention.kernel.schedule import make


def test_chunks_take_rows_and_put_them_back(monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 300, 4, generator=generator)
    for pattern in (LocalWindow(20) | Sinks(3), Strided(17), BigBird(32, 1).at(300), Dense()):
        for size in (1, 2**12, 2**19):
            monkeypatch.setattr(attention.kernel.chunks, "SCORES", size)
            reached = torch.zeros(300)
            for chunk in chunks(make(pattern, 300, 300), 6):
                assert torch.equal(chunk.take_queries(x), x[:, :, chunk.queries])
                assert torch.equal(chunk.take_keys(x), x[:, :, chunk.keys])
                total, wanted = torch.zeros_like(x), torch.zeros_like(x)
                chunk.add_keys(total, chunk.take_keys(x))
                for block in chunk.keys:
                    wanted.index_add_(2, block, x[:, :, block])
                torch.testing.assert_close(total, wanted)
                chunk.put_queries(total, chunk.take_queries(x) + 1)
                assert torch.equal(total[:, :, chunk.queries], x[:, :, chunk.queries] + 1)
                reached.index_add_(0, chunk.queries.flatten(), torch.ones(chunk.queries.numel()))
            assert (reached >= 1).all()


def test_chunks_are_small_on_a_cpu_alone():
    pattern, n = LocalWindow(64).causal(), 4096
    heads = 64
    own = [list(chunks(make(pattern, n, n, device=torch.device(d)), heads)) for d in ("cpu", "meta")]
    cpu, other = ([(c.last - c.first) * (c.high - c.low) * c.keys.shape[1] * heads for c in found] for found in own)
    assert sum(cpu) == sum(other)
    assert max(cpu) <= SCORES < max(other) <= 2**26
    groups = make(pattern, n, n).groups
    assert len(other) == len(groups) < len(cpu)
    # A single block is cut into rows where it is more than eight chunks.
    dense = chunks(make(Dense(), 128, n, device=torch.device("meta")), 4096)
    assert max((c.last - c.first) * (c.high - c.low) * c.keys.shape[1] * 4096 for c in dense) == 8 * 2**26
