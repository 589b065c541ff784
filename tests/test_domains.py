"""The scripts of `make domains`: what they share, and each in its short form."""

import json
import runpy
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch.nn.functional import cross_entropy

FOLDER = Path(__file__).resolve().parents[1] / "examples" / "domains"
pytest.importorskip("statsmodels", reason="the extra domains")


@pytest.fixture(autouse=True)
def beside(monkeypatch, tmp_path):
    """Scripts find what they share beside them, as where they are run, and write into an empty folder."""
    monkeypatch.syspath_prepend(str(FOLDER))
    monkeypatch.chdir(tmp_path)
    yield
    for name in ("domain", "genomics", "time_series"):
        sys.modules.pop(name, None)


def test_scripts_are_short_and_made_by_one_command():
    scripts = {path.stem for path in FOLDER.glob("*.py")} - {"domain"}
    (line,) = [text for text in (FOLDER.parents[1] / "Makefile").read_text().splitlines() if "for field in" in text]
    assert set(line.partition(" in ")[2].partition(";")[0].split()) == scripts
    assert all(len((FOLDER / f"{name}.py").read_text().splitlines()) < 100 for name in scripts)


@pytest.mark.parametrize(
    ("script", "names"),
    [
        ("time_series", ["weekly CO2", "sunspots"]),
        pytest.param("vision", ["handwritten digits"], marks=pytest.mark.slow),
        pytest.param("genomics", ["planted motifs"], marks=pytest.mark.slow),
        pytest.param("retrieval", ["retrieval"], marks=pytest.mark.slow),
        pytest.param("source_code", ["code-search"], marks=pytest.mark.slow),
        pytest.param("long_documents", ["long documents"], marks=pytest.mark.slow),
    ],
)
def test_a_script_ends_in_a_table_a_picture_and_a_sentence(script, names, monkeypatch, capfd):
    monkeypatch.setattr(sys, "argv", [script, "--short", "--chips", "1"])
    with torch.random.fork_rng():
        runpy.run_path(str(FOLDER / f"{script}.py"), run_name="__main__")
    printed = capfd.readouterr().out
    for name in names:
        kept = Path("demo/domains") / name.replace(" ", "_")
        values = json.loads(kept.with_suffix(".json").read_text())
        assert values["sentence"] in printed
        assert values["energy"]["analog"] > 0
        assert {row["arm"] for row in values["result"]["table"]} >= {"digital", "analog", "calibrated"}
        assert kept.with_suffix(".png").read_bytes().startswith(b"\x89PNG")


def test_motifs_stand_where_their_label_says():
    import genomics

    inputs, labels = genomics.motifs(200)
    bases = torch.cat([inputs[:, :, :8].reshape(200, -1, 4), inputs[:, -1:, 8:].reshape(200, -1, 4)], 1).argmax(-1)
    texts = ["".join("ACGT"[base] for base in row) for row in bases.tolist()]
    both = [
        (text.find(genomics.MOTIFS[0]), text.find(genomics.MOTIFS[1]), label)
        for text, label in zip(texts, labels.tolist(), strict=True)
    ]
    whole = [(first, second, label) for first, second, label in both if min(first, second) >= 0]
    assert len(whole) > 20  # in 0.9 ** 16 of the sequences, 18%, all bases of both are kept
    assert all((second < first) == bool(label) for first, second, label in whole)
    assert all(40 <= abs(second - first) <= 110 for first, second, _ in whole)


def test_skill_is_0_for_the_season_before_and_1_for_the_truth():
    import time_series

    task, error = time_series.task("weekly CO2", **time_series.SERIES["weekly CO2"])
    inputs, answers = task.parts["evaluation"]
    past = inputs.flatten(1)
    naive = past[:, -52 : -52 + 26]
    assert task.score(naive, answers) == pytest.approx(0, abs=1e-6)
    assert task.score(answers[..., 0], answers) == 1
    assert 1 < error < 3  # ppm: a year's rise in the decade that is scored


def test_training_learns_and_repeats():
    import domain

    drawn = torch.Generator().manual_seed(0)
    x = torch.randn(256, 6, 4, generator=drawn)
    labels = (x[:, 0, 0] > x[:, 5, 0]).long()
    task = domain.Arrays("order", "accuracy", dict.fromkeys(("training", "evaluation"), (x, labels)), domain.accuracy)
    found = []
    for _ in range(2):
        with torch.random.fork_rng():
            torch.manual_seed(0)
            model = domain.Encoder(6, 4, 2, "window(2) | global(0)", width=16)
        before = task.metrics(model)["accuracy"]
        domain.train(model, task, cross_entropy, 60)
        found.append(task.metrics(model)["accuracy"])
    assert found[0] == found[1] > max(0.9, before)


def test_splice_sites_are_bases_of_three_bits(monkeypatch):
    import genomics
    import pandas as pd

    rdata = pytest.importorskip("rdata")
    bits = np.zeros((3, 180), int)
    bits[0, 0] = bits[1, 1] = bits[2, 179] = 1
    table = pd.DataFrame(bits).assign(Class=["ei", "ie", "n"])
    monkeypatch.setattr(rdata, "read_rda", lambda path, default_encoding: {"DNA": table})
    inputs, labels = genomics.splice_sites(Path("anywhere"))
    assert inputs.shape == (3, 28, 24)
    assert sorted(labels.tolist()) == [0, 1, 2]
    first = inputs[:, 0, :4]
    assert {(int(label), int(row.argmax())) for label, row in zip(labels, first, strict=True)} == {
        (0, 0),
        (1, 1),
        (2, 3),
    }
