"""Jobs on a CPU inside ``with torch.device(...)`` find what they find outside: no tensor takes the default device."""

import pytest
import torch

import calibration
from calibration import Recipe
from calibration import recipe as recipes

STEPS = ("InputRanges", "WeightRanges", "LowRankAdapter", "DriftCompensation", "AdcRanges", "AffineCorrection")


def twice(job):
    """What a job measures outside, and inside a default device that has no numbers."""
    found = [job()]
    with torch.device("meta"):
        found.append(job())
    return [[(one.arm, one.metric, one.value) for one in result.measurements] for result in found]


def recipe(*names, **fields):
    kinds = {kind.__name__: kind for kind in recipes._KINDS}
    return Recipe("own", tuple(kinds[name](**fields) for name in names))


@pytest.mark.parametrize("steps", [recipe(*STEPS), recipe("Finetune", steps=2)], ids=["closed form", "trained"])
def test_a_calibration_is_the_same(net, task, steps):
    outside, inside = twice(lambda: calibration.calibrate(net, task, "pcm", steps, times="1d", wait="1h", chips=1))
    assert inside == outside


def test_an_emulation_with_a_pattern_and_a_memory_is_the_same(tiny_llama):
    class Sum:
        name, primary, ids = "sum", "sum", torch.arange(24).view(1, 24)

        def batches(self, split):
            return iter([{"input_ids": self.ids}])

        def metrics(self, model):
            with torch.no_grad():
                return {"sum": float(model(input_ids=self.ids).logits.double().sum())}

    outside, inside = twice(
        lambda: calibration.emulate(
            tiny_llama, Sum(), "pcm", pattern="window(8) | sinks(2)", memory="gain_cell", times="1h", chips=1
        )
    )
    assert inside == outside


@pytest.mark.parametrize("name", ["wordsim", "lee"])
def test_a_task_is_the_same(minilm, name):
    found = [calibration.tasks.get(name, minilm.tokenizer)]
    with torch.device("meta"):
        found.append(calibration.tasks.get(name, minilm.tokenizer))
    one, other = ([[*batch.values()] for batch in task.batches("evaluation")] for task in found)
    assert all(torch.equal(*pair) for x, y in zip(one, other, strict=True) for pair in zip(x, y, strict=True))
