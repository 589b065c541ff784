"""Model folders in the user's cache: whole or not there, and made again when they are not what was written."""

import json
import os
import time
from pathlib import Path

import pytest

from calibration.models import cache
from calibration.models.cache import cache_folder, obtain
from crossbar import InputError

MADE_FROM = {"source": "abc", "library": "1.0"}


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "ohmformer"


class Maker:
    """Writes two files and counts how often."""

    def __init__(self, text="weights"):
        self.calls, self.text = 0, text

    def __call__(self, folder):
        self.calls += 1
        (folder / "model.bin").write_text(self.text)
        (folder / "config.json").write_text("{}")


def visible(home):
    return sorted(path.name for path in home.iterdir())


def test_a_folder_is_made_once(home):
    make = Maker()
    first, second = obtain("m", MADE_FROM, make), obtain("m", MADE_FROM, make)
    assert make.calls == 1
    assert first == second
    assert first.folder == home / "m"
    assert set(first.digests) == {"model.bin", "config.json"}
    # SHA-256 of "{}"
    assert first.digests["config.json"] == "44136fa355b3678a1146ad16f7e8649e94fb4fc21fe77e8310c060f61caaff8a"
    assert visible(home) == ["m"]


@pytest.mark.parametrize("change", [{"library": "1.1"}, {"source": "other"}, {"more": "x"}])
def test_another_version_makes_it_again(home, change):
    obtain("m", MADE_FROM, Maker("old"))
    make = Maker("new")
    obtain("m", MADE_FROM | change, make)
    assert make.calls == 1
    assert (home / "m" / "model.bin").read_text() == "new"
    assert visible(home) == ["m"]


def damage(folder, how):
    weights, note = folder / "model.bin", folder / "made.json"
    if how == "cut short":
        weights.write_text("weig")
    elif how == "a flipped byte":
        weights.write_text("weighus")
    elif how == "a missing file":
        weights.unlink()
    elif how == "a file too many":
        (folder / "model.py").write_text("import os")
    elif how == "no note":
        note.unlink()
    elif how == "a note cut short":
        note.write_text(note.read_text()[:20])
    elif how == "a note of another kind":
        note.write_text("[1, 2]")
    elif how == "a note that lacks a part":
        note.write_text(json.dumps({"made_from": MADE_FROM}))


@pytest.mark.parametrize(
    "how",
    [
        "cut short",
        "a flipped byte",
        "a missing file",
        "a file too many",
        "no note",
        "a note cut short",
        "a note of another kind",
        "a note that lacks a part",
    ],
)
def test_a_damaged_folder_is_made_again(home, how):
    make = Maker()
    first = obtain("m", MADE_FROM, make)
    damage(first.folder, how)
    assert obtain("m", MADE_FROM, make) == first
    assert make.calls == 2
    assert sorted(path.name for path in first.folder.iterdir()) == ["config.json", "made.json", "model.bin"]
    assert visible(home) == ["m"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, InputError, RuntimeError])
def test_a_maker_that_fails_leaves_nothing(home, error):
    def fail(folder):
        (folder / "model.bin").write_text("half")
        raise error("stopped")

    with pytest.raises(error):
        obtain("m", MADE_FROM, fail)
    assert visible(home) == []


def test_a_maker_that_fails_leaves_the_folder_of_another_version(home):
    obtain("m", MADE_FROM, Maker("old"))
    with pytest.raises(RuntimeError):
        obtain("m", {}, lambda folder: (_ for _ in ()).throw(RuntimeError("stopped")))
    assert (home / "m" / "model.bin").read_text() == "old"


def test_a_full_disk_is_one_sentence(home):
    def full(folder):
        raise OSError(28, "No space left on device")

    with pytest.raises(InputError, match=r"cannot be written \(No space left on device\): make room and access there"):
        obtain("m", MADE_FROM, full)
    assert visible(home) == []


def test_a_folder_that_cannot_be_written_is_refused_before_work(tmp_path, monkeypatch):
    (tmp_path / "ohmformer").write_text("a file where the folder should be")  # holds for root too, unlike permissions
    make = Maker()
    with pytest.raises(InputError, match="set XDG_CACHE_HOME to another folder"):
        obtain("m", MADE_FROM, make)
    assert make.calls == 0


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder_still_serves_what_it_has(home):
    make = Maker()
    obtain("m", MADE_FROM, make)
    home.chmod(0o500)
    try:
        obtain("m", MADE_FROM, make)
        with pytest.raises(InputError, match="Permission denied"):
            obtain("other", MADE_FROM, make)
    finally:
        home.chmod(0o700)
    assert make.calls == 1


def test_what_a_killed_run_left_is_removed_and_what_a_running_one_writes_is_not(home):
    home.mkdir()
    dead, alive = home / ".m.dead.partial", home / ".m.alive.partial"
    for path in (dead, alive):
        path.mkdir()
        (path / "model.bin").write_text("half")
    os.utime(dead, (time.time() - 7200,) * 2)
    obtain("m", MADE_FROM, Maker())
    assert visible(home) == [".m.alive.partial", "m"]


def test_two_processes_at_once_leave_one_whole_folder(home):
    def slow(folder):
        Maker()(folder)
        obtain("m", MADE_FROM, Maker())  # another process is done first

    assert obtain("m", MADE_FROM, slow) == obtain("m", MADE_FROM, lambda _: pytest.fail("made again"))
    assert visible(home) == ["m"]


def test_the_loser_of_a_race_uses_what_the_winner_wrote(home, monkeypatch):
    real = Path.rename

    def beaten(self, target):
        if Path(target) == home / "m" and self.suffix == ".partial":
            monkeypatch.setattr(Path, "rename", real)
            obtain("m", MADE_FROM, Maker())  # between the loser's look and its move
        return real(self, target)

    monkeypatch.setattr(Path, "rename", beaten)
    assert obtain("m", MADE_FROM, Maker()).folder == home / "m"
    assert visible(home) == ["m"]


def test_where_the_cache_is(monkeypatch, tmp_path):
    assert cache_folder() == tmp_path / "ohmformer"
    monkeypatch.setenv("HOME", str(tmp_path / "me"))
    for value in ("", "relative"):
        monkeypatch.setenv("XDG_CACHE_HOME", value)
        assert cache_folder() == tmp_path / "me" / ".cache" / "ohmformer"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(cache.Path, "home", lambda: (_ for _ in ()).throw(RuntimeError("no home")))
    with pytest.raises(InputError, match=r"there is no home folder .*: set XDG_CACHE_HOME"):
        cache_folder()
