"""What commands print, on a terminal and elsewhere."""

import io
import sys
import time

import pytest
from torch import nn

from calibration import Emulation, Measurement, console
from calibration.console import progress_bar, say, terminal
from calibration.printable import drawable, printable
from calibration.results.tables import accuracy_table, conversion_table
from crossbar import convert, presets

# Text of users and files

HOSTILE = ["[/]", "[/tmp]", "[red]no[/red]", "[link=file:///etc/passwd]x[/link]", ":skull:", "a [b", "\\[bold]", "$x$"]


class Terminal(io.StringIO):
    """A stream that says that it is a terminal."""

    def isatty(self):
        return True


def printed(text, stream):
    """The text as a title, a cell, a caption and a line of its own."""
    conversion = convert(nn.Sequential(nn.Linear(3, 2)), presets.ideal())
    setup = {"model": text, "task": text, "chips": 1, "hardware": presets.ideal().to_dict()}
    result = Emulation(setup, text, (Measurement(text, text, 0.5, 0, 60.0),), conversion, {})
    screen = terminal(stream)
    screen.width = 200
    screen.print(accuracy_table(result))
    screen.print(text)
    screen.print(console.pairs_table([(text, text)]))
    return stream.getvalue()


@pytest.mark.parametrize("text", HOSTILE)
def test_text_is_no_markup(text):
    found = printed(text, io.StringIO())
    assert found.count(text) == 7  # title with model and task, column, cell, line, two cells


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "\x1b]0;title\x07", "\x9b31m", "a\rb", "a\x08b", "\u202eabc", "\udcff"]
)
@pytest.mark.parametrize("stream", [io.StringIO, Terminal])
def test_nothing_in_a_text_reaches_the_terminal_as_a_command(monkeypatch, text, stream):
    monkeypatch.setenv("TERM", "dumb")  # no styles of our own
    found = printed(text, stream())
    assert printable(text) in found
    assert found.count(printable(text)) == 7
    assert not set(found) & set("\x1b\x07\x9b\r\x08\u202e\udcff")


def test_a_sentence_is_one_line(capsys):
    say("two\nlines with \x1b[2J and [/] in them")
    assert capsys.readouterr().err == "ohmformer: two lines with \\x1b[2J and [/] in them\n"


def test_dollar_signs_are_drawn():
    from matplotlib.figure import Figure

    figure = Figure()
    title = figure.suptitle(drawable("$\\frac{$ costs $5"))
    figure.savefig(io.BytesIO())  # raises for mathematics that is none
    assert title.get_text().replace("\\$", "$") == "$\\frac{$ costs $5"


def test_names_are_whole_where_nobody_looks(monkeypatch):
    """In a pipe, and in 80 columns too, where they are folded."""
    monkeypatch.delenv("COLUMNS", raising=False)
    net = nn.Sequential()
    net.add_module("encoder_" + "x" * 100, nn.Linear(3, 2))
    (name,) = dict(net.named_children())
    report = convert(net, presets.ideal())
    stream = io.StringIO()
    terminal(stream).print(conversion_table(report, layers=True))
    assert name in stream.getvalue()
    monkeypatch.setenv("COLUMNS", "80")
    stream = io.StringIO()
    terminal(stream).print(conversion_table(report, layers=True))
    rows = [line.split("│")[1].strip() for line in stream.getvalue().splitlines() if line.startswith("│")]
    assert "".join(rows) == name


# Progress without a terminal


def test_lines_of_progress_where_there_is_no_terminal(monkeypatch):
    monkeypatch.setattr(console, "EVERY", 0.05)
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    with progress_bar("calibrate") as show:
        for done in range(3):
            show(done, 3, "analog [/], chip 0\x1b[2J")
            while stream.getvalue().count("\n") <= done:
                time.sleep(0.01)
    lines = stream.getvalue().splitlines()
    assert [line.rpartition(": ")[2] for line in lines] == [
        f"{done} of 3 done, now analog [/], chip 0\\x1b[2J" for done in range(3)
    ]
    assert all(line.startswith("ohmformer: calibrate, after 0 min 0 s: ") for line in lines)


def test_a_short_job_says_nothing(capsys):
    with progress_bar("emulate") as show:
        show(0, 1, "digital")
    assert capsys.readouterr().err == ""


def test_long_silence_is_broken(monkeypatch):
    stream, late = io.StringIO(), time.monotonic() + 30
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setattr(console, "EVERY", 0.02)

    def err():
        return stream.getvalue().splitlines()

    with progress_bar("emulate") as show:
        show(0, 1, "digital")
        while len(told := err()) < 2 and time.monotonic() < late:
            time.sleep(0.02)
    assert len(told) == 2  # the first, and after nine times nothing


def test_a_bar_takes_text_as_text(monkeypatch):
    stream = Terminal()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("TERM", "xterm")
    with progress_bar("study") as show:
        show(0, 2, "[/] \x1b]0;title\x07")
    assert "\x1b]" not in stream.getvalue()
