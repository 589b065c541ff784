"""Calibration data in evaluation data are refused, whatever they are."""

import pytest
import torch

from calibration import calibrate, tasks
from calibration.runs.climb import Climb
from calibration.runs.experiment import Experiment
from calibration.runs.overlap import require_disjoint
from calibration.runs.request import Request
from crossbar import InputError

MESSAGE = "sample 1 of task 'mine' for calibration is in its evaluation data too"


class Mine:
    name, primary = "mine", "closeness"

    def __init__(self, calibration, evaluation):
        self.splits = {"calibration": calibration, "evaluation": evaluation}

    def batches(self, split):
        return iter(self.splits[split])


def ids(*rows, mask=None):
    batch = {"input_ids": torch.tensor(rows)}
    return batch if mask is None else {**batch, "attention_mask": torch.tensor(mask)}


def test_equal_texts_whatever_their_padding():
    scored = [ids([7, 8, 9, 0], [1, 2, 3, 4], mask=[[1, 1, 1, 0], [1, 1, 1, 1]])]
    require_disjoint(Mine([ids([7, 8, 9, 9])], scored))
    with pytest.raises(InputError, match=MESSAGE):
        require_disjoint(Mine([ids([5, 5, 5]), ids([7, 8, 9])], scored))


@pytest.mark.parametrize(("shared", "overlaps"), [(63, False), (64, True)])
def test_64_tokens_in_a_row_at_other_places(shared, overlaps):
    draw = torch.Generator().manual_seed(0)
    scored, fitted = (torch.randint(0, 10**6, (2, 200), generator=draw) for _ in range(2))
    fitted[1, 31 : 31 + shared] = scored[0, 100 : 100 + shared]
    task = Mine([{"input_ids": fitted}], [{"input_ids": scored}])
    if overlaps:
        with pytest.raises(InputError, match=MESSAGE):
            require_disjoint(task)
    else:
        require_disjoint(task)


def test_what_is_trained_on_counts_too():
    class Trains(Mine):
        def training_batches(self):
            return [ids([5, 5, 5]), ids([7, 8, 9])]

    require_disjoint(Trains([ids([1, 2, 3])], [ids([4, 4, 4])]))
    with pytest.raises(InputError, match="sample 1 of task 'mine' for training is in its evaluation data too"):
        require_disjoint(Trains([ids([1, 2, 3])], [ids([7, 8, 9])]))


def test_samples_that_are_not_tokens():
    draw = torch.Generator().manual_seed(0)
    scored, fitted = (torch.randn(3, 4, 5, generator=draw) for _ in range(2))
    require_disjoint(Mine([{"x": fitted}], [{"x": scored}]))
    fitted[1] = scored[2]
    with pytest.raises(InputError, match=MESSAGE):
        require_disjoint(Mine([{"x": fitted}], [{"x": scored}]))


def test_calibrate_refuses_before_it_scores(net, task):
    class Cheating:
        name, primary = "cheating", "closeness"

        def batches(self, split):
            return task.batches("evaluation")

        def metrics(self, model):
            raise AssertionError("scored")

    with pytest.raises(InputError, match="is in its evaluation data too"):
        calibrate(net, Cheating(), times=["1d"], chips=1)


@pytest.mark.parametrize("name", ["code-search", "lee", "wordsim"])
def test_the_splits_of_encoder_tasks_are_disjoint(minilm, name):
    require_disjoint(tasks.get(name, minilm.tokenizer))


def test_a_score_at_the_time_of_the_fit_is_refused(net, task):
    climb = Climb(Experiment.prepare(Request.of(net, task)))
    climb.program(0)
    for seconds in (3600.0, 3599.0):
        with pytest.raises(InputError, match=r"fitted at 3600 s cannot be scored at .*, whose noise it knows"):
            climb._score_chip(climb._bench, "calibrated", 0, seconds, fitted=3600.0)
