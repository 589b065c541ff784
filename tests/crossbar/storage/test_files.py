"""Files of results: whole or not at all, never in the place of what is no file, and through links."""

import errno
import os
import resource
import signal
import socket
import stat
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from crossbar import InputError
from crossbar.storage.files import require_room, require_writable, write_whole


def write(partial):
    partial.write_text("new")


def inside(folder):
    return sorted(path.name for path in folder.iterdir())


def test_a_new_file_and_an_old_one(tmp_path):
    path = tmp_path / "result.json"
    write_whole(path, write)
    assert path.read_text() == "new"
    path.write_text("old")
    path.chmod(0o640)
    require_writable(path)
    write_whole(path, write)
    assert path.read_text() == "new"
    assert stat.S_IMODE(path.stat().st_mode) == 0o640
    assert inside(tmp_path) == ["result.json"]


@pytest.mark.parametrize("exists", [True, False])
@pytest.mark.parametrize("relative", [True, False])
def test_a_link_is_followed(tmp_path, exists, relative):
    kept, links = tmp_path / "kept", tmp_path / "links"
    kept.mkdir()
    links.mkdir()
    if exists:
        (kept / "result.json").write_text("old")
    (links / "first").symlink_to(kept / "result.json")
    (links / "second").symlink_to("first" if relative else links / "first")
    require_writable(links / "second")
    write_whole(links / "second", write)
    assert (kept / "result.json").read_text() == "new"
    assert (links / "first").is_symlink()
    assert (links / "second").is_symlink()
    assert inside(kept) == ["result.json"]
    assert inside(links) == ["first", "second"]


@pytest.fixture(params=["fifo", "socket", "device", "link to a device", "folder", "link to a folder", "loop"])
def no_file(request, tmp_path):
    """What is neither a file nor a new name; a device of our own where the machine lets us make one."""
    path = tmp_path / "odd"
    if request.param == "fifo":
        os.mkfifo(path)
    elif request.param == "socket":
        with socket.socket(socket.AF_UNIX) as opened:
            opened.bind(str(path))
    elif request.param == "device":
        try:
            os.mknod(path, stat.S_IFCHR | 0o666, os.makedev(1, 3))
        except PermissionError:  # not root: the system's own, which we could not replace anyway
            path = "/dev/null"
    elif request.param == "link to a device":
        path.symlink_to("/dev/null")
    elif request.param == "folder":
        path.mkdir()
    elif request.param == "link to a folder":
        path.symlink_to(tmp_path)
    else:
        path.symlink_to(path)
    return tmp_path / path


def test_what_is_no_file_is_refused_and_stays(tmp_path, no_file):
    before = no_file.lstat()
    with pytest.raises(InputError, match=r"is a device or a pipe|is a folder|cannot be written \(Too many levels"):
        require_writable(no_file)
    with pytest.raises(InputError, match=r"is a device or a pipe|is a folder|cannot be written \(Too many levels"):
        write_whole(no_file, lambda partial: pytest.fail("wrote"))
    assert (no_file.lstat().st_mode, no_file.lstat().st_ino) == (before.st_mode, before.st_ino)
    assert len(inside(tmp_path)) <= 1


@pytest.mark.parametrize(
    ("name", "kinds", "message"),
    [
        ("absent/file.json", (), r"folder '.*absent' does not exist: make it first"),
        ("file.json/below", (), r"cannot be written \(Not a directory\)"),
        ("picture.bmp", (".png", ".svg"), r"is of no known kind: end its name in .png, .svg"),
        ("nul\0.json", (), r"cannot be written \(embedded null byte\)"),
        ("x" * 300, (), r"cannot be written \(File name too long\)"),
    ],
)
def test_refused_before_anything_is_computed(tmp_path, name, kinds, message):
    (tmp_path / "file.json").write_text("old")
    with pytest.raises(InputError, match=message):
        require_writable(tmp_path / name, kinds)
    assert inside(tmp_path) == ["file.json"]


def test_a_folder_where_nothing_can_be_made():
    for check in (require_writable, require_room):
        with pytest.raises(
            InputError, match=r"'/proc/result.json' cannot be written \(.*\): make room and access there"
        ):
            check(Path("/proc/result.json"))


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EROFS, errno.EFBIG, errno.EACCES])
def test_what_fails_leaves_the_old_file(tmp_path, number):
    path = tmp_path / "result.json"
    path.write_text("old")

    def full(partial):
        partial.write_text("ne")
        raise OSError(number, os.strerror(number))

    with pytest.raises(InputError, match=rf"result.json' cannot be written \({os.strerror(number)}\)"):
        write_whole(path, full)
    assert path.read_text() == "old"
    assert inside(tmp_path) == ["result.json"]


SMALL = """
import sys, torch
from pathlib import Path
from safetensors.torch import save_file
from crossbar import InputError
from crossbar.storage.files import write_whole
try:
    if sys.argv[2] == "text":
        write_whole(Path(sys.argv[1]), lambda partial: partial.write_text("x" * 100_000))
    else:
        write_whole(Path(sys.argv[1]), lambda partial: save_file({"x": torch.zeros(100_000)}, partial))
except InputError as error:
    print(error)
"""


@pytest.mark.parametrize("kind", ["text", "tensors"])
def test_a_file_that_grows_beyond_what_is_allowed(tmp_path, kind):
    """The stand-in of a full disk; tensors are written by safetensors, which has an exception of its own."""
    path = tmp_path / "result"

    def limit():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, 10_000))

    done = subprocess.run(
        [sys.executable, "-c", SMALL, path, kind], capture_output=True, text=True, preexec_fn=limit, check=True
    )
    assert done.stdout.startswith(f"file {str(path)!r} cannot be written (")
    assert "large" in done.stdout
    assert len(done.stdout.splitlines()) == 1
    assert inside(tmp_path) == []


def test_tensors_are_written(tmp_path):
    path = tmp_path / "x.safetensors"
    write_whole(path, lambda partial: save_file({"x": torch.ones(2)}, partial))
    assert path.stat().st_size > 8
