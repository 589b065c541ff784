import pytest
import torch
from matplotlib.figure import Figure

import attention.patterns.picture
from attention import BigBird, Dense, GlobalTokens, LocalWindow, PerHead, Sinks, Strided, TopK
from crossbar.errors import InputError


@pytest.mark.parametrize(
    "pattern", [Dense(), Sinks(0), LocalWindow(9) | GlobalTokens((3,)), Strided(30).causal(), BigBird(16, 2)]
)
@pytest.mark.parametrize(("n", "tile"), [(1, 64), (100, 7), (1030, 64), (1100, 2000)])
def test_statistics_are_those_of_the_dense_matrix(pattern, n, tile):
    dense, stats = pattern.to_dense(n), pattern.stats(n, tile=tile)
    across = -(-n // tile)
    rest = across * tile - n
    squares = torch.nn.functional.pad(dense, (0, rest, 0, rest)).view(across, tile, across, tile).any(3).any(1)
    assert stats.pairs == int(dense.sum())
    assert stats.density == pytest.approx(dense.double().mean().item())
    assert stats.rows_opened == pytest.approx(dense.sum(1).double().mean().item())
    assert stats.most_rows_opened == int(dense.sum(1).max())
    assert (stats.touched_tiles, stats.tiles) == (int(squares.sum()), across**2)


def test_text_of_statistics():
    stats = (LocalWindow(8) | Sinks(2)).causal().stats(64, tile=16)
    assert str(stats) == (
        "595 of 64² pairs (14.53%), 9.3 rows a query (most 10), 9 of 16 tiles of 16 (56.2%), O(n w) + O(n s)"
    )
    assert (Dense() & Strided(8)).cost == "min(O(n²), O(n (l + n / l)))"
    assert PerHead([Dense(), Sinks(1), Dense()]).cost == "O(n²), O(n s)"


def test_a_picture_is_the_dense_matrix():
    pattern = LocalWindow(9) | Sinks(4)
    axes = pattern.plot(40)
    drawn = torch.tensor(axes.images[0].get_array())
    assert torch.equal(drawn, pattern.to_dense(40).float())
    assert axes.get_title() == "window(9) | sinks(4)"
    mine = Figure().add_subplot()
    assert pattern.plot(10, axes=mine) is mine


def test_a_picture_of_a_long_sequence_is_made_of_shares(monkeypatch):
    monkeypatch.setattr(attention.patterns.picture, "_CELLS", 10)
    drawn = torch.tensor(LocalWindow(900).plot(2000).images[0].get_array())
    shares = LocalWindow(900).to_dense(2000).float().view(10, 200, 10, 200).mean((1, 3))
    torch.testing.assert_close(drawn, shares.sqrt())


def test_lists_and_choices_have_no_picture():
    with pytest.raises(InputError, match="choose with"):
        PerHead([Dense(), Sinks(1)]).plot(8)
    with pytest.raises(InputError, match="make it static"):
        TopK(4).stats(8)
