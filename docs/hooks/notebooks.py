"""Guides as notebooks, executed: `make notebooks` writes them to build/notebooks.

jupytext makes a cell of each block of Python. What a page says is not run by the tests is not executed.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import jupytext
from nbclient import NotebookClient

ROOT = Path(__file__).resolve().parents[2]
GUIDES = ("start", "yours", "transformers")
_LEFT_OUT = "<!-- Not run by the tests"


def notebook(guide: str) -> Any:
    """A guide as a notebook that is not executed yet."""
    made = jupytext.reads((ROOT / "docs" / f"{guide}.md").read_text(encoding="utf-8"), fmt="md")
    made.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    before = ""
    for cell in made.cells:
        if cell.cell_type == "code" and before.rsplit("\n\n", 1)[-1].startswith(_LEFT_OUT):
            cell.metadata["tags"] = ["skip-execution"]
        before = cell.source
    return made


def main(folder: Path) -> None:
    """Write and execute all guides."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])  # of the kernels
    folder.mkdir(parents=True, exist_ok=True)
    for guide in GUIDES:
        made = notebook(guide)
        NotebookClient(
            made, timeout=600, kernel_name="python3", resources={"metadata": {"path": str(folder)}}
        ).execute()
        jupytext.write(made, folder / f"{guide}.ipynb")


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else ROOT / "build" / "notebooks"))
