"""The third job from end to end: what cells hold, that none runs twice, and what becomes of failures and stops."""

import dataclasses
import importlib
import json
import os
import signal
import subprocess
import sys
import time

import pandas as pd
import pytest

from calibration import Recipe, Study, calibrate, emulate, study
from calibration.studies.events import Lost
from calibration.studies.store import Store
from calibration.studies.worker import Failed, Scored
from crossbar import Hardware, InputError, Wire, presets
from tests.calibration.command import run
from tests.calibration.studies import tiny
from tests.limits import files_of_at_most

JOB = importlib.import_module("calibration.study")  # whose name in the package is the function
CELLS = 2 * 2 * 2 * 2 * 2 + 2


@pytest.fixture(scope="module")
def done(folder, tmp_path_factory):
    """The tiny study, computed by two processes."""
    return study(tiny.config(folder, staircase=True), store=tmp_path_factory.mktemp("done") / "s.sqlite", workers=2)


def small(folder):
    """Three cells: two chips, and the digital model."""
    return tiny.config(folder, grid={"seed": "0..1"})


def test_every_cell_is_done(done):
    assert (done.progress.done, done.progress.failed, done.progress.pending) == (CELLS, 0, 0)
    assert done.failures() == []


@pytest.mark.parametrize("bits", [4, 8])
def test_cells_are_what_the_other_jobs_find(done, folder, bits):
    hardware = Hardware.from_dict({"adc": {"bits": bits}, "dac": {"range": "per_token"}})
    recipe = Recipe.from_dict(tiny.TWO)
    options = {"pattern": "window(2) | sinks(1)", "times": ["1h", "1d"], "chips": 2}
    hardware = "pcm" if bits == 8 else hardware
    calibrated = calibrate(folder, "wordsim", hardware, recipe, **options)
    setting = done.settings.query(f"`hardware.adc.bits` == {bits} and pattern != 'dense'")
    for name, arms in (("none", ["analog"]), ("two", recipe.arms)):
        (place,) = setting[setting["recipe"] == name]["setting"]
        own = done.scores[done.scores["setting"] == place]
        for arm in arms:
            found = own[own["arm"] == arm].sort_values(["seed", "seconds"])
            assert found["value"].tolist() == calibrated.values(arm)  # analog at the same instants
        digital = done.digital[done.digital["setting"] == place].set_index("arm")["value"]
        for arm in ("digital", "digital dense"):
            assert [digital[arm]] == calibrated.values(arm)


def test_without_recipes_cells_are_those_of_emulate(folder, tmp_path, inline):
    inline()
    found = study(small(folder), store=tmp_path / "s.sqlite")
    emulated = emulate(folder, "wordsim", "pcm", times="1d", chips=2)
    assert found.scores.sort_values("seed")["value"].tolist() == emulated.values("analog")
    assert found.digital.set_index("arm")["value"]["digital"] == emulated.values("digital")[0]


def test_wires_are_fields_to_vary(folder, tmp_path, inline):
    """Hardware that has none gets them from the fields that are varied; the others keep their defaults."""
    inline()
    grid = {"hardware.wire.r_row": [0.0, 3000.0], "hardware.wire.sense": ["top"], "seed": [0]}
    found = study(tiny.config(folder, grid=grid), store=tmp_path / "s.sqlite")
    labelled = found.scores.merge(found.settings, on="setting").set_index("hardware.wire.r_row")["value"]
    expected = {}
    for ohms in grid["hardware.wire.r_row"]:
        hardware = dataclasses.replace(presets.pcm(), wire=Wire(r_row=ohms, sense="top"))
        (expected[ohms],) = emulate(folder, "wordsim", hardware, times="1d", chips=1).values("analog")
    assert labelled.to_dict() == expected
    assert expected[0.0] != expected[3000.0]


def test_table_is_the_summary_of_emulate(done, folder):
    rows = emulate(folder, "wordsim", "pcm", pattern="dense", times=["2h", "25h"], chips=2).table()  # an hour later
    table = done.table().query("`hardware.adc.bits` == 8 and pattern == 'dense' and recipe == 'none'")
    expected = rows[rows["arm"] == "analog"]
    for name in ("mean", "low", "high", "n"):
        assert table[name].tolist() == pytest.approx(expected[name].tolist(), rel=1e-12)


def test_nothing_runs_twice(done, folder, monkeypatch):
    before = tiny.column(done.store, "SELECT ended || took FROM cells ORDER BY id")
    monkeypatch.setattr(JOB, "make_engine", None)  # nothing is left to compute
    study(tiny.config(folder, staircase=True), store=done.store)
    assert tiny.column(done.store, "SELECT ended || took FROM cells ORDER BY id") == before


def test_a_larger_study_takes_over_what_is_there(folder, tmp_path, inline):
    inline()
    store = tmp_path / "s.sqlite"
    study(small(folder), store=store)
    first = dict(sqlite_rows(store))
    larger = study(tiny.config(folder, grid={"seed": "0..2"}), store=store)
    assert larger.progress.done == 4
    assert first.items() <= dict(sqlite_rows(store)).items()
    (smaller,) = set(tiny.column(store, "SELECT id FROM studies")) - {larger.id}
    assert Study(store, smaller).progress.done == 3


def sqlite_rows(store):
    return [tuple(json.loads(row)) for row in tiny.column(store, "SELECT json_array(id, ended || took) FROM cells")]


def test_a_failure_is_kept_and_tried_again_when_asked(folder, tmp_path, inline):
    store = tmp_path / "s.sqlite"
    inline(lambda event: Failed("ValueError: broken", "trace") if isinstance(event, Scored) else event)
    found = study(small(folder), store=store)
    assert (found.progress.done, found.progress.failed) == (0, 3)
    assert [(reason, count) for reason, count, *_ in found.failures()] == [("ValueError: broken", 3)]
    inline()
    assert study(small(folder), store=store).progress.failed == 3
    assert study(small(folder), store=store, retry=True).progress.done == 3
    assert found.failures() == []


def test_what_a_cell_raises_is_its_reason(folder, tmp_path, inline, monkeypatch):
    inline()
    monkeypatch.setattr("calibration.runs.climb.age", lambda model, seconds: 1 / 0)
    found = study(small(folder), store=tmp_path / "s.sqlite")
    assert (found.progress.done, found.progress.failed) == (1, 2)  # the digital model has no age
    ((reason, count, *_),) = found.failures()
    assert (reason, count) == ("ZeroDivisionError: division by zero", 2)
    assert all("Traceback" in trace for trace in tiny.column(found.store, "SELECT trace FROM cells WHERE seed >= 0"))


def test_stopped_at_any_cell(done, folder, tmp_path, inline):
    store, scored = tmp_path / "s.sqlite", 0

    def stop(event):
        nonlocal scored
        scored += isinstance(event, Scored)
        if scored % 4 == 3 and isinstance(event, Scored):
            scored += 1
            raise KeyboardInterrupt
        return event

    engines, stops = inline(stop), 0
    grid = {"pattern": ["dense"], "recipe": [None, tiny.TWO], "time": ["1h", "1d"], "seed": "0..1"}
    while True:
        try:
            study(tiny.config(folder, staircase=True, grid=grid), store=store)
            break
        except KeyboardInterrupt:
            stops += 1
    assert stops == 4  # two cells are kept between stops
    assert all(engine.closed for engine in engines)
    assert len(tiny.scores(store)) == 2 + 4 + 4 * 2
    assert set(tiny.scores(store)) < set(tiny.scores(done.store))


def test_a_cell_that_takes_its_worker_along_fails_in_the_end(folder, tmp_path, inline):
    inline(lambda event: Lost("killed") if isinstance(event, Scored) and event.seconds is not None else event)
    found = study(small(folder), store=tmp_path / "s.sqlite")
    assert (found.progress.done, found.progress.failed) == (1, 2)
    assert found.failures()[0][0] == "its worker was lost 5 times: killed"


def test_a_lost_worker_is_no_failure(folder, tmp_path, inline):
    losses = iter([True, True])
    inline(lambda event: Lost("killed") if isinstance(event, Scored) and next(losses, False) else event)
    assert study(small(folder), store=tmp_path / "s.sqlite").progress.done == 3


def test_one_run_at_a_time(folder, tmp_path):
    path = tmp_path / "s.sqlite"
    with Store(path, create=True) as store:
        store.lock()
        with pytest.raises(InputError, match="in use by another run"):
            study(small(folder), store=path)


@pytest.mark.parametrize("how", ["deleted", "replaced"])
def test_a_store_that_is_gone_ends_the_run(folder, tmp_path, inline, how):
    store = tmp_path / "s.sqlite"

    def take_away(event):
        if isinstance(event, Scored):
            store.unlink()
            if how == "replaced":
                store.write_bytes(b"")
        return event

    engines = inline(take_away)
    with pytest.raises(InputError, match="deleted or replaced while the study ran"):
        study(small(folder), store=store)
    assert [engine.closed for engine in engines] == [True]


def test_a_full_disk_ends_the_run_and_nothing_is_lost(capsys, folder, tmp_path, inline):
    """With a limit on the size of files as its stand-in."""
    path, store = tmp_path / "study.yaml", tmp_path / "s.sqlite"
    path.write_text(json.dumps(tiny.config(folder, grid={"seed": "0..999"})))
    engines = inline()
    with files_of_at_most(400_000):
        code, _, err = run(capsys, "study", path, "--store", store)
    assert code == 2
    assert "Traceback" not in err
    assert f"ohmformer: store {str(store)!r} cannot be used (d" in err  # disk I/O error, or disk is full
    assert [engine.closed for engine in engines] == [True]
    with Store(store, create=True) as kept:
        assert kept.intact()


@pytest.mark.parametrize("kind", ["csv", "parquet"])
def test_export(done, tmp_path, kind):
    path = tmp_path / f"scores.{kind}"
    done.export(path)
    blank = {"time": [""], "seed": [""]}
    read = {
        "csv": lambda: pd.read_csv(path, keep_default_na=False, na_values=blank),
        "parquet": lambda: pd.read_parquet(path),
    }
    frame = read[kind]()
    assert list(frame) == ["hardware.adc.bits", "pattern", "recipe", "time", "seed", "arm", "metric", "value"]
    digital = frame["seed"].isna()
    assert sum(~digital) == 2 * 2 * 2 * 2 * (1 + 2)
    assert sorted(frame["value"][~digital]) == sorted(done.scores["value"])
    assert sorted(frame["value"][digital]) == sorted(done.digital["value"])
    assert set(frame["arm"][digital]) == {"digital", "digital dense"}
    assert frame["time"][digital].isna().all()
    assert (set(frame["seed"][~digital]), set(frame["time"][~digital])) == ({0, 1}, {3600.0, 86400.0})
    assert set(frame["recipe"]) == {"none", "two"}
    assert os.listdir(tmp_path) == [path.name]


def test_export_of_another_kind(done, tmp_path):
    with pytest.raises(InputError, match=r"\.csv or \.parquet"):
        done.export(tmp_path / "scores.xlsx")


def test_ctrl_c(folder, tmp_path):
    """The command stops with one sentence, its processes end, and the store is whole."""
    path, store = tmp_path / "study.yaml", tmp_path / "s.sqlite"
    path.write_text(json.dumps(tiny.config(folder, grid={"seed": "0..999"})))
    command = [sys.executable, "-m", "calibration.cli", "study", str(path), "--store", str(store), "--workers", "1"]
    driver = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    while not store.is_file() or not tiny.column(store, "SELECT count(*) FROM sqlite_schema WHERE name = 'cells'")[0]:
        time.sleep(0.1)
    while not tiny.column(store, "SELECT count(*) FROM cells WHERE status = 'done'")[0]:
        time.sleep(0.1)
    driver.send_signal(signal.SIGINT)
    _, said = driver.communicate(timeout=60)
    assert driver.returncode == 130
    said = [line for line in said.splitlines() if not line.startswith("ohmformer: study, after ")]  # on a busy machine
    assert said == ["ohmformer: stopped; what is done is kept, and the same command goes on from there"]
    with Store(store) as kept:
        assert kept.intact()
        kept.lock()
