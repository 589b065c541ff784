"""What the repository shows runs: examples, and the commands and Python of the README."""

import json
import random
import re
import runpy
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from calibration import cli
from calibration.commands.options import make_parser

ROOT = Path(__file__).resolve().parents[1]
PAGES = sorted([ROOT / "README.md", ROOT / "CONTRIBUTING.md", *ROOT.glob("docs/**/*.md")])


def blocks(page, *languages):
    """Fenced blocks of a page in one of these languages (empty: none given)."""
    found = re.findall(r"^```([a-z]*)[^\n]*\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    return [text for language, text in found if language in languages]


def commands():
    for page in PAGES:
        for text in blocks(page, "", "bash", "sh", "shell", "console", "text"):
            for line in text.replace("\\\n", " ").splitlines():
                match = re.match(r"(?:\$ )?ohmformer (.*)", line.strip())
                if match:
                    yield match[1]


def pythons():
    return [(page.name, k, text) for page in PAGES for k, text in enumerate(blocks(page, "python"))]


@pytest.mark.parametrize("command", sorted(set(commands())))
def test_commands_of_the_pages_parse(command):
    words = shlex.split(command, comments=True)
    if "--help" in words:
        words.remove("--help")
    options = make_parser().parse_args(words)
    assert options.command in cli._COMMANDS


def test_the_readme_shows_both_jobs():
    shown = {command.split()[0] for command in commands()}
    assert {"emulate", "calibrate"} <= shown


@pytest.mark.parametrize(("page", "number", "text"), pythons(), ids=lambda value: str(value)[:12].strip())
def test_python_of_the_pages_can_be_pasted_alone(page, number, text):
    compile(text, f"{page} block {number}", "exec")
    for line in text.splitlines():
        if re.match(r"(from|import) (crossbar|attention|calibration)\b", line):
            exec(line, {})
    undefined = [
        sys.executable,
        "-m",
        "ruff",
        "check",
        "--isolated",
        "--select",
        "F821",
        "--output-format",
        "concise",
        "-",
    ]
    done = subprocess.run(undefined, input=text, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout


SLOW = r"smollm2|calibrate\(|emulate\(|study\(|load_bundle|init_process_group"
"""What only takes seconds, or one process, in a block that says so before its fence."""
QUICK = [
    (page.name, k, text)
    for page in PAGES
    for k, text in enumerate(blocks(page, "python"))
    if not re.search(SLOW, text) or f"<!-- runs in the tests -->\n```python\n{text}" in page.read_text(encoding="utf-8")
]


@pytest.mark.parametrize(("page", "number", "text"), QUICK, ids=lambda value: str(value)[:12].strip())
def test_quick_python_of_the_pages_runs(page, number, text):
    exec(compile(text, f"{page} block {number}", "exec"), {})


def test_hardware_files_of_the_pages_are_read():
    from crossbar import Hardware, presets

    assert Hardware.from_yaml(ROOT / "docs" / "hardware.example.yaml") == presets.pcm()


def test_recipe_files_of_the_pages_are_read():
    from calibration import Recipe, recipe

    assert Recipe.from_yaml(ROOT / "docs" / "recipe.example.yaml") == recipe.get("fast")


def test_every_yaml_file_of_the_pages_is_read_by_a_test():
    assert {path.name for path in ROOT.glob("docs/**/*.yaml")} == {"hardware.example.yaml", "recipe.example.yaml"}


def test_pages_and_sections_that_the_code_names_exist():
    named = set()
    for folder in ("crossbar", "attention", "calibration", "benchmarks", "examples", "tests"):
        for file in sorted(set((ROOT / folder).rglob("*.py")) - {ROOT / "tests" / "test_site.py"}):  # names the site's
            text = file.read_text(encoding="utf-8")
            named |= {(file.name, *found) for found in re.findall(r'([\w./]*\w\.md)\b(?:, "([^"]+)")?', text)}
    missing = [name for name in named if not (ROOT / name[1]).is_file()]
    titles = {
        name: re.findall(r"^#+ (.*)$", (ROOT / name).read_text(), re.MULTILINE) for _, name, _ in named - set(missing)
    }
    assert not missing
    assert len(named) > 10
    for file, page, section in named:
        assert not section or any(title.startswith(section) for title in titles[page]), (file, page, section)


def run_example(name, folder, *arguments, timeout):
    """An example in a process of its own, as a user runs it."""
    return subprocess.run(
        [sys.executable, ROOT / "examples" / name, *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
        timeout=timeout,
    )


@pytest.fixture
def run_here(monkeypatch, tmp_path, capfd):
    """Runs an example in this process, which has imported what it needs already, and gives what it prints."""

    def run(name, *arguments):
        monkeypatch.chdir(tmp_path)
        monkeypatch.setattr(sys, "argv", [name, *arguments])
        capfd.readouterr()
        code, drawn, drawn_numpy = 0, random.getstate(), np.random.get_state()  # noqa: NPY002 - examples may seed it
        with torch.random.fork_rng():
            try:
                runpy.run_path(str(ROOT / "examples" / name), run_name="__main__")
            except SystemExit as stop:
                code = stop.code
        random.setstate(drawn)
        np.random.set_state(drawn_numpy)  # noqa: NPY002  # examples may draw from it
        assert code == 0
        return capfd.readouterr()

    return run


def test_examples_are_short():
    for path in (ROOT / "examples").glob("*.py"):
        assert len(path.read_text(encoding="utf-8").splitlines()) < 80, path.name


def test_own_model(run_here, tmp_path):
    out, _ = run_here("own_model.py")
    for word in ("accuracy", "digital", "analog", "calibrated", "1 y"):
        assert word in out
    assert list(tmp_path.iterdir()) == []


def test_a_device_is_found_again(tmp_path):
    done = run_example("fit_device.py", tmp_path, timeout=300)
    assert done.returncode == 0, done.stderr
    assert [line.partition(":")[0] for line in done.stdout.splitlines()] == [
        "prog_noise_scale",
        "drift_scale",
        "read_noise_scale",
    ]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["device.png", "device.yaml", "readings.csv"]


def test_the_demo_says_what_it_takes(run_here):
    out, err = run_here("demo.py", "--help")
    assert err == ""
    assert "--full" in out


def test_associative_recall(run_here, tmp_path):
    arguments = ("--patterns", "window(32)", "topk(4)", "--minutes", "0.001")
    out, _ = run_here("associative_recall.py", *arguments)
    rows = json.loads((tmp_path / "demo" / "associative_recall.json").read_text())
    assert [(row["pattern"], row["covers"]) for row in rows] == [
        ("window(32)", "0% / 0%"),
        ("topk(4)", "selects"),
    ]
    for row in rows:
        assert row["pattern"] in out
        assert not row["finished"]
    assert [path.name for path in (tmp_path / "demo").iterdir()] == ["associative_recall.json"]


def test_sparse_from_scratch(run_here):
    short = (
        "--patterns",
        "hierarchical(32, 4)",
        "--minutes",
        "0.001",
        "--sequences",
        "2",
        "--chips",
        "1",
        "--steps",
        "2",
    )
    out, _ = run_here("sparse_from_scratch.py", *short)
    for word in ("hierarchical(32, 4)", "digital", "analog", "fast", "trained, fast"):
        assert word in out
    assert len([part for part in out.split("│") if part.strip().endswith("%")]) == 4


@pytest.mark.filterwarnings("default")  # transformers' and accelerate's
def test_trainer(run_here, tmp_path):
    out, _ = run_here("trainer.py", "--steps", "20", "--chips", "1")
    for name in ("trained in digital", "trained through the tiles"):
        (line,) = [line for line in out.splitlines() if line.startswith(f"{name}, 1 chips: ")]
        assert all(0.1 < float(part.split()[-1]) < 1 for part in line.partition(": ")[2].split(", "))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_the_demo(tmp_path):
    done = run_example("demo.py", tmp_path, timeout=1200)
    assert done.returncode == 0, done.stderr
    assert {path.name for path in (tmp_path / "demo").iterdir()} == {"demo.png", "demo.json"}
    assert (tmp_path / "demo" / "demo.png").read_bytes().startswith(b"\x89PNG")
    results = json.loads((tmp_path / "demo" / "demo.json").read_text())
    assert [result["task"] for result in results] == ["code-search", "wordsim"]
    for result in results:
        assert {row["arm"] for row in result["table"]} == {"digital dense", "digital", "analog", "calibrated"}
        gated, dense = result["counts"]["attention"], result["counts"]["dense attention"]
        assert gated["row_activations"] <= dense["row_activations"]
