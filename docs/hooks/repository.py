"""What the site shows beside `docs/`: Markdown of the repository, the files that pages link to, and the reference.

MkDocs calls the two functions `on_…` (`hooks` in mkdocs.yml). Pages are made when the site is built, so that none is a
copy, and none out of date.
"""

from __future__ import annotations

import argparse
import ast
import posixpath
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
PAGES = {
    "README.md": "index.md",
    "docs/README.md": "overview.md",
    "CONTRIBUTING.md": "contributing.md",
    "CHANGELOG.md": "changelog.md",
}
"""Markdown of the repository by its place in the site; other pages of `docs/` keep their names."""
PACKAGES = ("crossbar", "attention", "calibration")
_LINK = re.compile(r"(?P<fence>^```.*?^```)|(?<=\]\()(?P<target>[^)#\s:]+)(?=[)#])", re.DOTALL | re.MULTILINE)

_ROW = re.compile(r"^\|.*\|$", re.MULTILINE)
_CODE = re.compile(r"`[^`]+`")


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that are made."""
    files.remove(files.src_uris["README.md"])  # overview.md, so that the repository's README can be the first page
    made = {place: (ROOT / source).read_text(encoding="utf-8") for source, place in PAGES.items()}
    made |= {place_of(source): file_page(source) for source in shown_files()}
    made |= {f"reference/{package}.md": package_page(package) for package in PACKAGES}
    made["reference/command.md"] = command_page()
    made["examples.md"] = examples_page()
    for place, text in made.items():
        files.append(File.generated(config, place, content=text))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Let a page's links lead to where the site has what they name."""
    place = page.file.src_uri
    source = {made: source for source, made in PAGES.items()}.get(place, f"docs/{place}")
    return mended(markdown, source)


def place_of(source: str) -> str:
    """Where the site has a file of the repository; what is neither Markdown nor a picture has a page that shows it."""
    if source in PAGES:
        return PAGES[source]
    if source.startswith("docs/") and source.endswith((".md", ".png")):
        return source.removeprefix("docs/")
    return f"files/{source}.md"


def links(text: str, source: str) -> Iterator[tuple[re.Match[str], str]]:
    """The links of a page to files of the repository, with the file's path in it; code blocks have none."""
    for found in _LINK.finditer(text):
        if found["target"]:
            path = posixpath.normpath(posixpath.join(posixpath.dirname(source), found["target"]))
            if (ROOT / path).is_file():
                yield found, path


def mended(text: str, source: str) -> str:
    """A page of the repository with links that hold in the site, and without what only GitHub's tables need."""
    here = posixpath.dirname(place_of(source))
    parts, end = [], 0
    for found, path in links(text, source):
        parts += [text[end : found.start()], posixpath.relpath(place_of(path), here or ".")]
        end = found.end()
    return _ROW.sub(
        lambda row: _CODE.sub(lambda code: code[0].replace("\\|", "|"), row[0]), "".join([*parts, text[end:]])
    )


def shown_files() -> list[str]:
    """Examples, and whatever else pages link to that is neither Markdown nor a picture."""
    shown = {path.relative_to(ROOT).as_posix() for path in (ROOT / "examples").rglob("*.*") if "__" not in str(path)}
    for page in [*PAGES, *(f"docs/{path.name}" for path in (ROOT / "docs").glob("*.md"))]:
        shown |= {path for _, path in links((ROOT / page).read_text(encoding="utf-8"), page)}
    return sorted(path for path in shown if place_of(path).startswith("files/"))


def file_page(source: str) -> str:
    """A page that shows a file as it is."""
    kind = {".py": "python", ".yaml": "yaml", ".toml": "toml"}.get(Path(source).suffix, "text")
    return f"# {source}\n\n````{kind}\n{(ROOT / source).read_text(encoding='utf-8')}````\n"


def examples_page() -> str:
    """The examples by what the first line of each says."""
    lines = ["# Examples", "", "In a clone, after `make demo` has installed: `.venv/bin/python examples/NAME.py`.", ""]
    for source in shown_files():
        if source.startswith("examples/"):
            text = (ROOT / source).read_text(encoding="utf-8")
            said = (
                ast.get_docstring(ast.parse(text)) if source.endswith(".py") else text.partition("\n")[0].lstrip("# ")
            )
            first = (said or "").partition("\n\n")[0].replace("\n", " ")
            lines.append(f"- [{source}]({place_of(source)}): {first}")
    return "\n".join(lines) + "\n"


def package_page(package: str) -> str:
    """The reference of a package: every name of its `__all__`, and of the modules among these."""
    lines = [f"# {package}", "", "Every public name. [The command](command.md) takes the same options as the jobs.", ""]
    for name, module in public_names(package):
        if module is None:
            lines += [f"::: {package}.{name}", ""]
        elif (ROOT / module.replace(".", "/")).is_dir() and public_names(module):
            lines += [f"## {package}.{name}", ""]
            for inner, _ in public_names(module):
                lines += [f"::: {module}.{inner}", "    options:", "      heading_level: 3", ""]
        else:
            lines += [f"::: {module}", "    options:", "      show_root_full_path: true", ""]
    return "\n".join(lines)


def public_names(package: str) -> list[tuple[str, str | None]]:
    """Names in a package's `__all__`, with the dotted path of those that are modules; read from its source."""
    tree = ast.parse((ROOT / package.replace(".", "/") / "__init__.py").read_text(encoding="utf-8"))
    modules = {}
    for node in tree.body:
        if isinstance(node, ast.ImportFrom):
            for name in node.names:
                path = ROOT / (node.module or "").replace(".", "/") / name.name
                if path.is_dir() or path.with_suffix(".py").is_file():
                    modules[name.asname or name.name] = f"{node.module}.{name.name}"
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return [(name, modules.get(name)) for name in ast.literal_eval(node.value)]
    return []


def command_page() -> str:
    """The reference of the command, from what its own parser says."""
    from calibration.commands.options import make_parser

    parser = make_parser()
    lines = ["# The command", "", parser.description or "", ""]
    lines += ["`ohmformer COMMAND --help` prints the same. Options can come from a YAML file with the same names.", ""]
    for name, command in parser.commands.items():
        lines += [f"## ohmformer {name}", "", command.description or "", ""]
        lines += ["| option | default | what it says |", "|---|---|---|"]
        for action in command._actions:
            if action.help != argparse.SUPPRESS and action.dest not in ("help", "config", "print_config"):
                given = ", ".join(action.option_strings) or action.dest.upper()
                default = "" if action.default in (None, argparse.SUPPRESS) else f"`{written(action.default)}`"
                said = " ".join((action.help or "").split()).replace("|", "\\|")
                lines.append(f"| `{given}` | {default} | {said} |")
        lines.append("")
    return "\n".join(lines)


def written(value: Any) -> str:
    """A default as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    return f"[{', '.join(map(str, value))}]" if isinstance(value, list) else str(value)
