"""Which chips a job is about, and where: refused up front, in Python and on the command line (issue 18)."""

import json

import pytest

from attention import Memory
from calibration import DriftCompensation, Finetune, InputRanges, LowRankAdapter, Recipe, ReprogramWorst, calibrate
from calibration import emulate as emulate_
from calibration.energy import energy
from crossbar import InputError, presets
from tests.calibration.command import assert_one_sentence, run

HUGE = 1_000_000_000_000
PLAIN = Recipe("plain", (InputRanges(), DriftCompensation()))


@pytest.mark.parametrize("job", [emulate_, calibrate])
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chips": HUGE}, "chips = 1000000000000 is not allowed: give a whole number from 1 to 10000"),
        ({"chips": True}, "chips = True is not allowed"),
        ({"seed": -1}, "seed = -1 is not allowed: give a whole number from 0"),
        ({"seed": 2**63}, "seed = 9223372036854775808 is not allowed"),
        ({"seed": 2**63 - 3, "chips": 3}, "seed = 9223372036854775805 is not allowed"),
        ({"seed": 0.5}, "seed = 0.5 is not allowed"),
        ({"device": "tpu"}, "device 'tpu' is not known: choose cpu, cuda, or a GPU by number"),
        ({"device": "cuda:x"}, "device 'cuda:x' is not known"),
        ({"device": "cuda:999"}, "device 'cuda:999' is not there, torch finds .* GPU"),
        ({"device": 0}, "device 0 is not known"),
    ],
)
def test_refusals(net, task, job, options, message):
    with pytest.raises(InputError, match=message):
        job(net, task, **options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"population": HUGE}, "population = 1000000000000 is not allowed: give a whole number from 1 to 10000"),
        ({"population": 2, "seed": 999_999}, "seeds 999999 to 1000001 would be fitted on and scored"),
        ({"population": 2, "seed": 1_000_001}, "seeds 1000001 to 1000003 would be fitted on and scored"),
    ],
)
def test_populations_that_cannot_be(net, task, options, message):
    with pytest.raises(InputError, match=message):
        calibrate(net, task, recipe=PLAIN, **options)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Memory(presets.pcm(), capacity=HUGE),
        lambda: DriftCompensation(reads=HUGE),
        lambda: ReprogramWorst(reads=HUGE),
        lambda: LowRankAdapter(rank=HUGE),
        lambda: Finetune(steps=HUGE),
        lambda: Finetune(accumulate=HUGE),
    ],
)
def test_counts_that_cannot_be_meant(make):
    with pytest.raises(InputError, match=r"= 1000000000000 is not allowed: give a whole number from 1 to"):
        make()


@pytest.mark.parametrize("options", [{"seed": -1}, {"device": "tpu"}])
def test_energy_refuses_before_it_loads(options):
    with pytest.raises(InputError, match=next(iter(options))):
        energy("absent", **options)


def test_a_chip_is_its_seed_however_many_there_are(net, task):
    """Chips 5 and 6 are those of a run that starts with 4."""
    both = calibrate(net, task, recipe=PLAIN, times=["1h"], chips=2, seed=5)
    three = calibrate(net, task, recipe=PLAIN, times=["1h"], chips=3, seed=4)
    for arm in ("analog", "calibrated"):
        assert both.values(arm) == three.values(arm)[1:]
        assert both.values(arm) != three.values(arm)[:2]
    assert {m.chip for m in both.measurements} == {None, 5, 6}
    assert (both.setup["chips"], both.setup["seed"]) == (2, 5)
    assert both.counts == three.counts
    alone = emulate_(net, task, times=["2h"], chips=2, seed=5, device="cpu")
    assert alone.values("analog") == both.values("analog")


def test_the_bundle_is_of_the_first_chip(net, task, tmp_path):
    result = calibrate(net, task, recipe=PLAIN, times=["1h"], chips=2, seed=5, out=tmp_path / "bundle")
    assert json.loads((tmp_path / "bundle" / "bundle.json").read_text())["chip"] == 5
    with pytest.raises(InputError, match="chip 0 was not calibrated at 1 h: choose a chip from 5 to 6 and one of 1 h"):
        result.save(tmp_path / "other", chip=0)


def test_another_seed_does_not_go_on_from_it(net, task, tmp_path):
    told = []
    calibrate(net, task, recipe=PLAIN, times=["1h"], chips=1, seed=1, out=tmp_path / "one", notify=told.append)
    result = calibrate(net, task, recipe=PLAIN, times=["1h"], chips=1, seed=2, out=tmp_path / "two", notify=told.append)
    assert told == []
    assert result.values("analog") == emulate_(net, task, times=["2h"], chips=1, seed=2).values("analog")


def test_the_command(capsys, job):
    code, out, _ = run(capsys, "emulate", *job, "--seed", "3", "--device", "cpu", "--json")
    assert code == 0
    assert {m["chip"] for m in json.loads(out)["measurements"]} == {None, 3, 4}


@pytest.mark.parametrize("command", ["emulate", "calibrate", "energy"])
@pytest.mark.parametrize("arguments", [["--seed", "-1"], ["--device", "tpu"], ["--device", "cuda:999"]])
def test_the_command_refuses_before_it_loads(capsys, command, arguments):
    assert_one_sentence(*run(capsys, command, "--model", "absent", *arguments), arguments[0].removeprefix("--"))


def test_refit_refuses_a_device_before_it_reads(capsys, tmp_path):
    options = ("--time", "30d", "--out", str(tmp_path / "newer"), "--device", "cuda:999")
    assert_one_sentence(*run(capsys, "refit", str(tmp_path / "absent"), *options), "device")
