"""A small network and task of a user's own, and the one real model, for the tests of the jobs."""

import pytest
import torch
from torch import nn

from calibration import load_model


class TinyNet(nn.Module):
    """Two linear layers on ``x`` ``[B, N, 24]``; padding changes nothing but what calibration may look at."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(24, 40), nn.Linear(40, 8)

    def forward(self, x, attention_mask=None):
        return self.second(torch.relu(self.first(x)))


class Agreement:
    """How close a model's outputs stay to those that the digital model gave when the task was made."""

    name = "agreement"
    primary = "closeness"

    def __init__(self, model):
        draw = torch.Generator().manual_seed(5)
        mask = torch.ones(4, 6, dtype=torch.int64)
        mask[0, 4:] = 0
        self.calibration = [{"x": torch.randn(4, 6, 24, generator=draw), "attention_mask": mask} for _ in range(3)]
        self.evaluation = torch.randn(50, 24, generator=draw)
        with torch.no_grad():
            self.expected = model(self.evaluation)

    def batches(self, split):
        return iter(self.calibration if split == "calibration" else [{"x": self.evaluation}])

    def metrics(self, model):
        with torch.no_grad():
            outputs = model(x=self.evaluation)
        error = (outputs - self.expected).norm() / self.expected.norm()
        return {"closeness": 1 - float(error), "signs": float((outputs.sign() == self.expected.sign()).double().mean())}


@pytest.fixture
def net():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return TinyNet().eval()


@pytest.fixture
def task(net):
    return Agreement(net)


@pytest.fixture(scope="session")
def minilm():
    return load_model("minilm")
