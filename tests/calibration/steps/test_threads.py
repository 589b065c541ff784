"""What steps fit has the same bits with any number of threads."""

import os

import torch
from torch import nn

from calibration import recipe
from calibration.steps.protocol import Stage
from calibration.threads import one_thread, strict_products
from crossbar import Converter, Hardware, Tile, age, convert, presets, program

STRICT = "STRICT" in os.environ.get("MKL_CBWR", "")  # what `calibration` asks MKL for, unless the user asked otherwise


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.norm, self.second = nn.Linear(384, 256), nn.LayerNorm(256), nn.Linear(256, 130)

    def forward(self, x):
        return self.second(torch.relu(self.norm(self.first(x))))


def same(found, other):
    assert found.keys() == other.keys()
    for name, values in found.items():
        assert torch.equal(values, other[name]) if STRICT else torch.allclose(values, other[name], rtol=1e-3), name


def test_fits_of_fast_do_not_depend_on_threads():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model, batches = Net().eval(), [{"x": torch.randn(1, tokens, 384) ** 3} for tokens in (7, 50, 70, 300)]
    pcm = presets.pcm()
    convert(model, Hardware(**{**vars(pcm), "tile": Tile(128, 128), "adc": Converter(full_scale=8.0)}))
    threads, programmed = torch.get_num_threads(), False
    try:
        for step in recipe.get("fast").steps:
            if step.stage is not Stage.BEFORE_PROGRAMMING and not programmed:
                program(model, 0)
                age(model, "1d")
                programmed = True
            fits = []
            for count in (1, 2, 3):
                torch.set_num_threads(count)
                fits.append(step.fit(model, batches))
            assert fits[0]
            for other in fits[1:]:
                same(fits[0], other)
            step.apply(model, fits[0])
    finally:
        torch.set_num_threads(threads)


def test_what_the_user_asked_mkl_for_stays(monkeypatch):
    monkeypatch.setenv("MKL_CBWR", "COMPATIBLE")
    strict_products()
    assert os.environ["MKL_CBWR"] == "COMPATIBLE"


def test_one_thread_is_given_back():
    threads = torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        with one_thread():
            assert torch.get_num_threads() == 1
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
