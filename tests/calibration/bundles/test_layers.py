"""Bundles of models whose matrices are in experts and convolutions: the same bits after loading."""

import pytest
import torch
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    MixtralConfig,
    MixtralForCausalLM,
    ResNetConfig,
    ResNetForImageClassification,
)

from calibration import Recipe, calibrate, load_bundle
from calibration.steps.affine import AffineCorrection
from calibration.steps.batch_norms import BatchNormStatistics
from calibration.steps.compensation import DriftCompensation
from calibration.steps.ranges import InputRanges
from crossbar import analog_layers, presets, reset_reads

CONFIGS = {
    "mixtral": MixtralConfig(
        vocab_size=40,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        num_local_experts=3,
        max_position_embeddings=32,
        pad_token_id=None,
    ),
    "resnet": ResNetConfig(embedding_size=4, hidden_sizes=[8, 12], depths=[1, 1], layer_type="basic", num_labels=5),
}
KINDS = {"mixtral": MixtralForCausalLM, "resnet": ResNetForImageClassification}
RECIPE = Recipe("short", (InputRanges(), DriftCompensation(reads=16), AffineCorrection(2), BatchNormStatistics(2)))


class Agreement:
    """How close the scores are to those of the digital model."""

    name, primary = "agreement", "closeness"

    def __init__(self, model):
        draw = torch.Generator().manual_seed(5)
        if isinstance(model, MixtralForCausalLM):
            given = [{"input_ids": torch.randint(0, 40, (2, 8), generator=draw)} for _ in range(3)]
        else:
            given = [{"pixel_values": torch.rand(2, 3, 32, 32, generator=draw)} for _ in range(3)]
        *self.calibration, self.evaluation = given
        with torch.no_grad():
            self.expected = model(**self.evaluation).logits

    def batches(self, split):
        return iter(self.calibration if split == "calibration" else [self.evaluation])

    def metrics(self, model):
        with torch.no_grad():
            found = model(**self.evaluation).logits
        return {"closeness": 1 - float((found - self.expected).norm() / self.expected.norm())}


@pytest.fixture(params=KINDS)
def model(request):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = KINDS[request.param](CONFIGS[request.param]).eval()
        for norm in (m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)):
            norm.running_mean.normal_()
            norm.running_var.uniform_(0.5, 2.0)
    return model


@pytest.mark.filterwarnings("ignore:.*stays digital.*")
def test_the_same_bits_after_loading(model, tmp_path):
    task = Agreement(model)
    result = calibrate(
        model, task, presets.pcm(), recipe=RECIPE, times=["1d"], chips=1, staircase=False, out=tmp_path / "bundle"
    )
    first, second = (load_bundle(tmp_path / "bundle") for _ in range(2))
    assert type(first.model) is type(model)
    assert any(".tiles." in name for name in analog_layers(first.model))
    assert task.metrics(first.model)["closeness"] == result.values("calibrated")[0]
    reset_reads(first.model)
    with torch.no_grad():
        assert torch.equal(first.model(**task.evaluation).logits, second.model(**task.evaluation).logits)
    # exported, the folder computes what the cells stand for, without converters and noise
    first.export(tmp_path / "plain")
    kind = AutoModelForCausalLM if isinstance(model, MixtralForCausalLM) else AutoModelForImageClassification
    plain = kind.from_pretrained(tmp_path / "plain")
    closeness = task.metrics(plain)["closeness"]
    assert abs(closeness - result.values("calibrated")[0]) < 0.1
    assert closeness != 1.0
