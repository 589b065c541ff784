"""``ohmformer study``, ``report`` and ``export``, as users type them."""

import pytest
import yaml

from tests.calibration.command import assert_one_sentence, run
from tests.calibration.studies import tiny


@pytest.fixture
def write(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)

    def to(config):
        path = tmp_path / "study.yaml"
        path.write_text(yaml.safe_dump(config))
        return path

    return to


def test_dry_run(capsys, folder, write, tmp_path):
    code, out, err = run(capsys, "study", write(tiny.config(folder)), "--dry-run", "--workers", 3)
    assert (code, err) == (0, "")
    assert out.startswith("Letters: 34 cells, 0 of them finished; about ")
    assert out.endswith(" s on 3 workers\n")
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


def test_titles_are_no_markup(capsys, folder, write):
    code, out, err = run(capsys, "study", write(tiny.config(folder, title="[/] :smile: [red]")), "--dry-run")
    assert (code, err) == (0, "")
    assert out.startswith("[/] :smile: [red]: 34 cells")


def test_a_model_beside_the_file_is_found(capsys, folder, write, tmp_path, monkeypatch):
    (tmp_path / "network").symlink_to(folder)
    path = write(tiny.config("network", grid={"seed": "0..1"}))
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    code, out, err = run(capsys, "study", path, "--dry-run")
    assert (code, err) == (0, "")
    assert "3 cells, 0 of them finished" in out


def test_dry_run_counts_what_is_done(capsys, write):
    config = {"title": "Made up", "grid": {"seed": "0..1"}}
    made = tiny.made_study(write(config).with_name("study.sqlite"), config, lambda *of: {"analog": 0.5})
    assert made.progress.done == 3
    code, out, _ = run(capsys, "export", made.store, "--out", "scores.csv")
    assert (code, out) == (0, "")
    assert made.store.with_name("scores.csv").read_text().splitlines()[0] == "time,seed,arm,metric,value"


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"grid": {"hardware.adc.bitz": [4]}}, ["bitz", "bits"]),
        ({"grid": {"hardware.adc.bits": [40]}}, ["40", "1 to 16"]),
        ({"grid": {"hardware.device.prog_noise_scale": [-1.0]}}, ["-1.0", "0 to 1000"]),
        ({"grid": {"pattern": ["window(x)"]}}, ["window(x)"]),
        ({"grid": {"recipe": ["slow"]}}, ["slow", "fast"]),
        ({"grid": {"recipe.DriftCompensation.reads": [0]}, "recipe": "fast"}, ["reads"]),
        ({"grid": {"model": ["/nowhere"]}}, ["/nowhere"]),
        ({"grid": {"model.include": [["nothing*"]]}}, ["nothing*"]),
        ({"grid": {"task": ["perplexity"]}}, ["perplexity"]),
        ({"grid": {"task.pairs": [3]}}, ["pairs"]),
        ({"grid": {"device": ["tpu"]}}, ["tpu", "cpu"]),
        ({"grid": {"hardware.adc.bits": []}}, ["varies nothing"]),
        ({"grid": {"seed": "0..999", "hardware.adc.bits": [4, 6], "task.pairs": list(range(5000))}}, ["10,000,000"]),
        ({"wait": "0s", "recipe": "fast"}, ["0 s"]),
        ({"noise": 3}, ["'noise'", "hardware"]),
    ],
)
def test_wrong_files_are_refused_before_anything_runs(capsys, folder, write, tmp_path, changes, words):
    path = write(tiny.config(folder, **changes))
    for extra in ([], ["--dry-run"]):
        assert_one_sentence(*run(capsys, "study", path, *extra), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["study", "study.yaml", "--engine", "slurm"], ["slurm", "local, ray"]),
        (["study", "study.yaml", "--workers", "0"], ["workers = 0"]),
        (["study", "study.yaml", "--workers", "0", "--dry-run"], ["workers = 0"]),
        (["study", "study.yaml", "--workers", "1025", "--dry-run"], ["workers = 1025", "1024"]),
        (["study", "study.yaml", "--engine", "slurm", "--dry-run"], ["slurm"]),
        (["study", "study.yaml", "--store", ":memory:"], [":memory:", "path of a file"]),
        (["study", "study.yaml", "--store", ":memory:", "--dry-run"], [":memory:", "path of a file"]),
        (["study", "study.yaml", "--store", "no/s.sqlite", "--dry-run"], ["folder 'no'"]),
        (["study", "."], ["'.'"]),
        (["study", "study.yaml", "--store", "no/s.sqlite"], ["folder 'no'"]),
        (["study", "missing.yaml"], ["missing.yaml"]),
        (["report", "missing.sqlite"], ["missing.sqlite"]),
        (["report", "study.yaml"], ["study.yaml", "not a store"]),
        (["export", "study.yaml", "--out", "scores.csv"], ["not a store"]),
    ],
)
def test_other_mistakes(capsys, folder, write, tmp_path, arguments, words):
    write(tiny.config(folder, grid={"seed": "0..1"}))
    assert_one_sentence(*run(capsys, *arguments), *words)
    assert [path.name for path in tmp_path.iterdir()] == ["study.yaml"]
