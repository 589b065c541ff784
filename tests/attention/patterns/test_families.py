"""The contract that every family of patterns keeps, each beside its definition, transcribed pair by pair.

A definition is a function ``(i, j, n, causal)``; causality itself, j <= i, is added by `expected`.
"""

import copy
import dataclasses
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.nn.attention.flex_attention import create_block_mask

from attention import (
    BigBird,
    BlockSparse,
    Dense,
    Dilated,
    Documents,
    Fixed,
    GlobalTokens,
    LocalWindow,
    Neighborhood,
    Padding,
    Pattern,
    RandomBlocks,
    Sinks,
    Strided,
    parse,
)
from attention.patterns.strides import Apart
from crossbar.errors import InputError

LONGEST = 48
LAYOUT = torch.rand(10, 10, generator=torch.Generator().manual_seed(0)) < 0.4
IDS = torch.tensor([0] * 9 + [1] * 20 + [-1] * 2 + [7] * 9 + [1] * 3 + [-1] * 5)
REAL = torch.tensor([True] * 30 + [False] * 4 + [True] * 10 + [False] * 4)


def window(size):
    return lambda i, j, n, causal: i - size < j if causal else abs(i - j) <= size // 2


def neighborhood(kernel, dilation=1):
    """NATTEN's rule in the class of residue: clamp the centre, take the kernel."""

    def attends(i, j, n, causal):
        if (i - j) % dilation:
            return False
        place, other = i // dilation, j // dilation
        size = len(range(i % dilation, n, dilation))
        centre = min(max(place, kernel // 2), max(size - 1 - kernel // 2, kernel // 2))
        return abs(centre - other) <= kernel // 2

    return attends


def union(*definitions):
    return lambda i, j, n, causal: any(d(i, j, n, causal) for d in definitions)


def intersection(*definitions):
    return lambda i, j, n, causal: all(d(i, j, n, causal) for d in definitions)


def random_blocks(pattern):
    """The draw itself is tested apart; here, that pairs are those of the blocks drawn."""

    def attends(i, j, n, causal):
        mode = pattern.causal() if causal else pattern
        return j // pattern.block in mode._drawn(n)[i // pattern.block]

    return attends


def bigbird(pattern):
    drawn = random_blocks(pattern)

    def attends(i, j, n, causal):
        row, column, last = i // pattern.block, j // pattern.block, (n - 1) // pattern.block
        near = column in (0, row - 1, row, row + 1, last)
        return row in (0, last) or near or drawn(i, j, n, causal)

    return attends


def everything(i, j, n, causal):
    return True


def sinks(number):
    return lambda i, j, n, causal: j < number


def tokens(*chosen):
    return lambda i, j, n, causal: i in chosen or j in chosen


def layout(i, j, n, causal):
    return LAYOUT[i // 5, j // 5]


def document(i, j, n, causal):
    return IDS[i] == IDS[j] != -1


def real(i, j, n, causal):
    return REAL[j]


def strided(step):
    return lambda i, j, n, causal: abs(i - j) <= step or (i - j) % step == 0


def fixed(step, c, sub=0):
    return lambda i, j, n, causal: i // step == j // step or step - c * (sub + 1) <= j % step < step - c * sub


FAMILIES = {
    "dense": (Dense(), everything),
    "window even": (LocalWindow(6), window(6)),
    "window odd": (LocalWindow(9), window(9)),
    "window one": (LocalWindow(1), window(1)),
    "dilated": (Dilated(12, 3), lambda i, j, n, causal: window(12)(i, j, n, causal) and (i - j) % 3 == 0),
    "dilated by one": (Dilated(7, 1), window(7)),
    "dilated past the window": (Dilated(4, 50), lambda i, j, n, causal: i == j),
    "strided": (Strided(6), strided(6)),
    "strided by one": (Strided(1), everything),
    "strided, local": (Strided(5, part="local"), lambda i, j, n, causal: abs(i - j) <= 5),
    "strided, stride": (Strided(5, part="stride"), lambda i, j, n, causal: (i - j) % 5 == 0),
    "fixed": (Fixed(8, 3), fixed(8, 3)),
    "fixed, second sub-block": (Fixed(8, 3, 1), fixed(8, 3, 1)),
    "fixed, all": (Fixed(4, 4), everything),
    "layout": (BlockSparse(LAYOUT, 5), layout),
    "sinks": (Sinks(4), sinks(4)),
    "no sinks": (Sinks(0), lambda i, j, n, causal: False),
    "global": (GlobalTokens((7, 0, 3)), tokens(0, 3, 7)),
    "random": (RandomBlocks(2, 5, 1), random_blocks(RandomBlocks(2, 5, 1))),
    "bigbird": (BigBird(4, 2), bigbird(BigBird(4, 2))),
    "bigbird, seed": (BigBird(3, 1, 5), bigbird(BigBird(3, 1, 5))),
    "neighborhood": (Neighborhood(7), neighborhood(7)),
    "neighborhood, dilated": (Neighborhood(5, 3), neighborhood(5, 3)),
    "documents": (Documents(IDS), document),
    "padding": (Padding(REAL), real),
    "mask_mod": (
        Pattern.from_mask_mod(lambda b, h, q, k: (q * 7 + k * 4) % 3 == 0),
        lambda i, j, n, causal: (i * 7 + j * 4) % 3 == 0,
    ),
    "apart": (Apart(2), lambda i, j, n, causal: abs(i - j) >= 2),
    "union": (
        LocalWindow(5) | Sinks(2) | GlobalTokens((4,)) | Strided(7),
        union(window(5), sinks(2), tokens(4), strided(7)),
    ),
    "intersection": (
        (LocalWindow(9) | GlobalTokens((0, 2))) & (Sinks(6) | LocalWindow(4)),
        intersection(union(window(9), tokens(0, 2)), union(sinks(6), window(4))),
    ),
    "packed": (
        (Strided(4) | Fixed(6, 2)) & Documents(IDS) & Padding(REAL),
        intersection(union(strided(4), fixed(6, 2)), document, real),
    ),
    "sized": (
        Neighborhood(9) & Strided(3) | BigBird(4, 1),
        union(intersection(neighborhood(9), strided(3)), bigbird(BigBird(4, 1))),
    ),
}
TEXTLESS = {"layout", "documents", "padding", "mask_mod", "apart", "packed"}
LENGTH_DEPENDENT = {"random", "bigbird", "bigbird, seed", "neighborhood", "neighborhood, dilated", "sized"}
SHIFT_INVARIANT = {
    *("dense", "window even", "window odd", "window one", "dilated", "dilated by one", "dilated past the window"),
    *("strided", "strided by one", "strided, local", "strided, stride", "apart"),
}


def expected(definition, n, causal):
    """The dense matrix of a definition, asked pair by pair."""
    return [[bool(definition(i, j, n, causal)) and (j <= i or not causal) for j in range(n)] for i in range(n)]


CASES = [
    pytest.param(pattern.causal() if causal else pattern, definition, causal, id=f"{name}{', causal' * causal}")
    for name, (pattern, definition) in FAMILIES.items()
    for causal in (False, True)
]
every_pattern = pytest.mark.parametrize(("pattern", "definition", "causal"), CASES)


def names(chosen):
    return [pytest.param(mode, id=str(mode)) for name in sorted(chosen) for mode in modes(name)]


def modes(name):
    pattern = FAMILIES[name][0]
    return pattern, pattern.causal()


def asked(pattern, n):
    """The dense matrix of a pattern, asked pair by pair."""
    position = torch.arange(n)
    return pattern.allowed(*torch.broadcast_tensors(position[:, None], position))


@every_pattern
@settings(max_examples=6)
@given(n=st.integers(1, LONGEST))
def test_to_dense_and_allowed_are_the_definition(pattern, definition, causal, n):
    matrix = expected(definition, n, causal)
    assert pattern.to_dense(n).tolist() == matrix
    assert asked(pattern.at(n), n).tolist() == matrix


@every_pattern
@settings(max_examples=6)
@given(data=st.data())
def test_rows_are_the_definition_at_every_offset(pattern, definition, causal, data):
    n_keys = data.draw(st.integers(1, LONGEST), "n_keys")
    last = LONGEST if pattern.length_invariant else n_keys
    offset = data.draw(st.integers(0, last - 1), "offset")
    n_queries = data.draw(st.integers(1, last - offset), "n_queries")
    indptr, indices = pattern.rows(n_queries, n_keys, offset)
    assert indptr.dtype == indices.dtype == torch.int64
    rows = [indices[a:b].tolist() for a, b in itertools.pairwise(indptr)]
    n = max(n_keys, offset + n_queries)
    matrix = [[bool(definition(i, j, n_keys, causal)) and (j <= i or not causal) for j in range(n)] for i in range(n)]
    assert rows == [[j for j in range(n_keys) if matrix[offset + i][j]] for i in range(n_queries)]


@every_pattern
def test_mask_mod_agrees_and_flex_attention_takes_it(pattern, definition, causal):
    n = 37
    mask_mod, dense = pattern.at(n).mask_mod, pattern.to_dense(n)
    zero, position = torch.zeros((), dtype=torch.int64), torch.arange(n)
    direct = mask_mod(zero, zero, position[:, None], position)
    assert direct.dtype == torch.bool
    assert torch.equal(direct, dense)
    tiles = create_block_mask(mask_mod, 1, 1, n, n, device="cpu", BLOCK_SIZE=16).to_dense()[0, 0]
    touched = torch.nn.functional.pad(dense, (0, 11, 0, 11)).view(3, 16, 3, 16).any(3).any(1)
    assert torch.equal(tiles.bool(), touched)


@every_pattern
def test_a_mask_mod_makes_the_pattern_again(pattern, definition, causal):
    again = Pattern.from_mask_mod(pattern.at(LONGEST).mask_mod)
    assert torch.equal(again.to_dense(LONGEST), pattern.to_dense(LONGEST))


@every_pattern
def test_causal_never_attends_the_future_and_is_idempotent(pattern, definition, causal):
    mode = pattern.causal()
    assert mode.is_causal
    assert mode.causal() == mode
    assert pattern.is_causal == causal
    assert not mode.to_dense(33).triu(1).any()


@every_pattern
def test_a_pattern_is_a_value(pattern, definition, causal):
    twin = copy.deepcopy(pattern)
    assert twin == pattern
    assert hash(twin) == hash(pattern)
    assert pattern != LocalWindow(1000)
    with pytest.raises(dataclasses.FrozenInstanceError):
        pattern.is_causal = True
    assert pattern.is_static
    assert pattern.select(None, None) == pattern
    assert pattern.head(3) == pattern.sequence(2) == pattern
    assert pattern.n_heads is pattern.n_sequences is None


@every_pattern
def test_pieces_are_disjoint_and_make_the_whole(pattern, definition, causal):
    n = 47
    query, key = torch.broadcast_tensors(torch.arange(n)[:, None], torch.arange(n))
    times = torch.zeros(n, n, dtype=torch.int64)
    for piece, stride in pattern.at(n).pieces():
        pairs = piece.allowed(query // stride, key // stride) & ((query - key) % stride == 0)
        times += pairs
        inner = -(-n // stride)
        assert torch.equal(asked(piece, inner), piece.to_dense(inner))
    assert torch.equal(times, pattern.to_dense(n).long())


@pytest.mark.parametrize("name", FAMILIES)
def test_text_round_trip(name):
    for pattern in modes(name):
        if name in TEXTLESS:
            with pytest.raises(InputError, match="made of tensors or functions has no text"):
                parse(str(pattern))
        else:
            assert parse(str(pattern)) == pattern
            assert hash(parse(str(pattern))) == hash(pattern)


@pytest.mark.parametrize("pattern", names(FAMILIES.keys() - LENGTH_DEPENDENT))
def test_pairs_do_not_depend_on_the_length(pattern):
    assert pattern.length_invariant
    assert pattern.at(30) == pattern
    whole = pattern.to_dense(LONGEST)
    assert all(torch.equal(pattern.to_dense(n), whole[:n, :n]) for n in (1, 10, 31))
    pattern.require_decodable(10)


@pytest.mark.parametrize("pattern", names(LENGTH_DEPENDENT))
def test_pairs_that_depend_on_the_length_cannot_decode_until_it_is_bound(pattern):
    assert not pattern.length_invariant
    pattern.require_decodable(0)
    if pattern.is_causal:
        with pytest.raises(InputError, match="cannot decode from position 10, because it depends on the length"):
            pattern.require_decodable(10)
    bound = pattern.at(40)
    assert bound.length_invariant
    assert bound != pattern
    assert bound.at(20) == bound
    bound.require_decodable(10)
    assert torch.equal(bound.rows(1, 31, 30).indices, pattern.to_dense(40)[30, :31].nonzero()[:, 0])
    with pytest.raises(InputError, match="that of 40 tokens and cannot have 41"):
        bound.rows(41)
    with pytest.raises(InputError, match="made of tensors or functions has no text"):
        parse(str(bound))
    with pytest.raises(InputError, match=r"depends on the length of the sequence: bind it with pattern.at\(n\)"):
        asked(pattern, 10)


@pytest.mark.parametrize("name", FAMILIES)
def test_shift_invariance_is_declared(name):
    for pattern in modes(name):
        assert pattern.shift_invariant == (name in SHIFT_INVARIANT)
        if name != "no sinks" and name != "fixed, all":  # nothing is attended, or all, wherever it stands
            n = LONGEST
            dense = pattern.to_dense(n)
            stays = all(torch.equal(dense[k:, k:], dense[: n - k, : n - k]) for k in range(1, n))
            assert stays == pattern.shift_invariant


@pytest.mark.parametrize("n", [1023, 1024, 1025, 2100])
def test_long_rows_are_made_in_chunks(n):
    pattern = Strided(30).causal()
    whole = pattern.rows(n)
    first, rest = pattern.rows(1000, n), pattern.rows(n - 1000, n, 1000)
    assert torch.equal(whole.indices, torch.cat([first.indices, rest.indices]))
    assert torch.equal(whole.indptr, torch.cat([first.indptr, rest.indptr[1:] + first.indptr[-1]]))


@pytest.mark.parametrize("name", FAMILIES)
def test_a_pattern_first_used_for_inference_can_be_trained_with(name):
    pattern = FAMILIES[name][0]
    with torch.inference_mode():
        twin = copy.deepcopy(pattern)
        kept = twin.to_dense(20)
    assert torch.equal(twin.to_dense(20), kept)
    assert torch.equal(asked(twin.at(20), 20), kept)


def test_memory_follows_the_attended_pairs():
    n = 300_000  # n² would be 90 GB
    csr = (LocalWindow(9) | Sinks(4) | GlobalTokens((5,)) | BigBird(4, 1).at(n)).causal().rows(n)
    assert len(csr.indices) < 50 * n
