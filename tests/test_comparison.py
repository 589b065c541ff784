"""The comparison with peers: what it asks, what it writes, and that its page is of the present script."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
import torch

from tests.peers import needs_aihwkit

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs/comparison.md"


@pytest.fixture(scope="module")
def comparison():
    """The script, which finds what benchmarks share beside it."""
    sys.path.insert(0, str(ROOT / "benchmarks"))
    spec = importlib.util.spec_from_file_location("comparison", ROOT / "benchmarks" / "comparison.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules["comparison"] = module  # dataclasses look their module up
    spec.loader.exec_module(module)
    yield module
    sys.path.remove(str(ROOT / "benchmarks"))
    del sys.modules["comparison"]


def test_the_page_is_of_the_present_script(comparison):
    text = PAGE.read_text(encoding="utf-8")
    rows = [line.split(" | ")[0].removeprefix("| ") for line in text.splitlines() if line.startswith("| ")]
    assert set(comparison.QUESTIONS) <= set(rows)
    titles = re.findall(r"^## (.*)$", text, re.MULTILINE)
    assert titles[0] == "Where a peer is better"
    assert [title.partition(":")[0] for title in titles[1:]] == [
        "Features",
        "A layer, forward",
        "A training step",
        "Attention",
        "A circuit",
        "Fidelity",
    ]


def test_a_page_has_every_row_and_says_what_is_lost(comparison):
    part = comparison.Part("Speed: of a layer", ("arm", "ratio"), [("a | b", "1.00"), ("c", "2.00")], ["c is faster."])
    text = comparison.page([part], 34.0)
    assert "## Speed: of a layer\n| arm | ratio |\n|---|---|\n| a \\| b | 1.00 |\n| c | 2.00 |\n" in text
    assert "- c is faster.\n" in text
    assert "thread of a CPU 34 s beside" in text


def test_what_a_tool_lacks_is_its_answer(comparison):
    def missing():
        import a_package_that_is_not_there  # noqa: F401  # it is the import that fails

    assert comparison.tried(missing) == "not installed (a_package_that_is_not_there)"
    assert comparison.tried(lambda: 1 / 0) == "ZeroDivisionError: division by zero"
    assert comparison.tried(lambda: "yes") == "yes"


def test_errors_are_of_the_wanted_size(comparison):
    assert comparison.close(torch.tensor([1.1, 1.1]), torch.ones(2)) == pytest.approx(0.1, rel=1e-5)


def test_our_answers(comparison):
    assert comparison.our_drift() == "the same: 0.0% apart"
    assert comparison.our_reload() == "the same bits, read noise too"
    assert comparison.converted(comparison.encoder(), comparison.OURS) == "100%; 2 that stay digital are named"


@needs_aihwkit
def test_answers_of_aihwkit(comparison):
    assert 1 < float(comparison.aihwkit_drift().partition("%")[0]) < 20  # 1/f noise is drawn anew
    assert comparison.aihwkit_pulses() == "yes"
    assert comparison.converted(comparison.gpt2(), comparison.AIHWKIT).startswith("0%")
