"""Blocks as tasks of real Ray clusters of this machine: the bits of one process, beside a study, and after a kill."""

import json
import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest
import torch

from calibration import DriftCompensation, InputRanges, Recipe, WeightRanges, load_bundle, study
from calibration.calibrate import run_calibration
from calibration.emulate import run_emulation
from calibration.runs.request import Request
from crossbar import InputError
from tests.calibration.runs.test_streaming import SETTING, SIZES
from tests.calibration.studies import tiny

ray = pytest.importorskip("ray", reason="Ray is not installed: make test-studies")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("default")]  # Ray's own warnings are not ours to fix

SHORT = Recipe("short", (InputRanges(), WeightRanges(), DriftCompensation(reads=16)))


@pytest.fixture(scope="module")
def cluster():
    """Two cores."""
    from ray.cluster_utils import Cluster

    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 2, "include_dashboard": False})
    ray.init(address=cluster.address, log_to_driver=False)
    try:
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def request(folder, engine, **options):
    given = {"times": ["1h", "1d"], "chips": 3, "options": SIZES, **options}
    return Request.of(str(folder), given.pop("task", "perplexity"), stream=True, engine=engine, **given)


def calibrated(folder, engine, out, **options):
    return run_calibration(request(folder, engine, recipe=SHORT, wait="1h"), out=out, **options)


def same(first, second):
    """Whether bundles hold the same cells, absent ones among them, which are NaN."""
    one, other = (load_bundle(path).files for path in (first, second))
    assert one.entries.keys() == other.entries.keys()
    names = [name for name in one.entries if name.startswith(("states/", "tiles/"))]
    assert len(names) == 4 + 3 * 7 + 1  # states of three blocks and the head, tiles of their layers
    for name in names:
        tensors, others = one.tensors(name), other.tensors(name)
        assert tensors.keys() == others.keys()
        assert all(torch.equal(x.nan_to_num(-1.0), others[key].nan_to_num(-1.0)) for key, x in tensors.items())


def without_minutes(result):
    return {name: value for name, value in result.to_dict().items() if name != "minutes"}


@pytest.fixture(scope="module")
def alone(llama, tmp_path_factory):
    """The calibration in one process, and its bundle."""
    out = tmp_path_factory.mktemp("alone") / "bundle"
    return calibrated(llama, "local", out), out


def test_the_bits_of_one_process_beside_a_study(llama, alone, folder, cluster, tmp_path):
    config = tiny.config(folder, grid={"hardware.adc.bits": [4, 8], "seed": "0..1"})
    local, store = tmp_path / "local.sqlite", tmp_path / "ray.sqlite"
    study(config, store=local, workers=1)
    script = (
        "import json, sys, ray; from calibration import study; ray.init(address=sys.argv[1], log_to_driver=False); "
    )
    script += "study(json.loads(sys.argv[2]), store=sys.argv[3], engine='ray', workers=1)"
    command = [sys.executable, "-c", script, cluster.address, json.dumps(config), str(store)]
    beside = subprocess.Popen(command, **SETTING)
    told = []
    result = calibrated(llama, "ray", tmp_path / "bundle", progress=lambda *state: told.append(state))
    assert beside.wait() == 0
    assert tiny.scores(store) == tiny.scores(local)
    assert without_minutes(result) == without_minutes(alone[0])
    same(tmp_path / "bundle", alone[1])
    assert sorted(path.name for path in tmp_path.glob("*bundle*")) == ["bundle"]
    assert told[0] == (0, 12, "block 1 of 3, chip 0")  # three blocks and a head, three chips
    assert told[-1] == (11, 12, "head, chip 2")
    assert ray.is_initialized()  # a cluster that was there stays


def test_emulation_and_a_pattern(llama, cluster):
    options = {"pattern": "window(6) | sinks(2)", "times": ["1h"]}
    one, other = (run_emulation(request(llama, engine, **options)) for engine in ("local", "ray"))
    assert one.to_dict() == other.to_dict()


def test_a_job_that_was_stopped_goes_on_with_or_without_ray(llama, alone, cluster, tmp_path):
    class StoppedError(Exception):
        pass

    def stop(done, total, text):
        if text.startswith("block 3"):
            raise StoppedError

    for first, then in (("ray", "local"), ("local", "ray")):
        out = tmp_path / f"{then}"
        with pytest.raises(StoppedError):
            calibrated(llama, first, out, progress=stop)
        assert len(list(tmp_path.glob(f".{then}.*.progress/part-*/done.json"))) == 2
        told = []
        result = calibrated(llama, then, out, notify=told.append)
        assert told[0].startswith("goes on behind the 2 of 4 parts in ")
        assert without_minutes(result) == without_minutes(alone[0])
        same(out, alone[1])


def workers():
    """Processes of blocks, of clusters that this process started."""
    ours = {str(os.getpid())}
    parents = {}
    for path in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            command, stat = (path / "cmdline").read_bytes(), (path / "stat").read_text()
            parents[path.name] = (stat.rpartition(")")[2].split()[1], command.startswith(b"ray::_run"))
    for _ in range(4):  # raylets, and what they start
        ours |= {child for child, (parent, _) in parents.items() if parent in ours}
    return [int(child) for child, (_, runs) in parents.items() if runs and child in ours]


def test_workers_that_are_killed(llama, alone, cluster, tmp_path):
    """Ray runs their tasks again."""
    killed = []

    def progress(done, total, text):
        if done == 3 and not killed:
            killed.extend(workers())
            for worker in killed:
                os.kill(worker, signal.SIGKILL)

    result = calibrated(llama, "ray", tmp_path / "bundle", progress=progress)
    assert killed
    assert without_minutes(result) == without_minutes(alone[0])
    same(tmp_path / "bundle", alone[1])


def test_what_a_block_refuses_is_a_sentence(llama, cluster):
    class Curious:  # of this function, so that it is sent whole
        name, primary = "curious", "sum"

        def batches(self, split):
            return [{"input_ids": torch.arange(8).view(1, 8) + (split == "evaluation")}]

        @torch.no_grad()
        def metrics(self, model):
            first = model(input_ids=torch.arange(8).view(1, 8)).logits.argmax(-1)
            return {"sum": float(model(input_ids=first).logits.sum())}

    with pytest.raises(InputError, match="inputs that depend on its outputs"):
        run_emulation(request(llama, "ray", task=Curious(), options={}, chips=1))
