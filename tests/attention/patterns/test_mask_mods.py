import pytest
import torch
from torch.nn.attention.flex_attention import create_block_mask, create_mask

from attention import LocalWindow, Pattern, PerHead, Sinks
from crossbar.errors import InputError

SLOPES = torch.tensor([2, 5])


def by_head(b, h, q_idx, kv_idx):
    """A function as users write them: closed over a tensor, with a window that differs by head."""
    return (q_idx - kv_idx).abs() <= SLOPES[h] + b


def test_causal_mode_takes_the_past():
    pattern = Pattern.from_mask_mod(by_head)
    assert torch.equal(pattern.causal().to_dense(20), pattern.to_dense(20).tril())
    assert str(pattern) == "<mask_mod by_head>"
    assert pattern == Pattern.from_mask_mod(by_head)


def test_heads_and_sequences_are_asked_for():
    pattern = Pattern.from_mask_mod(by_head, heads=2, sequences=3)
    assert (pattern.n_heads, pattern.n_sequences) == (2, 3)
    for b in range(3):
        for h, slope in enumerate((2, 5)):
            assert torch.equal(pattern.sequence(b).head(h).to_dense(20), LocalWindow(2 * (slope + b)).to_dense(20))
    assert torch.equal(
        create_mask(pattern.mask_mod, 3, 2, 20, 20, device="cpu"), create_mask(by_head, 3, 2, 20, 20, device="cpu")
    )


def test_create_block_mask_takes_lists():
    pattern = PerHead([LocalWindow(8), Sinks(3)]).causal()
    tiles = create_block_mask(pattern.mask_mod, 1, 2, 64, 64, device="cpu", BLOCK_SIZE=16).to_dense()
    assert tiles[0, 1].tolist() == [[1, 0, 0, 0]] * 4
    assert tiles[0, 0].tolist() == [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]


def test_chunks_make_the_same_rows(monkeypatch):
    pattern = Pattern.from_mask_mod(lambda b, h, q, k: (q + k) % 7 < 3)
    whole = pattern.rows(50, 60)
    monkeypatch.setattr("attention.patterns.mask_mods._PAIRS", 130)
    assert all(torch.equal(a, b) for a, b in zip(whole, pattern.rows(50, 60), strict=True))


@pytest.mark.parametrize(
    ("mask_mod", "named"),
    [
        (lambda b, h, q, k: (q - k).float(), r"<mask_mod <lambda>> gives torch.float32 \[\]: return one bool"),
        (lambda b, h, q, k: q - k, r"gives torch.int64 \[\]"),
        (lambda b, h, q, k: True, "gives True"),
        (lambda b, h, q, k: torch.ones(3, dtype=torch.bool), r"gives torch.bool \[3\]"),
        ("causal", "mask_mod 'causal' is not a function"),
    ],
)
def test_functions_that_do_not_give_a_bool_are_refused(mask_mod, named):
    with pytest.raises(InputError, match=named):
        Pattern.from_mask_mod(mask_mod)


def test_a_function_that_stops_giving_bool_is_refused_then():
    answers = iter([torch.tensor(True), torch.tensor(1.0)])
    pattern = Pattern.from_mask_mod(lambda b, h, q, k: next(answers))
    with pytest.raises(InputError, match="return one bool"):
        pattern.rows(3)


def test_numbers_of_heads_are_checked():
    with pytest.raises(InputError, match="heads = 0"):
        Pattern.from_mask_mod(by_head, heads=0)
