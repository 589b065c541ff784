"""Guides as notebooks: a cell for each block, which `make notebooks` executes."""

import importlib.util
from pathlib import Path

import pytest

jupytext = pytest.importorskip("jupytext", reason="the extra notebooks")
pytest.importorskip("nbclient", reason="the extra notebooks")
ROOT = Path(__file__).resolve().parents[1]
SPEC = importlib.util.spec_from_file_location("notebooks", ROOT / "docs" / "hooks" / "notebooks.py")
notebooks = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(notebooks)


@pytest.mark.parametrize("guide", notebooks.GUIDES)
def test_every_block_of_python_is_a_cell(guide):
    text = (ROOT / "docs" / f"{guide}.md").read_text(encoding="utf-8")
    made = notebooks.notebook(guide)
    code = [cell for cell in made.cells if cell.cell_type == "code"]
    assert len(code) == text.count("```python\n") > 0
    assert all(f"```python\n{cell.source}\n```" in text for cell in code)
    left_out = [cell for cell in code if "skip-execution" in cell.metadata.get("tags", [])]
    assert len(left_out) == text.count("<!-- Not run by the tests")
    words = "".join(cell.source for cell in made.cells if cell.cell_type == "markdown")
    assert all(line in words for line in text.splitlines() if line.startswith("#") and "```" not in line)


@pytest.mark.slow
def test_notebooks_are_executed(tmp_path):
    notebooks.main(tmp_path)
    for guide in notebooks.GUIDES:
        made = jupytext.read(tmp_path / f"{guide}.ipynb")
        assert any(cell.get("outputs") for cell in made.cells)
