"""Metrics, above all that a broken model never scores well."""

import math

import pytest
import torch

from calibration.tasks import scores


def test_ranks_of_a_small_example():
    similarity = torch.tensor([[0.9, 0.1, 0.2], [0.3, 0.2, 0.1], [0.7, 0.6, 0.5]])
    assert scores.ranks(similarity).tolist() == [1, 2, 3]


def test_ties_count_against_the_model():
    assert scores.ranks(torch.tensor([[0.5, 0.5], [0.1, 0.5]])).tolist() == [2, 1]
    assert scores.ranks(torch.ones(20, 20)).tolist() == [20] * 20


@pytest.mark.parametrize("where", ["all", "own", "others"])
def test_nan_counts_against_the_model(where):
    similarity = torch.eye(4)
    if where == "all":
        similarity[:] = math.nan
    elif where == "own":
        similarity.fill_diagonal_(math.nan)
    else:
        similarity[similarity == 0] = math.nan
    assert scores.ranks(similarity).tolist() == [4] * 4


def test_recall_and_reciprocal_rank():
    ranks = torch.tensor([1, 2, 10, 11])
    assert scores.recall_at_1(ranks) == 0.25
    assert scores.mrr_at_10(ranks) == pytest.approx((1 + 1 / 2 + 1 / 10) / 4)


@pytest.mark.parametrize("kind", ["pearson", "spearman"])
def test_correlation(kind):
    human = torch.tensor([1.0, 2.0, 3.0, 5.0])
    assert scores.correlation(2 * human + 1, human, kind) == pytest.approx(1)
    assert scores.correlation(-human, human, kind) == pytest.approx(-1)
    assert scores.correlation(torch.ones(4), human, kind) == 0
    assert scores.correlation(torch.tensor([1.0, 2.0, math.nan, 5.0]), human, kind) == 0


def test_spearman_is_of_ranks_and_pearson_is_not():
    human = torch.tensor([1.0, 2.0, 3.0, 5.0])
    assert scores.correlation(human.exp(), human, "spearman") == pytest.approx(1)
    assert scores.correlation(human.exp(), human, "pearson") < 0.99
