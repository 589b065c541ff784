"""Pages of the site that are made: links, files that are shown, and the reference."""

import ast
import dataclasses
import importlib
import re
from pathlib import Path

import pytest
import yaml

import attention
import calibration
import crossbar
from calibration.commands.options import make_parser

pytest.importorskip("mkdocs", reason="the site needs the extra docs")
ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("repository", ROOT / "docs" / "hooks" / "repository.py")
repository = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(repository)


@pytest.mark.parametrize(
    ("source", "text", "mended"),
    [
        ("README.md", "[gpu](docs/gpu.md), [all](docs/README.md)", "[gpu](gpu.md), [all](overview.md)"),
        ("README.md", "![a picture](docs/demo.png)", "![a picture](demo.png)"),
        ("README.md", "[licence](LICENSE) [below](#jobs)", "[licence](files/LICENSE.md) [below](#jobs)"),
        ("docs/gpu.md", "[rules](../CONTRIBUTING.md#rules)", "[rules](contributing.md#rules)"),
        ("docs/README.md", "[a file](recipe.example.yaml)", "[a file](files/docs/recipe.example.yaml.md)"),
        ("docs/gpu.md", "[there](https://example.org/README.md)", "[there](https://example.org/README.md)"),
        ("README.md", "```\nx[0](LICENSE)\n```", "```\nx[0](LICENSE)\n```"),
        ("docs/gpu.md", "| `a \\| b` | c |\n`a \\| b`", "| `a | b` | c |\n`a \\| b`"),
    ],
)
def test_links_and_tables_of_pages(source, text, mended):
    assert repository.mended(text, source) == mended


def test_files_that_pages_link_to_are_shown():
    shown = repository.shown_files()
    assert {"LICENSE", "docs/hardware.example.yaml", "examples/demo.py", "examples/studies/memory.yaml"} <= set(shown)
    page = repository.file_page("docs/recipe.example.yaml")
    assert (ROOT / "docs" / "recipe.example.yaml").read_text() in page
    index = repository.examples_page()
    assert [line for line in index.splitlines() if re.fullmatch(r"- \[.*\]\(.*\): ", line)] == []
    assert index.count("](files/examples/") == len([name for name in shown if name.startswith("examples/")])


@pytest.mark.parametrize("package", repository.PACKAGES)
def test_the_reference_has_every_public_name(package):
    names = dict(repository.public_names(package))
    module = importlib.import_module(package)
    assert list(names) == module.__all__
    assert {name for name in names if names[name]} == {
        name for name in names if type(getattr(module, name)) is type(module)
    }
    page = repository.package_page(package)
    for name, inside in names.items():
        assert f"::: {package}.{name}\n" in page or f"::: {inside}\n" in page or f"## {package}.{name}\n" in page


def test_the_reference_has_every_command_and_option():
    page, parser = repository.command_page(), make_parser()
    for name, command in parser.commands.items():
        section = page.partition(f"## ohmformer {name}\n")[2].partition("\n## ")[0]
        options = {option for option in command._option_string_actions if option.startswith("--")}
        for option in options - {"--help", "--config", "--print_config"}:
            assert re.search(rf"`(.*, )?{re.escape(option)}(, .*)?`", section), (name, option)
    assert "| `--times, --times+` | `[0s, 1h, 1d, 30d, 1y]` | times since programming, such as 0s,1h,1d |" in page


def test_every_page_is_in_the_navigation_once():
    text = re.sub(r"!!python\S+", "", (ROOT / "mkdocs.yml").read_text(encoding="utf-8"))
    led = re.findall(r"[\w/]+\.md", str(yaml.safe_load(text)["nav"]))
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert len(led) == len(set(led))
    assert pages <= set(led)
    assert set(led) - pages == {
        *repository.PAGES.values(),
        "examples.md",
        *(f"reference/{name}.md" for name in (*repository.PACKAGES, "command")),
    }
    assert all((ROOT / name).is_file() for name in repository.PAGES)


def test_the_page_of_defaults_says_what_the_code_does():
    page = (ROOT / "docs" / "defaults.md").read_text(encoding="utf-8")
    known = {**vars(crossbar.devices), **vars(attention), **vars(calibration), **vars(crossbar)}
    fields = re.findall(r"^\| `(\w+)\.(\w+)` \| `([^`]+)` \|", page, re.MULTILINE)
    assert len(fields) > 40
    for name, field, value in fields:
        (found,) = [each.default for each in dataclasses.fields(known[name]) if each.name == field]
        assert found == ast.literal_eval(value), f"{name}.{field}"
    options = re.findall(r"^\| `(--[\w-]+)` \| `([^`]+)` \|", page, re.MULTILINE)
    assert len(options) > 7
    calibrate = make_parser().commands["calibrate"]._option_string_actions
    for option, value in options:
        assert repository.written(calibrate[option].default) == value, option
