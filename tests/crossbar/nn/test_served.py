"""Who computes what: asked of the backends, and told by the report of a conversion."""

import dataclasses

import pytest
import torch
from torch import nn

from crossbar import Hardware, Tile, convert, presets, register_backend
from crossbar.backends.protocol import Read
from crossbar.nn.served import served


class Gpu:
    """Layers of float32 on a GPU, without gradients."""

    name, honours = "gpu", presets.pcm().features()

    def refuses(self, work, device, dtype, gradient):
        if device.type != "cuda":
            return f"tensors on {device.type}"
        return "gradients" if gradient else None if isinstance(work, Read) else "no layer"

    def multiply(self, read): ...

    read_columns = sense = age_rows = multiply


def by_work(hardware, device):
    return {one.work: str(one).removeprefix(one.work + " ") for one in served(hardware, device)}


def test_on_a_cpu():
    found = by_work(presets.pcm(), "cpu")
    assert found["layers"] == found["rows of a memory, each of its age"] == "by cpu"
    assert found["layers in training"] == "by eager (cpu: gradients)"
    tall = dataclasses.replace(presets.pcm(), tile=Tile(rows=8192))
    assert by_work(tall, "cpu")["layers"].startswith("by eager (cpu: tiles of more than ")


def test_a_backend_for_gpus_is_asked_there_and_nowhere_else(registries):
    before = {device: by_work(presets.pcm(), device) for device in ("cpu", "cuda")}
    register_backend(Gpu())
    assert by_work(presets.pcm(), "cpu") == before["cpu"]
    found = by_work(presets.pcm(), "cuda")
    assert found["layers"] == "by gpu"
    assert found["layers in training"] == "by eager (gpu: gradients)"
    assert found["attention over rows of cells"].startswith("by eager (gpu: no layer")


@pytest.mark.parametrize("hardware", [presets.ideal(), presets.gain_cell(), presets.hermes(), Hardware()])
def test_every_hardware_is_served(hardware):
    assert [one.work for one in served(hardware, "cpu")] == [one.work for one in served(hardware, "cuda")]
    assert len(served(hardware, "cpu")) == 4


def test_the_report_of_a_conversion_says_it_where_it_is_not_the_cpu():
    model = nn.Sequential(nn.Linear(6, 4))
    report = convert(model, presets.pcm())
    assert report.device == "cpu"
    assert report.to_dict()["backends"]["layers"] == {"backend": "cpu", "passed": {}}
    assert "layers by" not in str(report)
    gone = dataclasses.replace(report, device="cuda", served=served(presets.pcm(), torch.device("cuda")))
    assert str(gone).splitlines()[-1].startswith("on cuda: layers by ")
